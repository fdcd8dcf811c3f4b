"""Example weights that metrics are computed with: ones for an estimate, or bootstrap resamples of clusters.

A draw is a weight for each cluster of images, not a list of rows. A metric that is a ratio of sums needs only the sums
of each cluster, and one matrix product gives them for all draws. Every metric is an array with a value a draw, `[B]`,
NaN where there is nothing to compute it from; `Draws.result` turns those of an estimate into numbers for JSON, or None.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mtl_jax.errors import DivergedError

NUM_RESAMPLES = 1000


class Draws(NamedTuple):
  """Resamples of a split's clusters, shared by all arms, seeds and tasks, so that differences are paired.

  Attributes:
    clusters: `[n]`, the cluster of each example.
    weights: `[C, B]`, how often each draw holds each cluster; None: the one draw of each example once, an estimate.
  """

  clusters: np.ndarray
  weights: np.ndarray | None

  def num_clusters(self, mask: np.ndarray) -> int:
    """The number of clusters that hold a label under `mask`, `[n, ...]`."""
    return len(np.unique(self.clusters[np.asarray(mask, bool).reshape(len(mask), -1).any(-1)]))

  def of(self, rows: np.ndarray) -> 'Draws':
    """The same draws of some of the examples, by a mask `[n]`."""
    return Draws(self.clusters[rows], self.weights)

  def sums(self, values: Shaped[np.ndarray, 'n k']) -> Float[np.ndarray, 'k B']:
    """Sums over each draw."""
    if self.weights is None:
      return values.sum(0, dtype=np.float64)[:, None]
    by_cluster = np.zeros((len(self.weights), values.shape[1]))
    np.add.at(by_cluster, self.clusters, values)
    return by_cluster.T @ self.weights

  def mean(self, values: Shaped[np.ndarray, '*n'], where: Bool[np.ndarray, '*n']) -> Float[np.ndarray, ' B']:
    """Mean over each draw of the values under a True; the first axis is of examples."""
    if self.weights is None:
      chosen = values[where]
      return np.array([np.mean(chosen) if len(chosen) else np.nan])
    flat = len(values), -1
    totals = self.sums(np.where(where, values, 0.0).reshape(flat))
    return ratio(totals.sum(0), self.sums(where.reshape(flat)).sum(0))

  def result(self, metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics `[B]` as they are; of an estimate as numbers for JSON, None where there is none."""
    return _for_json(metrics) if self.weights is None else metrics


def whole(num: int) -> Draws:
  """One draw of each of `num` examples once: an estimate."""
  return Draws(np.arange(num), None)


def clusters(identities: Int[np.ndarray, ' n']) -> Int[np.ndarray, ' n']:
  """The number of the person on each image, from 0; an image of whom is unknown, -1, is a cluster of its own."""
  identities = np.asarray(identities, np.int64)
  own = identities.max(initial=0) + 1 + np.arange(len(identities))
  return np.unique(np.where(identities < 0, own, identities), return_inverse=True)[1].reshape(-1)


def draw(identities: Int[np.ndarray, ' n'], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Draws:
  """Draws people with replacement, as many as there are; a person's images come or stay away together.

  Args:
    identities: who is on each image; -1 where that is unknown: the image is then a cluster of its own.
    num_resamples: how many draws.
    seed: of the draws.
  """
  own = clusters(identities)
  num_clusters = int(own.max(initial=-1)) + 1
  if not num_clusters:
    raise ValueError('there are no test images to draw from')
  counts = np.random.default_rng(seed).multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), num_resamples)
  return Draws(own, np.ascontiguousarray(counts.T, dtype=np.float64))


def ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float = np.nan) -> np.ndarray:
  """The quotient, `empty` where nothing was counted."""
  result = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), empty)
  return np.divide(numerator, denominator, out=result, where=denominator > 0)


def mean_of_defined(values: Float[np.ndarray, 'k B']) -> Float[np.ndarray, ' B']:
  """Mean over the first axis of what is not NaN; NaN where all is."""
  defined = ~np.isnan(values)
  if values.shape[1] == 1:  # An estimate is summed pairwise, which is more exact.
    return np.array([np.mean(values[defined]) if defined.any() else np.nan])
  return ratio(np.where(defined, values, 0.0).sum(0), defined.sum(0))


def by_name(
  names: Any, values: dict[str, Float[np.ndarray, 'k B']], **numbers: Int[np.ndarray, ' k']
) -> dict[str, dict[str, Any]]:
  """Values of each metric as `[B]` values of each metric of each output, with whole numbers beside."""
  return {
    name: {**{metric: value[i] for metric, value in values.items()}, **{n: int(v[i]) for n, v in numbers.items()}}
    for i, name in enumerate(names)
  }


def _for_json(metrics: Any) -> Any:
  if isinstance(metrics, dict):
    return {name: _for_json(value) for name, value in metrics.items()}
  if isinstance(metrics, np.ndarray):
    return None if np.isnan(metrics[0]) else float(metrics[0])
  return metrics


def checked(
  predictions: Any, labels: Any, mask: Any, names: Any
) -> tuple[Float[np.ndarray, 'n k'], Float[np.ndarray, 'n k'], Bool[np.ndarray, 'n k']]:
  """Predictions and labels as float64 with 0 where the mask is False, and the mask; shapes and values checked.

  Raises:
    ValueError: for shapes other than `(n, len(names))`, or a label under a True that is not finite.
    DivergedError: for a prediction that is not finite where a label exists.
  """
  predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
  mask = np.asarray(mask, bool)
  shapes = {'predictions': predictions.shape, 'labels': labels.shape, 'mask': mask.shape}
  for name, shape in shapes.items():
    if len(shape) != 2 or shape != labels.shape or shape[1] != len(names):
      found = ', '.join(f'{key} {value}' for key, value in shapes.items())
      raise ValueError(f'{name}: all shapes must be (n, {len(names)}), but they are {found}')
  if not np.isfinite(labels[mask]).all():
    raise ValueError('a label that the mask says exists is not finite')
  require_finite(predictions, mask, names)
  return np.where(mask, predictions, 0.0), np.where(mask, labels, 0.0), mask


def require_finite(predictions: Float[np.ndarray, 'n k'], mask: Bool[np.ndarray, 'n k'], names: Any) -> None:
  """Raises DivergedError for a prediction that is not finite under a True."""
  broken = (mask & ~np.isfinite(predictions)).sum(0)
  if broken.any():
    i = int(broken.argmax())
    raise DivergedError(
      f'the prediction of {names[i]} is not finite for {broken[i]} of {mask[:, i].sum()} labelled examples; '
      'evaluate an earlier step, or train again with a lower learning rate'
    )
