"""DB-MTL: dual balancing (Lin et al. 2023, arXiv:2308.12029). Class P, and K gradients of state."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float, Int32
from mtl_jax.objectives.task_gradients import remembered, scaled, weighted_sum
from mtl_jax.objectives.weighting.guard import LEAST_LOSS


class State(NamedTuple):
  """Steps taken, the averaged gradients of the logarithms, and the last factors that brought them to one norm."""

  step: Int32[Array, '']
  average: Any
  weights: Float[Array, ' k']


def db_mtl(beta: float = 0.9, beta_sigma: float = 0.0) -> Objective:
  """Averages of the gradients of `log L_k`, each stretched to the largest one's norm, and summed.

  `a_k = g_k / L_k + beta / t^beta_sigma (a_k - g_k / L_k)` from `a_k = 0` at t = 1, as in LibMTL. The heads descend
  the logarithms too.

  Args:
    beta: how much of the average is kept.
    beta_sigma: how fast that falls with the step.
  """

  def init(num_tasks, like=None):
    return State(jnp.zeros((), jnp.int32), task_gradients.zeros(num_tasks, like), jnp.ones(num_tasks))

  def update(gradients, state, *, losses, present, key, at=None):
    step = state.step + 1
    keep = beta / step.astype(jnp.float32) ** beta_sigma
    logs = scaled(jnp.where(present, 1 / (losses + LEAST_LOSS), 0), gradients)
    average = remembered(state.average, logs, present, lambda old, new: new + keep * (old - new))
    norms = jnp.sqrt(jnp.where(present, task_gradients.squares(average), 0))
    weights = jnp.where(present & (norms > 0), norms.max() / jnp.where(norms > 0, norms, 1), 0)
    return weighted_sum(weights, average), State(step, average, weights)

  return Objective(init, update, needs='parameters', head_scale=lambda losses, _: 1 / (losses + LEAST_LOSS))
