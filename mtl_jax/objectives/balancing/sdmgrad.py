"""SDMGrad: direction-oriented descent (Xiao, Ban and Ji 2023, arXiv:2305.18409). Class P, three times."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float
from mtl_jax.objectives.task_gradients import weighted_sum
from mtl_jax.objectives.weighting import guard


class State(NamedTuple):
  """The solver's weights w, on the simplex, from which the next step starts; and the last update's weights."""

  simplex: Float[Array, ' k']
  weights: Float[Array, ' k']


def sdmgrad(
  lam: float = 0.3,
  solver_rate: float = 10.0,
  momentum: float = 0.5,
  solver_steps: int = 20,
  preference: Sequence[float] | None = None,
) -> Objective:
  """`d = sum_k (w_k + lam / K) g_k / (1 + lam)`, with w from projected steps along `g g'' (w + lam / K)`.

  The three gradients in the rule, g, g' and that of d, come from independent batches: thirds of the step's batch (the
  objective's `parts`; gradients have first axes `[3, K]`). The product is scaled by the mean norm as in the authors'
  code, LibMTL and torchjd. A task that has no label in some third is left out of the step.

  The defaults are the authors' code's (LibMTL's rate is 5), and they do not solve the problem: where gradients have
  like norms the scaled product's eigenvalues are near 1, steps of 10 throw w from corner to corner of the simplex, and
  the last step of twenty still moves w by 0.9 (3 tasks) or 0.4 (40). `solver_rate=0` takes the rate from the matrix, 1
  over the largest sum of a row's sizes, with which w comes to rest; results under the default rate are those of a
  random walk.

  Args:
    lam: pull towards the mean gradient.
    solver_rate: step of the solver, 0 for one that converges.
    momentum: of the solver.
    solver_steps: how many it takes.
    preference: of the gradient that the update is pulled towards, brought to a sum of 1; None: the mean.

  Raises:
    ConfigError: the preference is no direction.
  """
  guard.check_preference(preference, name='sdmgrad')

  def init(num_tasks, like=None):
    del like
    equal = jnp.full(num_tasks, 1 / num_tasks, jnp.float32)
    return State(equal, equal)

  def update(gradients, state, *, losses, present, key, at=None):
    del losses, key, at
    first, second, third = (jax.tree.map(lambda leaf: leaf[part], gradients) for part in range(3))  # noqa: B023
    product = task_gradients.gram(first, second)
    product = jnp.where(present[:, None] & present[None, :], product, 0)
    scale = guard.mean(jnp.sqrt(jnp.maximum(jnp.diagonal(product), 0)), present)
    product = product / (jnp.square(scale) + 1e-8)
    toward = lam * present / guard.count(present)
    if preference is not None:
      toward = lam * guard.preferred(preference, present)
    largest = jnp.abs(product).sum(1).max()
    rate = solver_rate or 1 / jnp.where(largest > 0, largest, 1)

    def solver_step(carry, _):
      w, velocity = carry
      velocity = momentum * velocity + product @ (w + toward)
      return (project(w - rate * velocity, present), velocity), None

    start = project(state.simplex, present)
    (w, _), _ = jax.lax.scan(solver_step, (start, jnp.zeros_like(start)), length=solver_steps)
    weights = jnp.where(present, (w + toward) / (1 + lam), 0)
    keep = State(guard.share_out(w, state.simplex, present), jnp.where(present, weights, state.weights))
    return weighted_sum(weights, third), keep

  return Objective(init, update, needs='parameters', parts=3)


def project(values: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """The nearest point of the simplex over the tasks present (Duchi et al. 2008), 0 for the others."""
  ordered = jnp.sort(jnp.where(present, values, -jnp.inf))[::-1]
  finite = jnp.isfinite(ordered)
  ranks = jnp.arange(1, len(values) + 1)
  shifts = (jnp.cumsum(jnp.where(finite, ordered, 0)) - 1) / ranks
  inside = finite & (ordered > shifts)
  last = jnp.maximum(inside.sum() - 1, 0)
  return jnp.where(present, jnp.maximum(values - shifts[last], 0), 0)
