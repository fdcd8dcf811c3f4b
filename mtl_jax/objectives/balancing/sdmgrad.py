"""SDMGrad and MoDo: weights by projected steps on products of independent batches. Class P, three times."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.declared import AtLeast0, Direction, Length, Share, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float
from mtl_jax.objectives.task_gradients import weighted_sum
from mtl_jax.objectives.weighting import guard


class State(NamedTuple):
  """The solver's weights w, on the simplex, from which the next step starts; and the last update's weights."""

  simplex: Float[Array, ' k']
  weights: Float[Array, ' k']


@declared
def sdmgrad(
  lam: AtLeast0 = 0.3,
  solver_rate: AtLeast0 = 10.0,
  momentum: Share = 0.5,
  solver_steps: Length = 20,
  preference: Direction = None,
) -> Objective:
  """`d = sum_k (w_k + lam / K) g_k / (1 + lam)`, with w from projected steps along `g g'' (w + lam / K)`.

  Xiao, Ban, Ji (2023), Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms
  (arXiv:2305.18409).
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
  """
  preferred = guard.preference(preference)

  def start(num_tasks, like=None):
    equal = jnp.full(num_tasks, 1 / num_tasks, jnp.float32)
    return State(equal, equal)

  def update(gradients, state, *, losses, present, key, at=None):
    (product, unit), third = double_sampled(gradients, present)
    scale = guard.mean(jnp.sqrt(jnp.maximum(jnp.diagonal(product), 0)), present)
    product = product / jnp.maximum(jnp.square(scale) + jnp.square(1e-4 / unit), 1e-20)
    toward = lam * preferred(present)
    largest = jnp.abs(product).sum(1).max()
    rate = jnp.where(jnp.asarray(solver_rate) > 0, solver_rate, 1 / jnp.where(largest > 0, largest, 1))

    def solver_step(carry, _):
      w, velocity = carry
      velocity = momentum * velocity + product @ (w + toward)
      return (project(w - rate * velocity, present), velocity), None

    begin = project(state.simplex, present)
    (w, _), _ = jax.lax.scan(solver_step, (begin, jnp.zeros_like(begin)), length=solver_steps)
    weights = jnp.where(present, (w + toward) / (1 + lam), 0)
    keep = State(guard.share_out(w, state.simplex, present), jnp.where(present, weights, state.weights))
    return weighted_sum(weights, third), keep

  return Objective(start, update, needs='parameters', parts=3)


class MoDoState(NamedTuple):
  """The weights, on the simplex."""

  weights: Float[Array, ' k']


@declared
def modo(gamma: AtLeast0 = 1e-3, rho: AtLeast0 = 0.1) -> Objective:
  """`d = sum_k w_k g_k`, w one projected step per update along `g' g'' w + rho w`.

  Chen, Fernando, Ying, Chen (2023), Three-Way Trade-Off in Multi-Objective Learning (arXiv:2305.20057).
  The three gradients come from independent batches: thirds of the step's batch (the objective's `parts`; gradients have
  first axes `[3, K]`), as in LibMTL, whose defaults these are (torchjd's are 0.1 and 0.1). The product is not scaled,
  so gamma means what the gradients' lengths make of it. A task that has no label in some third is left out of the step.

  Args:
    gamma: step of the weights.
    rho: their quadratic regularisation, which pulls towards 1 / K.
  """

  def start(num_tasks, like=None):
    return MoDoState(jnp.full(num_tasks, 1 / num_tasks, jnp.float32))

  def update(gradients, state, *, losses, present, key, at=None):
    products, third = double_sampled(gradients, present)
    old = guard.normalized(state.weights, present)
    weights = project(old - gamma * (products.times(old) + rho * old), present)
    return weighted_sum(weights, third), MoDoState(guard.share_out(weights, state.weights, present))

  return Objective(start, update, needs='parameters', parts=3)


def double_sampled(gradients: Any, present: Bool[Array, ' k']) -> tuple[task_gradients.Gram, Any]:
  """The products of a batch's first third with its second, 0 for absent tasks, and the gradients of the last third."""
  first, second, third = (jax.tree.map(lambda leaf: leaf[part], gradients) for part in range(3))  # noqa: B023
  return task_gradients.gram(first, second, present=present), third


def project(values: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """The nearest point of the simplex over the tasks present (Duchi et al. 2008), 0 for the others."""
  values = values - jnp.where(present, values, -jnp.inf).max(initial=0)  # So that a sum of 1 shows beside large values.
  ordered = jnp.sort(jnp.where(present, values, -jnp.inf))[::-1]
  finite = jnp.isfinite(ordered)
  ranks = jnp.arange(1, len(values) + 1)
  shifts = (jnp.cumsum(jnp.where(finite, ordered, 0)) - 1) / ranks
  inside = finite & (ordered > shifts)
  last = jnp.maximum(inside.sum() - 1, 0)
  return jnp.where(present, jnp.maximum(values - shifts[last], 0), 0)
