"""Metrics of a whole split, in NumPy and float64; the mask says which labels exist, and nothing else counts.

Every function returns numbers ready for JSON: a metric with nothing to be computed from is None, never NaN.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mtl_jax.errors import DivergedError

THRESHOLD = 0.5  # A probability of 0.5 or more says yes.
LOWER_IS_BETTER = ('loss', 'mae', 'mse', 'rmse', 'nme', 'failure_rate_8', 'failure_rate_10')  # More is, of all others.


def binary(predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
  """Metrics of yes-or-no outputs, with scikit-learn's semantics (`zero_division=0`).

  A prediction of 0.5 or more is positive. Macro metrics are means over the outputs where the metric is defined:
  an output without labels counts nowhere, one without positive labels has no average precision.

  Args:
    predictions: probabilities `[n, k]`.
    labels: 0 or 1, `[n, k]`.
    mask: whether the label exists, `[n, k]`.
    names: of the `k` outputs.

  Raises:
    ValueError: for shapes that differ, or a label that is neither 0 nor 1.
    DivergedError: for a prediction that is not finite where a label exists.
  """
  predictions, labels, mask = _checked(predictions, labels, mask, names)
  if not np.isin(labels[mask], (0, 1)).all():
    raise ValueError('binary labels must be 0 or 1')
  columns = [_binary_output(p[m], y[m] == 1) for p, y, m in zip(predictions.T, labels.T, mask.T, strict=True)]
  averaged = ('accuracy', 'balanced_accuracy', 'precision', 'recall', 'f1', 'ap')
  predicted, true = predictions[mask] >= THRESHOLD, labels[mask] == 1
  return {
    **{f'macro_{metric}': _mean_of_defined(column[metric] for column in columns) for metric in averaged},
    'micro_f1': _f1(predicted, true) if mask.any() else None,
    'per_output': dict(zip(names, columns, strict=True)),
  }


def landmarks(
  predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, points: Sequence[str], source_size: np.ndarray
) -> dict[str, Any]:
  """Errors of points, as fractions of the image and of the distance between the eyes.

  `mae`, `mse` and `rmse` are over coordinates in [0, 1]. `nme` of an image is the mean over its labelled points of
  the distance in pixels of the source image, over the distance between the true eyes there; `nme` of the split is
  the mean over the `num_images` images whose eyes are both labelled and apart. A failure is an image whose nme is
  above 0.08 or 0.10.

  Args:
    predictions: x and y of each point in turn, `[n, 2 p]`, fractions of width and height.
    labels: the same, true.
    mask: whether the coordinate is labelled, `[n, 2 p]`; a point is labelled when both of its coordinates are.
    points: names of the `p` points; the eyes' names begin with lefteye and righteye.
    source_size: width and height of the source image in pixels, `[n, 2]`.

  Raises:
    ValueError: for shapes that do not fit, or labels that are not finite.
    DivergedError: for a prediction that is not finite where a label exists.
  """
  errors, present, distances, counted = landmark_errors(
    predictions, labels, mask=mask, points=points, source_size=source_size
  )
  images = image_nme(distances, counted)
  return {
    **_error_means(errors[present]),
    'nme': _mean(images),
    'failure_rate_8': _mean(images > 0.08),
    'failure_rate_10': _mean(images > 0.10),
    'num_images': len(images),
    'per_output': {
      point: {
        'mae': _mean(np.abs(errors[:, i][present[:, i]])),
        'nme': _mean(distances[:, i][counted[:, i]]),
        'num_labels': int(present[:, i].all(-1).sum()),
      }
      for i, point in enumerate(points)
    },
  }


def landmark_errors(
  predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, points: Sequence[str], source_size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """What `landmarks` averages, from the same arguments.

  Returns:
    Errors of coordinates `[n, p, 2]` and which are labelled; distances of points `[n, p]` over the distance between
    the eyes, and which count: both coordinates labelled, in an image whose eyes are both labelled and apart.
  """
  coordinates = [f'{point}_{axis}' for point in points for axis in 'xy']
  predictions, labels, mask = _checked(predictions, labels, mask, coordinates)
  if np.shape(source_size) != (len(labels), 2):
    raise ValueError(f'source_size has shape {np.shape(source_size)}, not {(len(labels), 2)}')
  by_point = (len(labels), len(points), 2)
  errors = (predictions - labels).reshape(by_point)
  coordinate_mask = mask.reshape(by_point)
  labelled = mask[:, ::2] & mask[:, 1::2]
  # A padded row may have any source size; one pixel keeps its unused distances finite.
  pixels = np.where(labelled.any(-1, keepdims=True), np.asarray(source_size, np.float64), 1.0)[:, None]
  between_eyes = _between_eyes(labels.reshape(by_point) * pixels, labelled, points)
  apart = between_eyes > 0
  distances = np.linalg.norm(errors * pixels, axis=-1) / np.where(apart, between_eyes, 1.0)[:, None]
  return errors, coordinate_mask, distances, apart[:, None] & labelled


def image_nme(distances: np.ndarray, counted: np.ndarray) -> np.ndarray:
  """The nme of each image that has one, from what `landmark_errors` gave."""
  images = counted.any(-1)
  return distances[images].sum(-1, where=counted[images]) / counted[images].sum(-1)


def regression(
  predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
  """Mean absolute and root mean square error over all labels and per output, in the labels' unit.

  Args:
    predictions: `[n, k]`.
    labels: `[n, k]`.
    mask: whether the label exists, `[n, k]`.
    names: of the `k` outputs.

  Raises:
    ValueError: for shapes that differ, or labels that are not finite.
    DivergedError: for a prediction that is not finite where a label exists.
  """
  predictions, labels, mask = _checked(predictions, labels, mask, names)
  errors = predictions - labels
  per_output = {}
  for name, error, present in zip(names, errors.T, mask.T, strict=True):
    means = _error_means(error[present])
    per_output[name] = {'mae': means['mae'], 'rmse': means['rmse'], 'num_labels': int(present.sum())}
  means = _error_means(errors[mask])
  return {'mae': means['mae'], 'rmse': means['rmse'], 'per_output': per_output}


def categorical(
  predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
  """Metrics of one choice among classes, with scikit-learn's semantics (`zero_division=0`).

  The class of the greatest probability is predicted, the first of equals. `macro_f1` is over the classes that are
  true or predicted somewhere, `balanced_accuracy` over those that are true somewhere.

  Args:
    predictions: probabilities `[n, c]`.
    labels: class numbers `[n, 1]`.
    mask: whether the label exists, `[n, 1]`.
    names: of the `c` classes.

  Raises:
    ValueError: for shapes that do not fit, or a label that is no class number.
    DivergedError: for a prediction that is not finite where a label exists.
  """
  predictions = np.asarray(predictions, np.float64)
  if predictions.ndim != 2 or predictions.shape[1] != len(names):
    raise ValueError(f'predictions have shape {predictions.shape}, not (n, {len(names)})')
  expected = (len(predictions), 1)
  if np.shape(labels) != expected or np.shape(mask) != expected:
    raise ValueError(f'labels have shape {np.shape(labels)} and mask {np.shape(mask)}, not {expected}')
  present = np.asarray(mask, bool)[:, 0]
  values, scores = np.asarray(labels, np.float64)[present, 0], predictions[present]
  if not np.isin(values, np.arange(len(names))).all():
    raise ValueError(f'categorical labels must be class numbers from 0 to {len(names) - 1}')
  _require_finite(predictions, np.repeat(present[:, None], len(names), axis=1), names)
  confusion = np.zeros((len(names), len(names)), np.int64)
  np.add.at(confusion, (values.astype(np.int64), scores.argmax(-1)), 1)
  return _categorical_metrics(confusion, names)


def _categorical_metrics(confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
  """Metrics from counts `[true, predicted]`."""
  hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
  per_output = {
    name: {
      # A class that is neither true nor predicted anywhere has no score.
      'precision': _ratio(h, p) if t + p else None,
      'recall': _ratio(h, t) if t + p else None,
      'f1': _ratio(2 * h, t + p) if t + p else None,
      'num_labels': int(t),
    }
    for name, h, t, p in zip(names, hits, true, predicted, strict=True)
  }
  return {
    'accuracy': _ratio(hits.sum(), true.sum()) if true.sum() else None,
    'balanced_accuracy': _mean_of_defined(hits[true > 0] / true[true > 0]),
    'macro_f1': _mean_of_defined(output['f1'] for output in per_output.values()),
    'confusion': confusion.tolist(),
    'per_output': per_output,
  }


def _binary_output(scores: np.ndarray, true: np.ndarray) -> dict[str, Any]:
  """Metrics of one output from the probabilities `[m]` and truths `[m]` of its labelled examples."""
  if not len(true):
    metrics = ('accuracy', 'balanced_accuracy', 'precision', 'recall', 'f1', 'ap', 'positive_rate')
    return {**dict.fromkeys(metrics), 'num_labels': 0}
  predicted = scores >= THRESHOLD
  hits = np.count_nonzero(predicted & true)
  recall_of_present_classes = [np.mean(predicted[true == value] == value) for value in (False, True) if value in true]
  return {
    'accuracy': _mean(predicted == true),
    'balanced_accuracy': _mean_of_defined(recall_of_present_classes),
    'precision': _ratio(hits, np.count_nonzero(predicted)),
    'recall': _ratio(hits, np.count_nonzero(true)),
    'f1': _f1(predicted, true),
    'ap': _average_precision(scores, true),
    'positive_rate': _mean(true),
    'num_labels': len(true),
  }


def _average_precision(scores: np.ndarray, true: np.ndarray) -> float | None:
  """Precision at each distinct score, weighted by the recall it adds; examples with equal scores enter together."""
  if not true.any():
    return None
  order = np.argsort(-scores, kind='stable')
  scores, true = scores[order], true[order]
  last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
  hits = np.cumsum(true)[last_of_ties]
  recall_added = np.diff(hits, prepend=0) / hits[-1]
  return float(np.sum(recall_added * hits / (last_of_ties + 1)))


def _between_eyes(points: np.ndarray, labelled: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Distance `[n]` between the eyes of points `[n, p, 2]`; 0 where an eye is not labelled.

  An eye marked by several points is their centre.
  """
  sides = [[i for i, name in enumerate(names) if name.startswith(eye)] for eye in ('lefteye', 'righteye')]
  if not all(sides):
    return np.zeros(len(points))
  left, right = (points[:, columns].mean(1) for columns in sides)
  return np.where(labelled[:, sides[0] + sides[1]].all(-1), np.linalg.norm(left - right, axis=-1), 0.0)


