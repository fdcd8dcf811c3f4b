"""MoCo: gradient correction (Fernando et al. 2023, arXiv:2210.12624). Class P, and K gradients of state."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.declared import AtLeast0, Share, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float, Int32
from mtl_jax.objectives.task_gradients import remembered, scaled, weighted_sum
from mtl_jax.objectives.weighting import guard


class State(NamedTuple):
  """Steps taken, the tracked gradients y, and their weights l."""

  step: Int32[Array, '']
  tracked: Any
  weights: Float[Array, ' k']


@declared
def moco(
  beta: Share = 0.5, beta_sigma: AtLeast0 = 0.5, gamma: AtLeast0 = 0.1, gamma_sigma: AtLeast0 = 0.5, rho: AtLeast0 = 0.0
) -> Objective:
  """`y_k -= beta_t (y_k - L_k g_k / |g_k|)`, `l = softmax(l - gamma_t (y y' + rho I) l)`, `d = y' l`.

  The steps fall as `beta_t = beta / t^beta_sigma`, and gamma_t likewise; the form, with the softmax in place of the
  paper's projection, and the defaults are LibMTL's.
  """

  def start(num_tasks, like=None):
    equal = jnp.full(num_tasks, 1 / num_tasks, jnp.float32)
    return State(jnp.zeros((), jnp.int32), task_gradients.zeros(num_tasks, like), equal)

  def update(gradients, state, *, losses, present, key, at=None):
    step = state.step + 1
    time = step.astype(jnp.float32)
    norms = task_gradients.norms(gradients)
    fresh = scaled(jnp.where(present & (norms > 0), losses / jnp.where(norms > 0, norms, 1), 0), gradients)
    rate = beta / time**beta_sigma
    tracked = remembered(state.tracked, fresh, present, lambda y, new: y - rate * (y - new))
    old = guard.normalized(state.weights, present)
    slope = task_gradients.gram(tracked, present=present).times(old) + rho * old
    weights = guard.softmax(old - gamma / time**gamma_sigma * slope, present)
    return weighted_sum(weights, tracked), State(step, tracked, guard.share_out(weights, state.weights, present))

  return Objective(start, update, needs='parameters')
