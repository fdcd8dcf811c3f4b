"""Minimizes a convex function of non-negative numbers, perhaps under a linear equation, in a fixed number of steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from mtl_jax.objectives.balancing.gram import Cosines, keep
from mtl_jax.objectives.shapes import Array, Bool, Float

Derivatives = Callable[[Float[Array, ' k']], tuple[Float[Array, ' k'], Float[Array, 'k k']]]
TINY = 1e-30


class _Point(NamedTuple):
  x: Float[Array, ' k']
  slack: Float[Array, ' k']  # The multipliers of x >= 0.
  multiplier: Float[Array, '']  # Of normal . x = constant.


def minimize(
  derivatives: Derivatives,
  *,
  start: Float[Array, ' k'],
  normal: Float[Array, ' k'],
  live: Bool[Array, ' k'],
  steps: int,
) -> Float[Array, ' k']:
  """The x >= 0 that minimises a convex function where `normal . x = normal . start`.

  Mehrotra's predictor-corrector steps (Mehrotra 1992, On the implementation of a primal-dual interior point method).

  Args:
    derivatives: x -> gradient and Hessian (positive semi-definite). Scaled so that both are near 1.
    start: positive.
    normal: non-negative; all zero for no equation.
    live: x is 0 where this is False.
    steps: how many; each factors one K x K matrix.
  """
  normal = jnp.where(live, normal, 0)
  count = jnp.maximum(live.sum(), 1)

  def gap(x, slack):
    return jnp.where(live, x * slack, 0).sum() / count

  def reach(value, change):
    return jnp.where(live & (change < 0), -value / jnp.where(change < 0, change, -1), jnp.inf).min()

  def step(_, point):
    x, slack, multiplier = point
    gradient, hessian = derivatives(jnp.where(live, x, 0))
    residual = gradient - multiplier * normal - slack
    factor = cho_factor(keep(hessian + jnp.diag(slack / x), live))

    def direction(complement):
      right = jnp.where(live, -residual - complement / x, 0)
      free, along = cho_solve(factor, jnp.stack([right, normal], axis=1)).T
      change = -(normal @ free) / jnp.maximum(normal @ along, TINY)
      dx = free + change * along
      return dx, -(complement + slack * dx) / x, change

    dx, dslack, _ = direction(x * slack)
    length = jnp.minimum(1, jnp.minimum(reach(x, dx), reach(slack, dslack)))
    now = gap(x, slack)
    center = (gap(x + length * dx, slack + length * dslack) / now) ** 3 * now
    dx, dslack, change = direction(x * slack + dx * dslack - center)
    length = jnp.minimum(1, 0.99 * jnp.minimum(reach(x, dx), reach(slack, dslack)))
    new = _Point(x + length * dx, slack + length * dslack, multiplier + length * change)
    # At float32's limit the factor fails or the gap is 0: stay.
    good = jnp.isfinite(new.multiplier) & jnp.isfinite(jnp.where(live, new.x + new.slack, 0)).all()
    good &= jnp.where(live, (new.x > 0) & (new.slack > 0), True).all()
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, point)

  x = jnp.where(live, start, 1)
  gradient, _ = derivatives(jnp.where(live, x, 0))
  multiplier = jnp.where(live, gradient * x, 0).sum() / jnp.maximum(jnp.where(live, normal * x, 0).sum(), TINY)
  multiplier = jnp.where(normal.any(), multiplier, 0)
  slack = gradient - multiplier * normal
  slack = jnp.maximum(slack, jnp.maximum(jnp.abs(jnp.where(live, slack, 0)).max(), 0.1))
  point = jax.lax.fori_loop(0, steps, step, _Point(x, slack, multiplier))
  return jnp.where(live, point.x, 0)


def simplex(angles: Cosines, shares: Float[Array, ' k']) -> tuple[Float[Array, ' k'], Float[Array, ' k']]:
  """The simplex in the variables `b_k = a_k / shares_k`, up to a factor: its `normal` and a `start` inside it.

  With shares in proportion to `1 / |g_k|` a quadratic form in the gradients is the cosines' own.
  """
  normal = jnp.where(angles.live, shares, 0)
  normal = normal / jnp.maximum(normal.max(), TINY)
  return normal, jnp.where(angles.live, 1 / jnp.maximum(normal.sum(), TINY), 0)
