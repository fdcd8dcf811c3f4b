"""UW-SO: soft optimal uncertainty weighting (Kirchdorfer et al. 2024, arXiv:2408.07985). Class L."""

import jax

from mtl_jax.objectives.declared import Temperature, declared
from mtl_jax.objectives.objective import Objective, of_losses
from mtl_jax.objectives.weighting import guard


@declared
def uw_so(temperature: Temperature = 20.0) -> Objective:
  """`sum_k w_k L_k`, `w = softmax(1 / (T sg(L)))`: the uncertainties that are best for these losses, softened.

  The weights that minimise Kendall's uncertainty loss are `1 / L_k`; the softmax makes them sum to 1. Losses near 0
  take all the weight where T is small.

  Args:
    temperature: T. The paper tunes it on every set and net, and names no default; 20 is in its range.
  """

  def total(losses, present):
    inverse = 1 / guard.safe(jax.lax.stop_gradient(losses), present)
    return guard.total(guard.softmax(inverse / temperature, present) * losses, present)

  return of_losses(total)
