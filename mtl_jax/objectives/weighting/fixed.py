"""Fixed weights: the sum of the losses, each times a constant. Class L."""

from mtl_jax.objectives.declared import Factors, declared
from mtl_jax.objectives.objective import Objective, of_losses
from mtl_jax.objectives.weighting import guard


@declared
def fixed(weights: Factors = None) -> Objective:
  """`sum_k w_k L_k` over the tasks that have labels in the batch; without weights all are 1: the plain sum."""

  def total(losses, present):
    factors = guard.per_task(1.0 if weights is None else weights, len(losses), name='weights').astype(losses.dtype)
    return guard.total(factors * losses, present)

  return of_losses(total)
