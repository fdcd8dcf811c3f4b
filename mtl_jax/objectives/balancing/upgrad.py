"""UPGrad and DualProj: gradients, or their mean, projected onto the cone of directions that conflict with no task."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting, keep, stateless
from mtl_jax.objectives.balancing.interior_point import TINY, minimize
from mtl_jax.objectives.declared import Direction, number
from mtl_jax.objectives.shapes import Array, Bool, Float
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard

STEPS = 15
Regularization = Annotated[float, number(1e-6)]  # Float32 cannot resolve less.


@on_gram
def upgrad(regularization: Regularization = 1e-4, preference: Direction = None) -> GramWeighting:
  """`sum_i v_i` with `v_i = argmin v' G v` over `v >= e_i / K`.

  Quinton, Rey (2024), Jacobian Descent for Multi-Objective Optimization. G is scaled to trace 1 and gets
  `regularization` on its diagonal, as in the authors' code; so a conflict of at most
  `d . g_k >= -regularization trace(G) weights_k` is left. Tasks without conflict give the *mean* gradient: weights of
  1 / K; one task alone gets 1. K problems of K unknowns, solved side by side. Class P.

  Args:
    regularization: as a share of trace(G), the sum of the squared norms; 1e-4 is the authors' code's.
    preference: weights, brought to a sum of 1, in the place of 1 / K: of the projected gradients.
  """
  preferred = guard.preference(preference)

  def rule(gram, task):
    floors = jnp.diag(preferred(task.present))
    return jax.vmap(cone_projection(gram, task.present, regularization))(floors).sum(0)

  return stateless(rule)


@on_gram
def dualproj(regularization: Regularization = 1e-4, preference: Direction = None) -> GramWeighting:
  """`argmin v' G v` over `v >= 1 / K`.

  Lopez-Paz, Ranzato (2017), Gradient Episodic Memory for Continual Learning, equation 11, of the mean gradient as in
  torchjd. One problem where UPGrad solves K: it helps the mean, and long gradients decide that. Tasks without conflict
  give the *mean* gradient; one task alone gets 1. Class P.

  Args:
    regularization: as in UPGrad.
    preference: weights, brought to a sum of 1, in the place of 1 / K.
  """
  preferred = guard.preference(preference)

  def rule(gram, task):
    return cone_projection(gram, task.present, regularization)(preferred(task.present))

  return stateless(rule)


def cone_projection(
  gram: Float[Array, 'k k'], present: Bool[Array, ' k'], regularization: float
) -> Callable[[Float[Array, ' k']], Float[Array, ' k']]:
  """From weights u to the `v >= u` with the least `v' G v`: `sum_k u_k g_k` projected onto the cone."""
  trace = jnp.trace(gram)
  scaled = gram / jnp.where(trace > 0, trace, 1) + regularization * jnp.eye(len(gram), dtype=gram.dtype)
  units = jnp.sqrt(jnp.diagonal(scaled))
  matrix = keep(scaled / units[:, None] / units[None, :], present)

  def project(floor):
    # v = floor + x / units, x >= 0, makes the diagonal 1; the linear term is brought near 1 as well.
    linear = jnp.where(present, matrix @ (units * floor), 0)
    size = jnp.maximum(jnp.abs(linear).max(), TINY)

    def derivatives(x):
      return matrix @ x + linear / size, matrix

    zeros, ones = jnp.zeros_like(floor), jnp.ones_like(floor)
    return floor + size * minimize(derivatives, start=ones, normal=zeros, live=present, steps=STEPS) / units

  return project
