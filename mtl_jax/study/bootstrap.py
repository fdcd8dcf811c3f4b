"""The test split drawn again and again, person by person, and every metric of evaluation/metrics.py on each draw.

A draw is a weight for each cluster of images, not a list of rows. Metrics that are ratios of sums need only the sums
of each cluster, and one matrix product gives them for all draws; average precision weights its ranking. Results
mirror those of evaluation/metrics.py, with `[B]` values in place of each number and NaN in place of None.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.evaluation.metrics import THRESHOLD, image_nme, landmark_errors
from mtl_jax.tasks import CategoricalTask, LandmarkTask, Task

NUM_RESAMPLES = 1000


class Resampling(NamedTuple):
  """Draws of a split's clusters; all arms, seeds and tasks must share one, or their pairing is lost.

  Attributes:
    clusters: `[n]`, the cluster of each example.
    weights: `[C, B]`, how often each draw holds each cluster.
  """

  clusters: np.ndarray
  weights: np.ndarray

  def num_clusters(self, mask: np.ndarray) -> int:
    """How many clusters hold a label under `mask`, `[n, k]`."""
    return len(np.unique(self.clusters[np.asarray(mask, bool).any(-1)]))

  def sums(self, values: np.ndarray) -> np.ndarray:
    """Sums over each draw, `[k, B]`, of values `[n, k]`."""
    by_cluster = np.zeros((len(self.weights), values.shape[1]))
    np.add.at(by_cluster, self.clusters, values)
    return by_cluster.T @ self.weights


def clusters(identities: np.ndarray) -> np.ndarray:
  """The number of the person on each image `[n]`, from 0; an image of whom is unknown, -1, is a cluster of its own."""
  identities = np.asarray(identities, np.int64)
  own = identities.max(initial=0) + 1 + np.arange(len(identities))
  return np.unique(np.where(identities < 0, own, identities), return_inverse=True)[1].reshape(-1)


def draw(identities: np.ndarray, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Resampling:
  """Draws people with replacement, as many as there are; a person's images come or stay away together.

  Args:
    identities: `[n]`, who is on each image; -1 where that is unknown: the image is then a cluster of its own.
    num_resamples: how many draws.
    seed: of the draws.
  """
  own = clusters(identities)
  num_clusters = int(own.max(initial=-1)) + 1
  if not num_clusters:
    raise ValueError('there are no test images to draw from')
  counts = np.random.default_rng(seed).multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), num_resamples)
  return Resampling(own, np.ascontiguousarray(counts.T, dtype=np.float64))


def resample(
  task: Task,
  predictions: np.ndarray,
  labels: np.ndarray,
  *,
  mask: np.ndarray,
  source_size: np.ndarray,
  resampling: Resampling,
) -> dict[str, Any] | None:
  """`task.metrics` of every draw, `[B]` in place of each number; the arguments are those of `task.metrics`.

  None for a kind of task that is not in `RESAMPLERS`: its intervals are then over seeds only.
  """
  resampler = RESAMPLERS.get(task.kind)
  if resampler is None:
    return None
  mask = np.asarray(mask, bool)
  labels = np.where(mask, np.asarray(labels, np.float64), 0.0)
  predictions = np.asarray(predictions, np.float64)
  return resampler(task, predictions, labels, mask=mask, source_size=source_size, resampling=resampling)


def average_precision(scores: np.ndarray, true: np.ndarray, *, resampling: Resampling) -> np.ndarray:
  """Average precision of every draw, `[B]`, from scores `[m]` and truths `[m]`; NaN for a draw without a positive.

  As in evaluation/metrics.py, examples with equal scores enter together. All draws go down the ranking at once: a few
  rows of `B` numbers that stay in the cache, several times faster than cumulative sums of the whole `[m, B]`.
  """
  order = np.argsort(-scores, kind='stable')
  scores, true, rows = scores[order], true[order], resampling.clusters[order]
  last_of_ties = (np.diff(scores, append=-np.inf) != 0).tolist()
  ranked, hits, hits_added, total = np.zeros((4, resampling.weights.shape[1]))
  ranked += np.finfo(np.float64).tiny  # Precision is 0 / tiny, not 0 / 0, until a draw's first example.
  positive_in_group = False
  for row, positive, last in zip(rows.tolist(), true.tolist(), last_of_ties, strict=True):
    weights = resampling.weights[row]
    ranked += weights
    if positive:
      hits_added += weights
      positive_in_group = True
    if last and positive_in_group:
      hits += hits_added
      hits_added *= hits
      hits_added /= ranked
      total += hits_added
      hits_added[:] = 0.0
      positive_in_group = False
  return _ratio(total, hits)


def _binary(task, predictions, labels, *, mask, source_size, resampling) -> dict[str, Any]:
  del source_size
  predicted, true = mask & (predictions >= THRESHOLD), mask & (labels == 1)
  total, said, positive, hits = (resampling.sums(x) for x in (mask, predicted, true, predicted & true))
  negative, right = total - positive, total - said - positive + 2 * hits
  columns = zip(predictions.T, true.T, mask.T, _where_labelled(resampling, mask), strict=True)
  values = {
    'accuracy': _ratio(right, total),
    'balanced_accuracy': _mean_of_defined(np.stack([_ratio(hits, positive), _ratio(right - hits, negative)])),
    'precision': _ratio(hits, said, empty=0.0),
    'recall': _ratio(hits, positive, empty=0.0),
    'f1': _ratio(2 * hits, said + positive, empty=0.0),
    'ap': np.stack([average_precision(p[m], y[m], resampling=drawn) for p, y, m, drawn in columns]),
  }
  values = {metric: np.where(total > 0, value, np.nan) for metric, value in values.items()}
  anything = total.sum(0) > 0
  micro = _ratio(2 * hits.sum(0), said.sum(0) + positive.sum(0), empty=0.0)
  return {
    **{f'macro_{metric}': _mean_of_defined(value) for metric, value in values.items()},
    'micro_f1': np.where(anything, micro, np.nan),
    'per_output': _by_name(task.labels, values),
  }


def _where_labelled(resampling: Resampling, mask: np.ndarray) -> list[Resampling]:
  """Draws, the same for each column of `mask`, of the examples that have the label."""
  return [Resampling(resampling.clusters[m], resampling.weights) for m in mask.T]


def _landmarks(task: LandmarkTask, predictions, labels, *, mask, source_size, resampling) -> dict[str, Any]:
  errors, present, distances, counted = landmark_errors(
    predictions, labels, mask=mask, points=task.points, source_size=source_size
  )
  flat = (len(errors), -1)
  has_nme = counted.any(-1)
  nme = np.zeros(len(errors))
  nme[has_nme] = image_nme(distances, counted)
  images = resampling.sums(np.stack([has_nme, nme, nme > 0.08, nme > 0.10], axis=1))
  coordinates = resampling.sums(present.reshape(flat))
  absolute = resampling.sums(np.where(present, np.abs(errors), 0.0).reshape(flat))
  squared = resampling.sums(np.where(present, np.square(errors), 0.0).reshape(flat))
  mse = _ratio(squared.sum(0), coordinates.sum(0))
  per_point = {
    'mae': _ratio(absolute[::2] + absolute[1::2], coordinates[::2] + coordinates[1::2]),
    'nme': _ratio(resampling.sums(np.where(counted, distances, 0.0)), resampling.sums(counted)),
  }
  return {
    'mae': _ratio(absolute.sum(0), coordinates.sum(0)),
    'mse': mse,
    'rmse': np.sqrt(mse),
    'nme': _ratio(images[1], images[0]),
    'failure_rate_8': _ratio(images[2], images[0]),
    'failure_rate_10': _ratio(images[3], images[0]),
    'per_output': _by_name(task.points, per_point),
  }


def _regression(task: Task, predictions, labels, *, mask, source_size, resampling) -> dict[str, Any]:
  del source_size
  errors = np.where(mask, predictions - labels, 0.0)
  total, absolute, squared = (resampling.sums(x) for x in (mask, np.abs(errors), np.square(errors)))
  values = {'mae': _ratio(absolute, total), 'rmse': np.sqrt(_ratio(squared, total))}
  return {
    'mae': _ratio(absolute.sum(0), total.sum(0)),
    'rmse': np.sqrt(_ratio(squared.sum(0), total.sum(0))),
    'per_output': _by_name(task.labels, values),
  }


def _categorical(task: CategoricalTask, predictions, labels, *, mask, source_size, resampling) -> dict[str, Any]:
  del source_size
  classes = np.arange(len(task.classes))
  true = (labels == classes) & mask
  said = (predictions.argmax(-1)[:, None] == classes) & mask
  true_sums, said_sums, hits = (resampling.sums(x) for x in (true, said, true & said))
  seen = true_sums + said_sums > 0
  values = {
    'precision': _ratio(hits, said_sums, empty=0.0),
    'recall': _ratio(hits, true_sums, empty=0.0),
    'f1': _ratio(2 * hits, true_sums + said_sums, empty=0.0),
  }
  values = {metric: np.where(seen, value, np.nan) for metric, value in values.items()}
  return {
    'accuracy': _ratio(hits.sum(0), true_sums.sum(0)),
    'balanced_accuracy': _mean_of_defined(_ratio(hits, true_sums)),
    'macro_f1': _mean_of_defined(values['f1']),
    'per_output': _by_name(task.classes, values),
  }


# A kind of task of your own: add its function here.
RESAMPLERS: dict[str, Callable[..., dict[str, Any]]] = {
  'binary': _binary,
  'landmarks': _landmarks,
  'regression': _regression,
  'categorical': _categorical,
}


def _by_name(names: Sequence[str], values: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
  """`[k, B]` values of each metric as `[B]` values of each metric of each output."""
  return {name: {metric: value[i] for metric, value in values.items()} for i, name in enumerate(names)}


def _ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float = np.nan) -> np.ndarray:
  """`empty` where nothing was counted."""
  result = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), empty)
  return np.divide(numerator, denominator, out=result, where=denominator > 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
  """Mean over the first axis of what is not NaN; NaN where all is."""
  defined = ~np.isnan(values)
  return _ratio(np.where(defined, values, 0.0).sum(0), defined.sum(0))
