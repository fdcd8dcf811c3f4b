"""Metrics of one choice among bins that have an order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mtl_jax.metrics.categorical import class_numbers
from mtl_jax.metrics.draws import Draws, whole
from mtl_jax.metrics.metric import Metric

METRICS = (
  Metric('bin_mae', 'mean absolute error in bins', 'MAE in bins', higher_is_better=False),
  Metric('exact_bin', 'share in the right bin', 'right bin', percent=True),
  Metric('within_one_bin', 'share at most one bin off', '≤ 1 off', percent=True),
)


def ordinal(
  predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, names: Sequence[str], draws: Draws | None = None
) -> dict[str, Any]:
  """Distances in bins. The median bin is predicted, which has the least expected distance.

  Predictions are probabilities of the bins, labels numbers of bins `[n, 1]`; for the rest see `mtl_jax.metrics`.
  """
  predictions, bins, mask = class_numbers(predictions, labels, mask, names)
  draws = draws or whole(len(predictions))
  off, present = np.abs(median(predictions) - bins), mask[:, 0]

  def scores(chosen: np.ndarray) -> dict[str, Any]:
    shares = {'exact_bin': draws.mean(off == 0, chosen), 'within_one_bin': draws.mean(off <= 1, chosen)}
    return {'bin_mae': draws.mean(off, chosen), **shares}

  of_bins = {name: present & (bins == number) for number, name in enumerate(names)}
  per_output = {name: {**scores(chosen), 'num_labels': int(chosen.sum())} for name, chosen in of_bins.items()}
  return draws.result({**scores(present), 'per_output': per_output})


def median(probabilities: Float[np.ndarray, 'n c']) -> Int[np.ndarray, ' n']:
  """The first bin by which half of the probability is reached."""
  reached = np.cumsum(probabilities, axis=-1)
  return (reached < 0.5 * reached[:, -1:]).sum(-1)
