"""Pytrees of K task gradients, leaves `[K, ...]`: Gram matrix, weighted sums, and the objectives made of these."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.objectives.declared import Point, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float

POINTS = ('parameters', 'representation')
LEAST, MOST = 1e-18, 1e18  # Between these the largest of a Gram matrix's numbers leaves float32 room on both sides.


class Gram(NamedTuple):
  """Products of gradients divided by `unit`, a power of two: 1 where float32 can hold the products as they are."""

  matrix: Float[Array, 'k k']
  unit: Float[Array, '']

  def plain(self) -> Float[Array, 'k k']:
    """The products themselves, at most float32's largest number."""
    largest = jnp.finfo(jnp.float32).max
    return jnp.clip(self.matrix * self.unit * self.unit, -largest, largest)

  def times(self, weights: Float[Array, ' k']) -> Float[Array, ' k']:
    """The products times weights, finite: as if no `unit` were above 1e15."""
    return self.matrix @ weights * jnp.square(jnp.minimum(self.unit, 1e15))


def gram(gradients: Any, others: Any = None, *, present: Bool[Array, ' k'] | None = None, keep: bool = True) -> Gram:
  """`g_i . g_j` in float32, over all leaves; with `others`, `g_i . h_j`.

  Args:
    gradients: leaves `[K, ...]`.
    others: the h, likewise.
    present: whose products count; those of others are 0. None: all.
    keep: False where the gradients are not to be kept until their size is known: then every leaf is scaled.
  """
  left = jax.tree.leaves(gradients)
  right = left if others is None else jax.tree.leaves(others)
  if not left:
    return Gram(jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32))
  there = jnp.ones(len(left[0]), bool) if present is None else present

  def scaled() -> Gram:
    found = [_leaf_in_units(*pair, there) for pair in zip(left, right, strict=True)]
    unit = jnp.stack([one.unit for one in found]).max()
    return Gram(sum((one.matrix * jnp.square(one.unit / unit) for one in found), jnp.zeros((), jnp.float32)), unit)

  if not keep:
    return scaled()
  matrix = sum(jax.tree.map(_product, left, right), jnp.zeros((), jnp.float32))
  matrix = jnp.where(there[:, None] & there[None, :], matrix, 0)
  largest = jnp.abs(matrix).max()
  return jax.lax.cond((largest > LEAST) & (largest < MOST), lambda: Gram(matrix, jnp.ones((), jnp.float32)), scaled)


def _product(left: Array, right: Array) -> Float[Array, 'k k']:
  left, right = (leaf.reshape(len(leaf), -1).astype(jnp.float32) for leaf in (left, right))
  return jnp.matmul(left, right.T, precision='highest')  # By default accelerators round operands to 8 or 10 bits.


def _leaf_in_units(left: Array, right: Array, present: Bool[Array, ' k']) -> Gram:
  left, right = (jnp.where(column(present, leaf), leaf, 0).astype(jnp.float32) for leaf in (left, right))
  unit = power_of_two(jnp.maximum(jnp.abs(left).max(initial=0), jnp.abs(right).max(initial=0)))
  return Gram(_product(left / unit, right / unit), unit)


def power_of_two(size: Float[Array, '...']) -> Float[Array, '...']:
  """The greatest power of two up to a size, by which division is exact; the least normal number for 0."""
  _, exponent = jnp.frexp(jnp.maximum(size, jnp.finfo(jnp.float32).tiny))
  return jnp.ldexp(jnp.ones_like(size), exponent - 1)


def norms(gradients: Any) -> Float[Array, ' k']:
  """`|g_k|` in float32, over all leaves."""
  leaves = [leaf.reshape(len(leaf), -1).astype(jnp.float32) for leaf in jax.tree.leaves(gradients)]
  unit = power_of_two(functools.reduce(jnp.maximum, (jnp.abs(leaf).max(1, initial=0) for leaf in leaves)))
  return unit * jnp.sqrt(sum(jnp.square(leaf / unit[:, None]).sum(1) for leaf in leaves))


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
  weighting: GramWeighting, products: Gram, state: Weighted, *, losses, present, key
) -> tuple[Float[Array, ' k'], Weighted]:
  """The weights for a Gram matrix, 0 for absent tasks; the state keeps an absent task's last one."""
  matrix, unit = products
  weights, inner = weighting.weights(matrix, state.inner, losses=losses, present=present, key=key, unit=unit)
  return weights, Weighted(jnp.where(present, weights, state.weights), products.plain(), inner)


def balanced(weighting: GramWeighting, *, at: str = 'parameters') -> Objective:
  """The objective of a method on the Gram matrix, of gradients taken at the parameters or at the representation."""

  def start(num_tasks, like=None):
    equal = jnp.full(num_tasks, 1 / num_tasks, jnp.float32)
    return Weighted(equal, jnp.zeros((num_tasks, num_tasks)), weighting.init(num_tasks))

  def update(gradients, state, *, losses, present, key, at=None):
    products = gram(gradients, present=present)
    weights, state = solve(weighting, products, state, losses=losses, present=present, key=key)
    return weighted_sum(weights, gradients), state

  return Objective(start, update, needs=at, weighting=weighting)  # pyright: ignore[reportArgumentType]


def on_gram(factory: Callable[..., GramWeighting], *, at: str = 'parameters') -> Callable[..., Objective]:
  """A maker of objectives from one of methods on the Gram matrix; its options, and where the gradients are taken."""
  signature = inspect.signature(factory)
  point = inspect.Parameter('at', inspect.Parameter.KEYWORD_ONLY, default=at, annotation=Point)

  @functools.wraps(factory)
  def make(*args, at: str = at, **options) -> Objective:
    return balanced(factory(*args, **options), at=at)

  make.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
    parameters=[*signature.parameters.values(), point], return_annotation=Objective
  )
  return declared(make)
