"""Random loss weighting (Lin et al. 2022, arXiv:2111.10603). Class L."""

import jax

from mtl_jax.objectives.declared import declared
from mtl_jax.objectives.objective import Objective, no_state
from mtl_jax.objectives.weighting import guard


@declared
def rlw() -> Objective:
  """`sum_k w_k L_k` with `w = softmax(N(0, I))` drawn anew each step; the weights add up to 1."""

  def update(losses, state, *, present, key):
    weights = guard.softmax(jax.random.normal(guard.drawn_with(key), losses.shape), present)
    return guard.total(weights * losses, present), state

  return Objective(no_state, update)
