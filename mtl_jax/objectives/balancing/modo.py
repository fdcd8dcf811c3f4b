"""MoDo: multi-objective gradient with double sampling (Chen et al. 2023, arXiv:2305.20057). Class P, three times."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.balancing.sdmgrad import project
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.task_gradients import weighted_sum
from mtl_jax.objectives.weighting import guard


class State(NamedTuple):
  """The weights, on the simplex."""

  weights: Float[Array, ' k']


def modo(gamma: float = 1e-3, rho: float = 0.1) -> Objective:
  """`d = sum_k w_k g_k`, w one projected step per update along `g' g'' w + rho w`.

  The three gradients come from independent batches: thirds of the step's batch (the objective's `parts`; gradients have
  first axes `[3, K]`), as in LibMTL, whose defaults these are (torchjd's are 0.1 and 0.1). The product is not scaled,
  so gamma means what the gradients' lengths make of it. A task that has no label in some third is left out of the step.

  Args:
    gamma: step of the weights.
    rho: their quadratic regularisation, which pulls towards 1 / K.
  """

  def init(num_tasks, like=None):
    del like
    return State(jnp.full(num_tasks, 1 / num_tasks, jnp.float32))

  def update(gradients, state, *, losses, present, key, at=None):
    del losses, key, at
    first, second, third = (jax.tree.map(lambda leaf: leaf[part], gradients) for part in range(3))  # noqa: B023
    product = task_gradients.gram(first, second)
    product = jnp.where(present[:, None] & present[None, :], product, 0)
    held = jnp.where(present, state.weights, 0)
    old = held / jnp.where(held.sum() > 0, held.sum(), 1)
    weights = project(old - gamma * (product @ old + rho * old), present)
    return weighted_sum(weights, third), State(guard.share_out(weights, state.weights, present))

  return Objective(init, update, needs='parameters', parts=3)
