"""Pytrees of K task gradients, leaves `[K, ...]`: Gram matrix, weighted sums, and the objectives made of these."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float

POINTS = ('parameters', 'representation')


def gram(gradients: Any, others: Any = None) -> Float[Array, 'k k']:
  """`g_i . g_j` in float32, over all leaves; with `others`, `g_i . h_j`."""

  def of_leaf(left: Array, right: Array) -> Array:
    left, right = (leaf.reshape(len(leaf), -1).astype(jnp.float32) for leaf in (left, right))
    return jnp.matmul(left, right.T, precision='highest')  # By default accelerators round operands to 8 or 10 bits.

  others = gradients if others is None else others
  return sum(jax.tree.leaves(jax.tree.map(of_leaf, gradients, others)), jnp.zeros((), jnp.float32))


def squares(gradients: Any) -> Float[Array, ' k']:
  """`|g_k|^2` in float32, over all leaves."""

  def of_leaf(leaf: Array) -> Array:
    return jnp.square(leaf.astype(jnp.float32)).reshape(len(leaf), -1).sum(1)

  return sum(jax.tree.leaves(jax.tree.map(of_leaf, gradients)), jnp.zeros((), jnp.float32))


def weighted_sum(weights: Float[Array, ' k'], gradients: Any) -> Any:
  """`sum_k weights[k] g_k`, in float32 and then in the gradients' type; what a zero weight multiplies is not read.

  Written as a reduction, which compilers fuse: K gradients of a network are read once and never copied.
  """
  return jax.tree.map(lambda leaf: _times(weights, leaf).sum(0).astype(leaf.dtype), gradients)


def scaled(factors: Float[Array, ' k'], gradients: Any) -> Any:
  """`factors[k] g_k` for each k; what a zero factor multiplies is not read."""
  return jax.tree.map(lambda leaf: _times(factors, leaf).astype(leaf.dtype), gradients)


def _times(factors: Float[Array, ' k'], leaf: Array) -> Array:
  each = column(factors, leaf)
  return jnp.where(each != 0, each * leaf.astype(jnp.float32), 0)


def column(values: Any, leaf: Array) -> Array:
  """Values `[K]`, or one for all, in a shape that multiplies a leaf `[K, ...]`."""
  return jnp.asarray(values).reshape(-1, *[1] * (leaf.ndim - 1))


def zeros(num_tasks: int, like: Any) -> Any:
  """K zero gradients in float32, for methods that remember them; empty where their shapes are not known yet."""
  return jax.tree.map(lambda leaf: jnp.zeros((num_tasks, *leaf.shape), jnp.float32), like)


def remembered(state: Any, gradients: Any, present: Bool[Array, ' k'], rule: Callable[[Array, Array], Array]) -> Any:
  """The remembered K gradients after `rule(old, new)`: zeros at first; those of absent tasks stay as they are."""
  if not jax.tree.leaves(state) and jax.tree.leaves(gradients):
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), gradients)
  return jax.tree.map(lambda old, new: jnp.where(column(present, old), rule(old, new), old), state, gradients)


class Weighted(NamedTuple):
  """State of a method with weights.

  Attributes:
    weights: each task's last one.
    gram: the last Gram matrix.
    inner: the method's own state.
  """

  weights: Float[Array, ' k']
  gram: Float[Array, 'k k']
  inner: Any


def solve(
  weighting: GramWeighting, matrix: Float[Array, 'k k'], state: Weighted, *, losses, present, key
) -> tuple[Float[Array, ' k'], Weighted]:
  """The weights for a Gram matrix, 0 for absent tasks; the state keeps an absent task's last one."""
  weights, inner = weighting.weights(matrix, state.inner, losses=losses, present=present, key=key)
  return weights, Weighted(jnp.where(present, weights, state.weights), matrix, inner)


def balanced(weighting: GramWeighting, *, at: str = 'parameters') -> Objective:
  """The objective of a method on the Gram matrix, of gradients taken at the parameters or at the representation."""
  if at not in POINTS:
    raise ConfigError(f'at={at!r}: a balancing method works at {" or ".join(POINTS)}')

  def init(num_tasks, like=None):
    equal = jnp.full(num_tasks, 1 / num_tasks, jnp.float32)
    return Weighted(equal, jnp.zeros((num_tasks, num_tasks)), weighting.init(num_tasks))

  def update(gradients, state, *, losses, present, key, at=None):
    weights, state = solve(weighting, gram(gradients), state, losses=losses, present=present, key=key)
    return weighted_sum(weights, gradients), state

  return Objective(init, update, needs=at, weighting=weighting)  # pyright: ignore[reportArgumentType]


def on_gram(factory: Callable[..., GramWeighting], *, at: str = 'parameters') -> Callable[..., Objective]:
  """A maker of objectives from one of methods on the Gram matrix; its options, and where the gradients are taken."""
  signature = inspect.signature(factory)
  point = inspect.Parameter('at', inspect.Parameter.KEYWORD_ONLY, default=at, annotation=str)

  @functools.wraps(factory)
  def make(*args, at: str = at, **options) -> Objective:
    return balanced(factory(*args, **options), at=at)

  make.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
    parameters=[*signature.parameters.values(), point], return_annotation=Objective
  )
  return make
