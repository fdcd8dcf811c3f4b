"""Backward passes for many losses at once: through the heads together, through the shared part in chunks."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.shapes import Array, Float


class HeadPass(NamedTuple):
  """The losses, differentiated as far as the representation.

  Attributes:
    losses: of each part of the batch.
    extra: a scalar that is no loss, or None.
    aux: the other results of the heads' forward pass.
    points: the gradient of each loss at the representation, leaves `[p * k, b, ...]`.
    pull: cotangents of losses and extra to the gradients at each group's copy of the representation, and at the heads.
    own: every group has a representation of its own, not a copy of one.
  """

  losses: Float[Array, 'p k']
  extra: Any
  aux: Any
  points: Any
  pull: Callable[[Any], tuple[Any, Any]]
  own: bool

  def extra_point(self) -> Any:
    """The gradient of `extra` at the representation."""
    (by_group, _) = self.pull((jnp.zeros_like(self.losses), jnp.ones_like(self.extra)))
    return by_group if self.own else jax.tree.map(lambda *leaves: sum(leaves), *by_group.values())


def through_heads(
  losses_of: Callable[[Any, Any], tuple[Any, Any]],
  representation: Any,
  heads: Any,
  *,
  groups: Sequence[Hashable] | None = None,
  chunk: int = 0,
) -> HeadPass:
  """Each loss's gradient at the representation.

  Every group of losses reads a copy of its own, so one backward pass serves a loss of each: 40 heads with one loss each
  take one pass, one head with 40 losses takes 40.

  Args:
    losses_of: `({group: representation}, heads) -> ((losses [p, k], extra), aux)`; extra is a scalar or None.
    representation: one for all groups, or a mapping with one for each.
    heads: parameters.
    groups: of each of the k losses; those of one group lie side by side. None: all are of one, which is called None.
    chunk: passes side by side; 0 for all.
  """
  (losses, extra), pull, aux = jax.vjp(losses_of, copies(representation, groups), heads, has_aux=True)
  own = has_own(representation, groups)
  slices = _slices([None] * losses.shape[1] if groups is None else groups)
  none = jax.tree.map(jnp.zeros_like, extra)
  one_hots = jnp.asarray(rounds(slices, parts=len(losses)))
  by_group = in_chunks(lambda cotangent: pull((cotangent, none))[0], one_hots, chunk=chunk or len(one_hots))
  points = {}
  for name, part in slices.items():
    size = (len(losses), part.stop - part.start)
    points[name] = jax.tree.map(
      lambda leaf, size=size: leaf[: size[0] * size[1]].reshape(*size, *leaf.shape[1:]), by_group[name]
    )
  if own:
    points = {name: jax.tree.map(lambda leaf, part=slices[name]: _among_zeros(leaf, part, losses.shape), point)
              for name, point in points.items()}  # fmt: skip
  else:
    points = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *points.values())
  points = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), points)
  return HeadPass(losses, extra, aux, points, pull, own)


def has_own(representation: Any, groups: Sequence[Hashable] | None) -> bool:
  """True where a representation is a mapping with one for each group."""
  return isinstance(representation, Mapping) and groups is not None and set(representation) == set(groups)


def copies(representation: Any, groups: Sequence[Hashable] | None) -> dict[Any, Any]:
  """The representation that each group reads: its own or a copy of the one for all."""
  own = has_own(representation, groups)
  return {name: representation[name] if own else representation for name in dict.fromkeys(groups or [None])}


def _among_zeros(leaf: Array, own: slice, shape: tuple[int, ...]) -> Array:
  """Gradients `[p, n, ...]` of one group's losses among zeros for those of the others, `[p, k, ...]`."""
  return jnp.zeros((*shape, *leaf.shape[2:]), leaf.dtype).at[:, own].set(leaf)


def _slices(groups: Sequence[Hashable]) -> dict[Hashable, slice]:
  groups = list(groups)
  return {name: slice(groups.index(name), groups.index(name) + groups.count(name)) for name in dict.fromkeys(groups)}


def rounds(slices: Mapping[Hashable, slice], *, parts: int) -> np.ndarray:
  """Cotangents `[rounds, parts, k]` that hold at most one loss of each group.

  Round `part * n + i` holds loss i of the n of every group, in that part of the batch.
  """
  sizes = [own.stop - own.start for own in slices.values()]
  one_hots = np.zeros((parts * max(sizes), parts, sum(sizes)), np.float32)
  for own, num in zip(slices.values(), sizes, strict=True):
    for part in range(parts):
      for i in range(num):
        one_hots[part * num + i, part, own.start + i] = 1
  return one_hots


def in_chunks(pass_one: Callable[[Any], Any], points: Any, *, chunk: int) -> Any:
  """A backward pass from each of `n` points, leaves `[n, ...]`, so many side by side."""
  num = count(points)
  if chunk >= num:
    return jax.vmap(pass_one)(points)
  return jax.lax.map(pass_one, points, batch_size=chunk) if chunk > 1 else jax.lax.map(pass_one, points)


def at_parameters(pull: Callable[[Any], tuple[Any]], points: Any, *, chunk: int) -> Any:
  """Each loss's gradient with respect to the shared parameters, leaves `[n, ...]`, from those at the representation."""
  return in_chunks(lambda point: pull(point)[0], points, chunk=chunk)


def count(points: Any) -> int:
  """Counts the losses whose gradients a tree holds."""
  return len(jax.tree.leaves(points)[0])


def gram_at_parameters(
  pull: Callable[[Any], tuple[Any]], points: Any, *, chunk: int, keep: bool
) -> Float[Array, 'n n']:
  """The Gram matrix of the gradients at the shared parameters.

  Where they cannot all be kept, all passes run side by side, so that each layer's gradients are gone as soon as
  their products are taken: that holds K activations of a layer instead.
  """
  return task_gradients.gram(at_parameters(pull, points, chunk=chunk if keep else count(points)))
