"""Metrics of a class for every pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.metrics.draws import Draws, by_name, mean_of_defined, ratio, whole
from mtl_jax.metrics.metric import Metric

METRICS = (
  Metric('miou', 'mean intersection over union', 'mIoU', percent=True, in_delta_m=True),
  Metric('pixel_accuracy', 'pixel accuracy', 'pixel acc.', percent=True, in_delta_m=True),
  Metric('iou', 'intersection over union', 'IoU', percent=True, shown=False),  # Of one class.
)


def dense(
  predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, names: Sequence[str], draws: Draws | None = None
) -> dict[str, Any]:
  """Overlaps over all labelled pixels of the images at once, as for PASCAL VOC (Everingham et al. 2010).

  `miou` is over the classes that are true or predicted somewhere. Predictions and labels are class numbers `[n, h, w]`;
  for the rest see `mtl_jax.metrics`.
  """
  predictions, labels, mask = np.asarray(predictions), np.asarray(labels), np.asarray(mask, bool)
  if not predictions.shape == labels.shape == mask.shape or labels.ndim != 3:
    raise ValueError(f'shapes must be the same (n, h, w), not {predictions.shape}, {labels.shape} and {mask.shape}')
  draws = draws or whole(len(labels))
  true, said, hits = (np.zeros((len(labels), len(names)), np.int64) for _ in range(3))
  for i, present in enumerate(mask):  # An image at a time: all at once would take 8 bytes a pixel and more.
    own, found = labels[i][present].astype(np.int64), predictions[i][present].astype(np.int64)
    if own.size and max(own.max(), found.max()) >= len(names):
      raise ValueError(f'classes must be numbers from 0 to {len(names) - 1}')
    true[i], said[i] = (np.bincount(values, minlength=len(names)) for values in (own, found))
    hits[i] = np.bincount(own[own == found], minlength=len(names))
  true_sums, said_sums, hit_sums = (draws.sums(counts) for counts in (true, said, hits))
  iou = ratio(hit_sums, true_sums + said_sums - hit_sums)
  return draws.result(
    {
      'miou': mean_of_defined(iou),
      'pixel_accuracy': ratio(hit_sums.sum(0), true_sums.sum(0)),
      'per_output': by_name(names, {'iou': iou, 'recall': ratio(hit_sums, true_sums)}, num_labels=true.sum(0)),
    }
  )
