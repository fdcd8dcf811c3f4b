"""ExcessMTL: weights by excess risk (He et al. 2024, "Robust Multi-Task Learning with Excess Risks"). Class P, and K
gradients of state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.declared import AtLeast0, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.task_gradients import remembered, weighted_sum
from mtl_jax.objectives.weighting import guard

EPSILON = 1e-7
LONGEST = 1e18  # A longer entry of a gradient counts as that in the estimate, so that float32 holds its square.


class State(NamedTuple):
  """Sums of squared gradients, the weights, and each task's first excess risk, NaN before there is one."""

  squares: Any
  weights: Float[Array, ' k']
  first: Float[Array, ' k']


@declared
def excess_mtl(eta: AtLeast0 = 0.01) -> Objective:
  """`w_k` grows as `exp(eta e_k / e_k(0))`, where `e_k = g_k' diag(sum_t g_k^2)^(-1/2) g_k` estimates the excess risk.

  The weights lie on the simplex, from 1 / K each, as in the paper and torchjd; LibMTL's start at 1 and then sum to K.
  At a task's first step the ratio is 1, so its weight grows by `exp(eta)` as the rule says. Published code differs
  there: LibMTL leaves the weights of the first step as they are, torchjd takes the unscaled `e_k` in the ratio's place.
  In LibMTL heads get the weighted gradient: `heads='weighted'`.

  Args:
    eta: step of the exponentiated update; LibMTL's default.
  """

  def start(num_tasks, like=None):
    equal, unknown = jnp.full(num_tasks, 1 / num_tasks, jnp.float32), jnp.full(num_tasks, jnp.nan)
    return State(task_gradients.zeros(num_tasks, like), equal, unknown)

  def update(gradients, state, *, losses, present, key, at=None):
    squares = remembered(state.squares, gradients, present, lambda old, g: jnp.minimum(old + _square(g), LONGEST**2))
    excess = _excess(gradients, squares)
    first = jnp.where(present & jnp.isnan(state.first), excess, state.first)
    ratio = excess / (first + EPSILON)
    moved = guard.softmax(jnp.log(jnp.maximum(state.weights, EPSILON**4)) + eta * jnp.where(present, ratio, 0), present)
    kept = guard.share_out(moved, state.weights, present)
    return weighted_sum(moved, gradients), State(squares, kept, first)

  return Objective(start, update, needs='parameters')


def _excess(gradients: Any, squares: Any) -> Float[Array, ' k']:
  def of_leaf(g, s):
    return (_square(g) / jnp.sqrt(s + EPSILON)).reshape(len(g), -1).sum(1)

  return sum(jax.tree.leaves(jax.tree.map(of_leaf, gradients, squares)), jnp.zeros((), jnp.float32))


def _square(g: Array) -> Array:
  return jnp.square(jnp.clip(g.astype(jnp.float32), -LONGEST, LONGEST))
