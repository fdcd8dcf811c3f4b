"""Metrics of yes-or-no outputs, with scikit-learn's semantics (`zero_division=0`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mtl_jax.metrics.calibration import expected_calibration_error, reliability
from mtl_jax.metrics.draws import Draws, by_name, checked, mean_of_defined, ratio, whole
from mtl_jax.metrics.metric import Metric

THRESHOLD = 0.5  # A probability of this or more says yes, where no other threshold was tuned.
TUNED_BY = ('balanced_accuracy', 'f1')  # What thresholds are tuned for.
METRICS = (
  Metric('macro_accuracy', 'accuracy', 'accuracy', percent=True, in_delta_m=True),
  Metric('macro_balanced_accuracy', 'balanced accuracy', 'bal. acc.', percent=True, in_delta_m=True),
  Metric('macro_f1', 'F1', 'F1', percent=True, in_delta_m=True),
  Metric('macro_ap', 'average precision', 'AP', percent=True, in_delta_m=True),
  Metric('macro_ece', 'expected calibration error', 'ECE', percent=True, higher_is_better=False),
  Metric('macro_precision', 'precision', 'precision', percent=True, shown=False),
  Metric('macro_recall', 'recall', 'recall', percent=True, shown=False),
  Metric('micro_f1', 'micro F1', 'micro F1', percent=True, shown=False),
)


def binary(
  predictions: np.ndarray,
  labels: np.ndarray,
  *,
  mask: np.ndarray,
  names: Sequence[str],
  thresholds: Sequence[float] | float = THRESHOLD,
  draws: Draws | None = None,
) -> dict[str, Any]:
  """Metrics of yes-or-no labels, 1 or 0; predictions are probabilities.

  Macro metrics are means over the outputs where the metric is defined: an output without labels counts nowhere, one
  without positive labels has no average precision. `reliability` holds the bins of `calibration.reliability` of all
  outputs together. A prediction is positive from its output's threshold on, or that of all; for the other arguments see
  `mtl_jax.metrics`.
  """
  predictions, labels, mask = checked(predictions, labels, mask, names)
  draws = draws or whole(len(predictions))
  if not np.isin(labels[mask], (0, 1)).all():
    raise ValueError('binary labels must be 0 or 1')
  predicted, true = mask & (predictions >= thresholds), mask & (labels == 1)
  total, said, positive, hits = (draws.sums(x) for x in (mask, predicted, true, predicted & true))
  negative, right = total - positive, total - said - positive + 2 * hits
  columns = [(p[m], y[m], draws.of(m)) for p, y, m in zip(predictions.T, true.T, mask.T, strict=True)]
  averaged = {
    'accuracy': ratio(right, total),
    'balanced_accuracy': _mean_of_two(ratio(right - hits, negative), ratio(hits, positive)),
    'precision': ratio(hits, said, empty=0.0),
    'recall': ratio(hits, positive, empty=0.0),
    'f1': ratio(2 * hits, said + positive, empty=0.0),
    'ap': np.stack([average_precision(p, y, draws=own) for p, y, own in columns]),
    'ece': np.stack([expected_calibration_error(p, y, draws=own) for p, y, own in columns]),
  }
  averaged = {metric: np.where(total > 0, value, np.nan) for metric, value in averaged.items()}
  micro = ratio(2 * hits.sum(0), said.sum(0) + positive.sum(0), empty=0.0)
  return draws.result(
    {
      **{f'macro_{metric}': mean_of_defined(value) for metric, value in averaged.items()},
      'micro_f1': np.where(total.sum(0) > 0, micro, np.nan),
      'reliability': reliability(predictions[mask], true[mask]),
      'per_output': by_name(names, {**averaged, 'positive_rate': ratio(positive, total)}, num_labels=mask.sum(0)),
    }
  )


def _mean_of_two(one: Float[np.ndarray, 'k B'], other: Float[np.ndarray, 'k B']) -> Float[np.ndarray, 'k B']:
  """Their mean, or the one that is not NaN."""
  return np.where(np.isnan(one), other, np.where(np.isnan(other), one, (one + other) / 2))


def best_threshold(scores: Float[np.ndarray, ' m'], true: Bool[np.ndarray, ' m'], *, by: str) -> float | None:
  """The threshold that is best by a metric of `TUNED_BY`, of equally good ones the nearest to 0.5.

  It lies halfway between two scores, which are from 0 to 1, or is 0. None where all labels are the same, or there are
  none.
  """
  if true.all() or not true.any():
    return None
  order = np.argsort(-scores)
  scores = scores[order].astype(np.float64)
  last = np.flatnonzero(np.diff(scores, append=-1) != 0)
  said, hits, positive = last + 1, np.cumsum(true[order])[last], true.sum()
  negative = len(true) - positive
  balanced = (hits / positive + 1 - (said - hits) / negative) / 2
  values = 2 * hits / (said + positive) if by == 'f1' else balanced
  below = np.append(scores[last[1:]], -scores[-1])
  halfway = (scores[last] + below) / 2
  thresholds = np.where(halfway > below, halfway, scores[last])  # Of neighbouring numbers there is nothing between.
  best = np.flatnonzero(values >= values.max() - 1e-12)
  return float(thresholds[best[np.abs(thresholds[best] - THRESHOLD).argmin()]])


def average_precision(
  scores: Float[np.ndarray, ' m'], true: Bool[np.ndarray, ' m'], *, draws: Draws
) -> Float[np.ndarray, ' B']:
  """Precision at each distinct score, weighted by the recall it adds; NaN for a draw without a positive.

  Examples with equal scores enter together. All draws go down the ranking at once: a few rows of `B` numbers that stay
  in the cache, several times faster than cumulative sums of the whole `[m, B]`; an estimate is a cumulative sum.
  """
  order = np.argsort(-scores, kind='stable')
  scores, true = scores[order], true[order]
  last = np.diff(scores, append=-np.inf) != 0
  if draws.weights is None:
    hits = np.cumsum(true)[last]
    recall_added = np.diff(hits, prepend=0) / max(true.sum(), 1)
    return np.array([np.sum(recall_added * hits / (np.flatnonzero(last) + 1)) if true.any() else np.nan])
  ranked, hits, hits_added, total = np.zeros((4, draws.weights.shape[1]))
  ranked += np.finfo(np.float64).tiny  # Precision is 0 / tiny, not 0 / 0, until a draw's first example.
  positive_in_group = False
  for row, positive, ends in zip(draws.clusters[order].tolist(), true.tolist(), last.tolist(), strict=True):
    weights = draws.weights[row]
    ranked += weights
    if positive:
      hits_added += weights
      positive_in_group = True
    if ends and positive_in_group:
      hits += hits_added
      hits_added *= hits
      hits_added /= ranked
      total += hits_added
      hits_added[:] = 0.0
      positive_in_group = False
  return ratio(total, hits)