def _checked(predictions: Any, labels: Any, mask: Any, names: Sequence[str]) -> tuple[np.ndarray, ...]:
  """Predictions and labels as float64 with 0 where the mask is False, and the mask; shapes and values checked."""
  predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
  mask = np.asarray(mask, bool)
  shapes = {'predictions': predictions.shape, 'labels': labels.shape, 'mask': mask.shape}
  for name, shape in shapes.items():
    if len(shape) != 2 or shape != labels.shape or shape[1] != len(names):
      found = ', '.join(f'{key} {value}' for key, value in shapes.items())
      raise ValueError(f'{name}: all shapes must be (n, {len(names)}), but they are {found}')
  if not np.isfinite(labels[mask]).all():
    raise ValueError('a label that the mask says exists is not finite')
  _require_finite(predictions, mask, names)
  return np.where(mask, predictions, 0.0), np.where(mask, labels, 0.0), mask


def _require_finite(predictions: np.ndarray, mask: np.ndarray, names: Sequence[str]) -> None:
  broken = (mask & ~np.isfinite(predictions)).sum(0)
  if broken.any():
    i = int(broken.argmax())
    raise DivergedError(
      f'the prediction of {names[i]} is not finite for {broken[i]} of {mask[:, i].sum()} labelled examples; '
      'evaluate an earlier step, or train again with a lower learning rate'
    )


def _error_means(errors: np.ndarray) -> dict[str, float | None]:
  mse = _mean(np.square(errors))
  return {'mae': _mean(np.abs(errors)), 'mse': mse, 'rmse': None if mse is None else float(np.sqrt(mse))}


def _f1(predicted: np.ndarray, true: np.ndarray) -> float:
  return _ratio(2 * np.count_nonzero(predicted & true), np.count_nonzero(predicted) + np.count_nonzero(true))


def _ratio(numerator: Any, denominator: Any) -> float:
  """0 when nothing was counted, as scikit-learn's zero_division=0."""
  return float(numerator / denominator) if denominator else 0.0


def _mean(values: np.ndarray) -> float | None:
  return float(np.mean(values)) if len(values) else None


def _mean_of_defined(values: Iterable[float | None]) -> float | None:
  defined = [float(value) for value in values if value is not None]
  return float(np.mean(defined)) if defined else None
