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
  """Mean absolute and root mean square error of every draw, over all labels and per output.

  Args:
    predictions: `[n, k]`.
    labels: `[n, k]`.
    mask: whether the label exists, `[n, k]`.
    names: of the `k` outputs.
    draws: how often each example counts; by default once.

  Raises:
    ValueError: for shapes that differ, or labels that are not finite.
    DivergedError: for a prediction that is not finite where a label exists.
  """
  predictions, labels, mask = checked(predictions, labels, mask, names)
  draws = draws or whole(len(predictions))
  errors = predictions - labels
  per_output = {
    name: {**_errors(errors[:, i], mask[:, i], draws), 'num_labels': int(mask[:, i].sum())}
    for i, name in enumerate(names)
  }
  return draws.result({**_errors(errors, mask, draws), 'per_output': per_output})


def _errors(errors: np.ndarray, mask: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
  return {'mae': draws.mean(np.abs(errors), mask), 'rmse': np.sqrt(draws.mean(np.square(errors), mask))}
