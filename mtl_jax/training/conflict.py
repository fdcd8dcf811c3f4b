"""Metrics of a step's task gradients: norms, cosines, conflicts, and the weights that the objective gave them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mtl_jax.objectives.loss_terms import Entry

MAX_PAIRWISE = 8  # Up to so many losses every pair's cosine is a metric of its own: 28 of them.


def metrics(
  gram: Float[Array, 'k k'], weights: Float[Array, ' k'] | None, present: Bool[Array, ' k'], *, entries: Sequence[Entry]
) -> dict[str, Float[Array, '']]:
  """Scalars for a log line; pairs count where both gradients are there and not zero.

  `gradient_norm/<loss>` is 0 for an absent task; `conflicting_pairs` is the share of pairs with a negative cosine;
  `least_cosine` is 1 where there is no pair; `cosine/<loss>~<loss>` is 0 for a pair that does not count;
  `weight/<loss>` is the last update's, where the method has weights.
  """
  names = [entry.name for entry in entries]
  norms = jnp.sqrt(jnp.where(present, jnp.maximum(jnp.diagonal(gram), 0), 0))
  live = norms > 0
  unit = jnp.where(live, norms, 1)
  rows, columns = np.triu_indices(len(names), 1)
  counts = (live[:, None] & live[None, :])[rows, columns]
  cosines = jnp.where(counts, (gram / unit[:, None] / unit[None, :])[rows, columns], 0)
  found = {f'gradient_norm/{name}': norms[k] for k, name in enumerate(names)}
  found['conflicting_pairs'] = (cosines < 0).sum() / jnp.maximum(counts.sum(), 1)
  found['least_cosine'] = jnp.where(counts, cosines, 1).min(initial=1.0)
  if len(names) <= MAX_PAIRWISE:
    pairs = zip(rows, columns, strict=True)
    found |= {f'cosine/{names[i]}~{names[j]}': cosines[index] for index, (i, j) in enumerate(pairs)}
  if weights is not None:
    found |= {f'weight/{name}': jnp.where(present, weights, 0)[k] for k, name in enumerate(names)}
  return found
