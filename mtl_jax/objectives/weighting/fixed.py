"""Fixed weights: the sum of the losses, each times a constant. Class L."""

from collections.abc import Sequence

import jax.numpy as jnp

from mtl_jax.objectives.objective import Objective, no_state


def fixed(weights: Sequence[float]) -> Objective:
  """`sum_k w_k L_k` over the tasks that have labels in the batch."""

  def update(losses, state, *, present, key):
    del key
    return jnp.where(present, jnp.asarray(weights, losses.dtype) * losses, 0).sum(), state

  return Objective(no_state, update)
