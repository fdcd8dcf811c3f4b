"""Backward passes for many losses at once: through the heads together, through the shared part in chunks."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.objectives import task_gradients
from mtl_jax.objectives.shapes import Array, Bool, Float


class HeadPass(NamedTuple):
  """The losses of a forward pass through the heads, and its backward passes.

  Attributes:
    losses: of each part of the batch.
    extra: a scalar that is no loss, or None.
    aux: the other results of the forward pass.
    pull: cotangents of losses and extra to the gradients at the representation and at the heads.
    points: a function of how many passes run side by side (0, its default, for all) to each loss's gradient at the
      representation, leaves `[p * k, b, ...]`.
  """

  losses: Float[Array, 'p k']
  extra: Any
  aux: Any
  pull: Callable[[Any], tuple[Any, Any]]
  points: Callable[..., Any]


def through_heads(
  losses_of: Callable[[Any, Any], tuple[Any, Any]],
  representation: Any,
  heads: Any,
  *,
  groups: Sequence[Hashable] | None = None,
) -> HeadPass:
  """The losses, differentiable as far as the representation.

  Every group of losses reads a copy of its own, so one backward pass serves a loss of each: 40 heads with one loss each
  take one pass, one head with 40 losses takes 40.

  Args:
    losses_of: `({group: representation}, heads) -> ((losses [p, k], extra), aux)`; extra is a scalar or None.
    representation: one for all groups, or a mapping with one for each.
    heads: parameters.
    groups: of each of the k losses; those of one group lie side by side. None: all are of one, which is called None.
  """
  given, join = jax.vjp(lambda whole: copies(whole, groups), representation)
  (losses, extra), back, aux = jax.vjp(losses_of, given, heads, has_aux=True)
  parts, num = losses.shape
  names = [None] * num if groups is None else list(groups)
  slices = {name: slice(names.index(name), names.index(name) + names.count(name)) for name in dict.fromkeys(names)}

  def pull(cotangents: Any) -> tuple[Any, Any]:
    by_group, own = back(cotangents)
    return join(by_group)[0], own

  def points(chunk: int = 0) -> Any:
    one_hots, none = jnp.asarray(rounds(slices, parts=parts), losses.dtype), jax.tree.map(jnp.zeros_like, extra)
    by_group = in_chunks(lambda one: back((one, none))[0], one_hots, chunk=chunk or len(one_hots))

    def of_losses(leaf: Array, own: slice) -> Array:
      return leaf.reshape(parts, -1, *leaf.shape[1:])[:, : own.stop - own.start]

    found = {name: jax.tree.map(partial(of_losses, own=own), by_group[name]) for name, own in slices.items()}
    if has_own(representation, groups):  # A loss has no gradient at the others' representations.
      found = {
        name: jax.tree.map(
          lambda leaf, name=name: jnp.zeros((parts, num, *leaf.shape[2:]), leaf.dtype).at[:, slices[name]].set(leaf),
          point,
        )
        for name, point in found.items()
      }
    else:
      found = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *found.values())
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

  return HeadPass(losses, extra, aux, pull, points)


def has_own(representation: Any, groups: Sequence[Hashable] | None) -> bool:
  """True where a representation is a mapping with one for each group."""
  return isinstance(representation, Mapping) and groups is not None and set(representation) == set(groups)


def copies(representation: Any, groups: Sequence[Hashable] | None) -> dict[Any, Any]:
  """The representation that each group reads: its own or a copy of the one for all."""
  own = has_own(representation, groups)
  return {name: representation[name] if own else representation for name in dict.fromkeys(groups or [None])}


def rounds(slices: Mapping[Hashable, slice], *, parts: int) -> np.ndarray:
  """Cotangents `[rounds, parts, k]` that hold at most one loss of each group.

  Round `part * n + i` holds loss i of the n of every group, in that part of the batch.
  """
  places = np.concatenate([np.arange(own.stop - own.start) for own in slices.values()])
  of_loss = places == np.arange(places.max() + 1)[:, None]  # [n, k]
  return np.einsum('pq,nk->pnqk', np.eye(parts), of_loss).reshape(-1, parts, len(places)).astype(np.float32)


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
  pull: Callable[[Any], tuple[Any]], points: Any, *, chunk: int, keep: bool, present: Bool[Array, ' n'] | None = None
) -> task_gradients.Gram:
  """The Gram matrix of the gradients at the shared parameters.

  Where they cannot all be kept, all passes run side by side, so that each layer's gradients are gone as soon as
  their products are taken: that holds K activations of a layer instead.
  """
  gradients = at_parameters(pull, points, chunk=chunk if keep else count(points))
  return task_gradients.gram(gradients, present=present, keep=keep)
