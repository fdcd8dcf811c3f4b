"""The common form of balancing methods on the Gram matrix: absent tasks are masked, gradients scaled to cosines."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.shapes import Array, Bool, Float, Key


class GramWeighting(NamedTuple):
  """A rule that combines K task gradients to `sum_k weights[k] g_k`, by their Gram matrix `gram[i, j] = g_i . g_j`.

  Attributes:
    init: number of tasks K -> state, a pytree (`()` where the method keeps none).
    weights: `(gram [K, K], state, *, losses [K], present [K], key, unit=1.0) -> (weights [K], next state)`, with the
      Gram matrix of the gradients divided by `unit`, a power of two: 1 but for gradients whose squares float32 cannot
      hold. A task that is not present gets weight 0, and the others get what they would get without it; K in a rule
      counts the tasks that are present. Where all are absent the weights are 0. Whatever stands in an absent task's row
      or loss is not read.
  """

  init: Callable[[int], Any]
  weights: Callable[..., tuple[Float[Array, ' k'], Any]]


class Task(NamedTuple):
  """A rule's other inputs, besides the Gram matrix."""

  losses: Float[Array, ' k']
  present: Bool[Array, ' k']
  key: Key[Array, '']
  unit: Any


class Cosines(NamedTuple):
  """A Gram matrix as cosines and norms: float32 keeps both to seven digits, however unlike the norms are.

  Attributes:
    matrix: `cos(g_i, g_j)`; a gradient that is absent or zero has a row of the identity.
    norms: `|g_k|`, 1 for a gradient that is absent or zero.
    live: which gradients are present and not zero.
  """

  matrix: Float[Array, 'k k']
  norms: Float[Array, ' k']
  live: Bool[Array, ' k']


def cosines(gram: Float[Array, 'k k'], task: Task) -> Cosines:
  """Splits a Gram matrix into cosines and norms."""
  squares = jnp.diagonal(gram)
  live = task.present & (squares > jnp.finfo(jnp.float32).tiny)
  norms = jnp.sqrt(jnp.where(live, squares, 1))
  matrix = jnp.clip(gram / norms[:, None] / norms[None, :], -1, 1)
  return Cosines(keep(matrix, live), jnp.where(live, norms * task.unit, 1), live)


def keep(matrix: Float[Array, 'k k'], live: Bool[Array, ' k']) -> Float[Array, 'k k']:
  """The matrix with the identity's rows and columns where not `live`, and ones on the diagonal of a cosine matrix."""
  identity = jnp.eye(len(live), dtype=matrix.dtype)
  return jnp.where(live[:, None] & live[None, :], matrix, identity)


def least_squares(matrix: Float[Array, 'k k'], right: Float[Array, ' k']) -> tuple[Float[Array, ' k'], Bool[Array, '']]:
  """The shortest least-squares solution of a symmetric system, and whether the matrix has full rank in float32."""
  values, vectors = jnp.linalg.eigh(matrix)
  kept = values > len(right) * jnp.finfo(jnp.float32).eps * values[-1]
  return vectors @ (jnp.where(kept, 1 / jnp.where(kept, values, 1), 0) * (vectors.T @ right)), kept.all()


def stateless(rule: Callable[[Float[Array, 'k k'], Task], Float[Array, ' k']]) -> GramWeighting:
  """A method without memory, from `rule(gram, task) -> weights`."""
  return stateful(lambda _: (), lambda gram, state, task: (rule(gram, task), state))


def stateful(init: Callable[[int], Any], rule: Callable[..., tuple[Float[Array, ' k'], Any]]) -> GramWeighting:
  """A method from `rule(gram, state, task) -> (weights, next state)`, which never sees an absent task's numbers."""

  def weights(gram, state, *, losses, present, key, unit=1.0):
    gram = jnp.where(present[:, None] & present[None, :], gram, 0).astype(jnp.float32)
    losses = jnp.where(present, losses, 0).astype(jnp.float32)
    # Accelerators round a product's operands to bfloat16 or TF32 by default: too coarse for a solver.
    with jax.default_matmul_precision('highest'):
      found, state = rule(gram, state, Task(losses, present, key, unit))
    return jnp.where(present, found, 0), state

  return GramWeighting(init, weights)
