"""DB-MTL: dual balancing (Lin et al. 2023, arXiv:2308.12029). Class P, and K gradients of state."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.declared import AtLeast0, Share, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float, Int32
from mtl_jax.objectives.task_gradients import remembered, scaled, weighted_sum
from mtl_jax.objectives.weighting.guard import LEAST_LOSS


class State(NamedTuple):
  """Steps taken, the averaged gradients of the logarithms, and the factors of the last `g_k` in the update.

  These are `1 / L_k` times what brings the averages to one norm, but for the share that an average keeps.
  """

  step: Int32[Array, '']
  average: Any
  weights: Float[Array, ' k']


@declared
def db_mtl(beta: Share = 0.9, beta_sigma: AtLeast0 = 0.0) -> Objective:
  """Averages of the gradients of `log L_k`, each stretched to the largest one's norm, and summed.

  `a_k = g_k / L_k + beta / t^beta_sigma (a_k - g_k / L_k)` from `a_k = 0` at t = 1, as in LibMTL. The heads descend
  the logarithms too.

  Args:
    beta: how much of the average is kept.
    beta_sigma: how fast that falls with the step.
  """

  def start(num_tasks, like=None):
    return State(jnp.zeros((), jnp.int32), task_gradients.zeros(num_tasks, like), jnp.ones(num_tasks))

  def update(gradients, state, *, losses, present, key, at=None):
    step = state.step + 1
    keep = beta / step.astype(jnp.float32) ** beta_sigma
    slopes = jnp.where(present, 1 / (losses + LEAST_LOSS), 0)
    logs = scaled(slopes, gradients)
    average = remembered(state.average, logs, present, lambda old, new: new + keep * (old - new))
    norms = jnp.where(present, task_gradients.norms(average), 0)
    factors = jnp.where(norms > 0, norms.max() / jnp.where(norms > 0, norms, 1), 0)
    return weighted_sum(factors, average), State(step, average, factors * slopes)

  return Objective(start, update, needs='parameters', head_scale=lambda losses, _: 1 / (losses + LEAST_LOSS))
