"""Penalty-based boundary intersection (Zhang and Li 2007, "MOEA/D"). Class L."""

import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, Direction, NumberOrEach, declared
from mtl_jax.objectives.objective import Objective, of_losses
from mtl_jax.objectives.weighting import guard

NEAREST = 1e-6  # Beneath this the distance levels off: its slope at 0 would be infinite.


@declared
def pbi(theta: AtLeast0 = 5.0, preference: Direction = None, reference: NumberOrEach = 0.0) -> Objective:
  """`d_1 + theta d_2`: the losses' way along the preference, and their distance from it.

  With `F = L - reference` and the unit vector u of the preference, `d_1 = F . u` and `d_2 = |F - d_1 u|`. A task that
  is further along than its share may get a negative weight.

  Args:
    theta: how much the distance counts; 5 is the paper's.
    preference: the direction, a number of 0 or more for each loss; None: all alike.
    reference: the losses' least values.
  """
  preferred = guard.preference(preference)

  def total(losses, present):
    weights = preferred(present)
    direction = weights / jnp.maximum(guard.length(weights), guard.LEAST_LOSS)
    values = jnp.where(present, losses - guard.per_task(reference, len(present), name='reference'), 0)
    along = values @ direction
    away = values - along * direction
    return along + theta * guard.length(away, least=NEAREST)

  return of_losses(total)
