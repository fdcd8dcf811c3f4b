"""Backward passes for many losses at once: through the heads together, through the shared part in chunks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mtl_jax.models.backbone import Representation
from mtl_jax.objectives import grain, task_gradients
from mtl_jax.training.forward import Forward, Params, Seen

MEMORY_SHARE = 0.25  # Of a device's memory that backward passes side by side may take, and K kept gradients likewise.


class HeadPass(NamedTuple):
  """The losses, differentiated as far as the representation.

  Attributes:
    losses: of each part of the batch.
    seen: the other results of the heads' forward pass.
    points: the gradient of each loss at the representation, leaves `[p * k, b, ...]`.
    gradients: of the heads' own parameters.
  """

  losses: Float[Array, 'p k']
  seen: Seen
  points: Any
  gradients: Params


def differentiate_heads(
  forward: Forward, heads: Params, representation: Any, *, scale: Callable[[Array], Array] | None = None
) -> HeadPass:
  """Each loss's gradient at the representation, and each head's plain gradient of its losses' sum, times `scale`.

  Every head reads a copy of its own, so one backward pass serves a loss of each head: 40 heads with one loss each take
  one pass, one head with 40 losses takes 40.
  """
  one_for_all = isinstance(representation, Representation)
  copies = {task.name: representation if one_for_all else representation[task.name] for task in forward.tasks}
  losses, pull, seen = jax.vjp(forward.head_losses, heads, copies, has_aux=True)
  present = forward.present_in_parts
  factors = jnp.ones(losses.shape[1]) if scale is None else scale(grain.over_parts(losses, present))
  (gradients, _) = pull(factors * present / jnp.maximum(present.sum(0), 1))
  one_hots, slices = rounds(forward, parts=len(losses))
  by_head = jax.vmap(lambda cotangent: pull(cotangent)[1])(jnp.asarray(one_hots))
  points = {}
  for name, own in slices.items():
    size = (len(losses), own.stop - own.start)
    points[name] = jax.tree.map(
      lambda leaf, size=size: leaf[: size[0] * size[1]].reshape(*size, *leaf.shape[1:]), by_head[name]
    )
  if one_for_all:
    points = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *points.values())
  else:
    points = {name: jax.tree.map(lambda leaf, own=slices[name]: _among_zeros(leaf, own, losses.shape), point)
              for name, point in points.items()}  # fmt: skip
  return HeadPass(losses, seen, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), points), gradients)


def _among_zeros(leaf: Array, own: slice, shape: tuple[int, ...]) -> Array:
  """Gradients `[p, n, ...]` of one head's losses among zeros for those of the others, `[p, k, ...]`."""
  return jnp.zeros((*shape, *leaf.shape[2:]), leaf.dtype).at[:, own].set(leaf)


def rounds(forward: Forward, *, parts: int) -> tuple[np.ndarray, dict[str, slice]]:
  """Cotangents `[rounds, parts, k]` that hold at most one loss of each head, and which of the k belong to each head.

  Round `part * n + i` holds loss i of the n of every head, in that part of the batch.
  """
  owners = [entry.task for entry in forward.entries]
  slices = {task.name: slice(owners.index(task.name), owners.index(task.name) + owners.count(task.name))
            for task in forward.tasks}  # fmt: skip
  one_hots = np.zeros((parts * max(map(owners.count, slices)), parts, len(owners)), np.float32)
  for own in slices.values():
    num = own.stop - own.start
    for part in range(parts):
      for i in range(num):
        one_hots[part * num + i, part, own.start + i] = 1
  return one_hots, slices


def chunk_size(pull: Any, num: int, *, asked: int, memory: int) -> int:
  """How many backward passes to run side by side: as asked, or what a share of the memory holds, about equal chunks.

  One pass needs about as much as the forward pass left for it. On several devices it is one at a time: side by side, a
  convolution's batch becomes `num * b` rows that no longer lie in order on the devices, and XLA gathers them all. On a
  CPU likewise: it is busy with one, and side by side takes two to three times as long.
  """
  if asked:
    return min(asked, num)
  if jax.device_count() > 1 or jax.default_backend() == 'cpu':
    return 1
  left = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))
  largest = max(1, min(num, int(MEMORY_SHARE * memory / max(left, 1))))
  return -(-num // -(-num // largest))


def at_parameters(pull: Callable[[Any], tuple[Any]], points: Any, *, chunk: int) -> Any:
  """Each loss's gradient with respect to the shared parameters, leaves `[n, ...]`, from those at the representation.

  Written out chunk by chunk on CPU, where convolutions in a loop are 20 times slower; a loop elsewhere.
  """
  num = count(points)

  def one(point):
    return pull(point)[0]

  if chunk >= num:
    return jax.vmap(one)(points)
  if jax.default_backend() != 'cpu':
    return jax.lax.map(one, points, batch_size=chunk) if chunk > 1 else jax.lax.map(one, points)
  pieces = [
    jax.tree.map(lambda leaf, first=first: leaf[first : first + chunk], points) for first in range(0, num, chunk)
  ]
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[jax.vmap(one)(piece) for piece in pieces])


def count(points: Any) -> int:
  """How many losses' gradients a tree holds."""
  return len(jax.tree.leaves(points)[0])


def can_keep(shared: Params, num: int, *, memory: int) -> bool:
  """Whether `num` gradients of the shared parameters, in float32, fit into their share of a device's memory."""
  needed = 4 * num * sum(leaf.size for leaf in jax.tree.leaves(shared))
  return not memory or needed <= MEMORY_SHARE * memory


def gram_at_parameters(
  pull: Callable[[Any], tuple[Any]], points: Any, *, chunk: int, keep: bool
) -> Float[Array, 'n n']:
  """The Gram matrix of the gradients at the shared parameters.

  Where they cannot all be kept, all passes run side by side, so that each layer's gradients are gone as soon as
  their products are taken: that holds K activations of a layer instead.
  """
  return task_gradients.gram(at_parameters(pull, points, chunk=chunk if keep else count(points)))
