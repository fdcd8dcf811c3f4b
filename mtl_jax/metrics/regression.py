"""Errors of real numbers, in the labels' unit."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.metrics.draws import Draws, checked, whole
from mtl_jax.metrics.metric import Metric

METRICS = (
  Metric('mae', 'mean absolute error', 'MAE', higher_is_better=False),
  Metric('rmse', 'root mean square error', 'RMSE', higher_is_better=False),
)


def regression(
  predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, names: Sequence[str], draws: Draws | None = None
) -> dict[str, Any]:
  """Mean absolute and root mean square error, over all labels and per output. Arguments: see `mtl_jax.metrics`."""
  predictions, labels, mask = checked(predictions, labels, mask, names)
  draws = draws or whole(len(predictions))
  errors = predictions - labels

  def scores(columns: slice) -> dict[str, Any]:
    own, present = errors[:, columns], mask[:, columns]
    return {'mae': draws.mean(np.abs(own), present), 'rmse': np.sqrt(draws.mean(np.square(own), present))}

  outputs = {name: {**scores(slice(i, i + 1)), 'num_labels': int(mask[:, i].sum())} for i, name in enumerate(names)}
  return draws.result({**scores(slice(None)), 'per_output': outputs})
