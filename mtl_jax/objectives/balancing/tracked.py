"""DB-MTL, ExcessMTL and MoCo: methods that remember K gradients. Class P, with as much state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.declared import AtLeast0, Share, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float, Int32
from mtl_jax.objectives.task_gradients import remembered, scaled, weighted_sum
from mtl_jax.objectives.weighting import guard

EPSILON = 1e-7
LONGEST = 1e18  # A longer entry of a gradient counts as that in ExcessMTL's estimate: float32 holds its square.


class DbState(NamedTuple):
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
  the logarithms too. Dual balancing (Lin et al. 2023, arXiv:2308.12029).

  Args:
    beta: how much of the average is kept.
    beta_sigma: how fast that falls with the step.
  """

  def start(num_tasks, like=None):
    return DbState(jnp.zeros((), jnp.int32), task_gradients.zeros(num_tasks, like), jnp.ones(num_tasks))

  def update(gradients, state, *, losses, present, key, at=None):
    step = state.step + 1
    keep = beta / step.astype(jnp.float32) ** beta_sigma
    slopes = jnp.where(present, 1 / (losses + guard.LEAST_LOSS), 0)
    logs = scaled(slopes, gradients)
    average = remembered(state.average, logs, present, lambda old, new: new + keep * (old - new))
    norms = jnp.where(present, task_gradients.norms(average), 0)
    factors = jnp.where(norms > 0, norms.max() / jnp.where(norms > 0, norms, 1), 0)
    return weighted_sum(factors, average), DbState(step, average, factors * slopes)

  return Objective(start, update, needs='parameters', head_scale=lambda losses, _: 1 / (losses + guard.LEAST_LOSS))


class ExcessState(NamedTuple):
  """Sums of squared gradients, the weights, and each task's first excess risk, NaN before there is one."""

  squares: Any
  weights: Float[Array, ' k']
  first: Float[Array, ' k']


@declared
def excess_mtl(eta: AtLeast0 = 0.01) -> Objective:
  """`w_k` grows as `exp(eta e_k / e_k(0))`, where `e_k = g_k' diag(sum_t g_k^2)^(-1/2) g_k` estimates the excess risk.

  He et al. 2024, "Robust Multi-Task Learning with Excess Risks". The weights lie on the simplex, from 1 / K each, as in
  the paper and torchjd; LibMTL's start at 1 and then sum to K. At a task's first step the ratio is 1, so its weight
  grows by `exp(eta)` as the rule says. Published code differs there: LibMTL leaves the weights of the first step as
  they are, torchjd takes the unscaled `e_k` in the ratio's place. In LibMTL heads get the weighted gradient:
  `heads='weighted'`.

  Args:
    eta: step of the exponentiated update; LibMTL's default.
  """

  def start(num_tasks, like=None):
    equal, unknown = jnp.full(num_tasks, 1 / num_tasks, jnp.float32), jnp.full(num_tasks, jnp.nan)
    return ExcessState(task_gradients.zeros(num_tasks, like), equal, unknown)

  def update(gradients, state, *, losses, present, key, at=None):
    squares = remembered(state.squares, gradients, present, lambda old, g: jnp.minimum(old + _square(g), LONGEST**2))
    excess = _excess(gradients, squares)
    first = jnp.where(present & jnp.isnan(state.first), excess, state.first)
    ratio = excess / (first + EPSILON)
    moved = guard.softmax(jnp.log(jnp.maximum(state.weights, EPSILON**4)) + eta * jnp.where(present, ratio, 0), present)
    kept = guard.share_out(moved, state.weights, present)
    return weighted_sum(moved, gradients), ExcessState(squares, kept, first)

  return Objective(start, update, needs='parameters')


def _excess(gradients: Any, squares: Any) -> Float[Array, ' k']:
  def of_leaf(g, s):
    return (_square(g) / jnp.sqrt(s + EPSILON)).reshape(len(g), -1).sum(1)

  return sum(jax.tree.leaves(jax.tree.map(of_leaf, gradients, squares)), jnp.zeros((), jnp.float32))


def _square(g: Array) -> Array:
  return jnp.square(jnp.clip(g.astype(jnp.float32), -LONGEST, LONGEST))


class MocoState(NamedTuple):
  """Steps taken, the tracked gradients y, and their weights l."""

  step: Int32[Array, '']
  tracked: Any
  weights: Float[Array, ' k']


@declared
def moco(
  beta: Share = 0.5, beta_sigma: AtLeast0 = 0.5, gamma: AtLeast0 = 0.1, gamma_sigma: AtLeast0 = 0.5, rho: AtLeast0 = 0.0
) -> Objective:
  """`y_k -= beta_t (y_k - L_k g_k / |g_k|)`, `l = softmax(l - gamma_t (y y' + rho I) l)`, `d = y' l`.

  Gradient correction (Fernando et al. 2023, arXiv:2210.12624). The steps fall as `beta_t = beta / t^beta_sigma`, and
  gamma_t likewise; the form, with the softmax in place of the paper's projection, and the defaults are LibMTL's.
  """

  def start(num_tasks, like=None):
    equal = jnp.full(num_tasks, 1 / num_tasks, jnp.float32)
    return MocoState(jnp.zeros((), jnp.int32), task_gradients.zeros(num_tasks, like), equal)

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
    return weighted_sum(weights, tracked), MocoState(step, tracked, guard.share_out(weights, state.weights, present))

  return Objective(start, update, needs='parameters')
