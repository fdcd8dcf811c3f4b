"""COSMOS: a linear scalarization bent towards a preference (Ruchte and Grabocka 2021, arXiv:2103.13392). Class L."""

import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, Direction, declared
from mtl_jax.objectives.objective import Objective, of_losses
from mtl_jax.objectives.weighting import guard


@declared
def cosmos(lam: AtLeast0 = 1.0, preference: Direction = None) -> Objective:
  """`sum_k r_k L_k - lam cos(r, L)`, r the preference, which here sums to 1.

  The paper's network also reads r, drawn anew for every batch; here r is one for the whole run.

  Args:
    lam: how much the cosine counts; the paper takes 0.01 to 8 by the set and names no default.
    preference: a number of 0 or more for each loss; None: all alike.
  """
  preferred = guard.preference(preference)

  def total(losses, present):
    weights, values = preferred(present), jnp.where(present, losses, 0)
    along = weights @ values
    lengths = [jnp.maximum(guard.length(vector), guard.LEAST_LOSS) for vector in (weights, values)]
    return along - lam * along / (lengths[0] * lengths[1])

  return of_losses(total)
