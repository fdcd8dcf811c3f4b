"""Metrics of one choice among classes, with scikit-learn's semantics (`zero_division=0`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mtl_jax.metrics.calibration import expected_calibration_error, reliability
from mtl_jax.metrics.draws import Draws, by_name, mean_of_defined, ratio, require_finite, whole
from mtl_jax.metrics.metric import Metric

METRICS = (
  Metric('accuracy', 'accuracy', 'accuracy', percent=True, in_delta_m=True),
  Metric('balanced_accuracy', 'balanced accuracy', 'bal. acc.', percent=True, in_delta_m=True),
  Metric('macro_f1', 'F1', 'F1', percent=True, in_delta_m=True, shown=False),
  Metric('ece', 'expected calibration error', 'ECE', percent=True, higher_is_better=False),
)


def categorical(
  predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, names: Sequence[str], draws: Draws | None = None
) -> dict[str, Any]:
  """The class of the greatest probability is predicted, the first of equals.

  `macro_f1` is over the classes that are true or predicted somewhere, `balanced_accuracy` over those that are true
  somewhere. `confusion` holds counts `[true, predicted]` of all examples; `ece` and `reliability` are of the predicted
  class's probability and of how often that class is true. Labels are class numbers `[n, 1]`; for the rest see
  `mtl_jax.metrics`.
  """
  predictions, classes, mask = class_numbers(predictions, labels, mask, names)
  draws = draws or whole(len(predictions))
  numbers, chosen = np.arange(len(names)), predictions.argmax(-1)
  true, said = (classes[:, None] == numbers) & mask, (chosen[:, None] == numbers) & mask
  true_sums, said_sums, hits = (draws.sums(x) for x in (true, said, true & said))
  seen = true_sums + said_sums > 0  # A class that is neither true nor predicted anywhere has no score.
  values = {
    'recall': ratio(hits, true_sums, empty=0.0),  # First: what tables of classes compare.
    'precision': ratio(hits, said_sums, empty=0.0),
    'f1': ratio(2 * hits, true_sums + said_sums, empty=0.0),
  }
  values = {metric: np.where(seen, value, np.nan) for metric, value in values.items()}
  confusion = np.zeros((len(names), len(names)), np.int64)
  present = mask[:, 0]
  np.add.at(confusion, (classes[present], chosen[present]), 1)
  sure = predictions.max(-1)[present], (classes == chosen)[present]
  return draws.result(
    {
      'accuracy': ratio(hits.sum(0), true_sums.sum(0)),
      'balanced_accuracy': mean_of_defined(ratio(hits, true_sums)),
      'macro_f1': mean_of_defined(values['f1']),
      'ece': expected_calibration_error(*sure, draws=draws.of(present)),
      'confusion': confusion.tolist(),
      'reliability': reliability(*sure),
      'per_output': by_name(names, values, num_labels=true.sum(0)),
    }
  )


def class_numbers(
  predictions: Any, labels: Any, mask: Any, names: Sequence[str]
) -> tuple[Float[np.ndarray, 'n c'], Int[np.ndarray, ' n'], Bool[np.ndarray, 'n 1']]:
  """Probabilities, class numbers with 0 where the mask is False, and the mask, checked."""
  predictions = np.asarray(predictions, np.float64)
  if predictions.ndim != 2 or predictions.shape[1] != len(names):
    raise ValueError(f'predictions have shape {predictions.shape}, not (n, {len(names)})')
  expected = (len(predictions), 1)
  if np.shape(labels) != expected or np.shape(mask) != expected:
    raise ValueError(f'labels have shape {np.shape(labels)} and mask {np.shape(mask)}, not {expected}')
  mask = np.asarray(mask, bool)
  values = np.where(mask, np.asarray(labels, np.float64), 0.0)[:, 0]
  if not np.isin(values, np.arange(len(names))).all():
    raise ValueError(f'categorical labels must be class numbers from 0 to {len(names) - 1}')
  require_finite(predictions, np.broadcast_to(mask, predictions.shape), names)
  return predictions, values.astype(np.int64), mask
