"""Penalty-based boundary intersection (Zhang and Li 2007, "MOEA/D"). Class L."""

from collections.abc import Sequence

import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.objectives.objective import Objective, of_losses
from mtl_jax.objectives.weighting import guard

NEAREST = 1e-12  # Under the root of the distance, whose slope at 0 would be infinite.


def pbi(
  theta: float = 5.0, preference: Sequence[float] | None = None, reference: float | Sequence[float] = 0.0
) -> Objective:
  """`d_1 + theta d_2`: the losses' way along the preference, and their distance from it.

  With `F = L - reference` and the unit vector u of the preference, `d_1 = F . u` and `d_2 = |F - d_1 u|`. A task that
  is further along than its share may get a negative weight.

  Args:
    theta: how much the distance counts, 0 or more; 5 is the paper's.
    preference: the direction, a number of 0 or more for each loss; None: all alike.
    reference: the losses' least values.

  Raises:
    ConfigError: theta is negative, or the preference is no direction.
  """
  if theta < 0:
    raise ConfigError(f'pbi: theta is {theta}; give 0 or more (5 in the paper)')
  preferred = guard.preference(preference, name='pbi')

  def total(losses, present):
    weights = preferred(present)
    direction = weights / jnp.sqrt(jnp.maximum(weights @ weights, NEAREST))
    values = jnp.where(present, losses - guard.per_task(reference, len(present), name='reference'), 0)
    along = values @ direction
    away = values - along * direction
    return along + theta * jnp.sqrt(away @ away + NEAREST)

  return of_losses(total)
