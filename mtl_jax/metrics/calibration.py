"""Calibration: how far predicted probabilities are from the frequencies of what they predict (Guo et al. 2017)."""

import numpy as np
from jaxtyping import Bool, Float

from mtl_jax.metrics.draws import Draws, ratio

NUM_BINS = 15


def expected_calibration_error(
  probabilities: Float[np.ndarray, ' n'], happened: Bool[np.ndarray, ' n'], *, draws: Draws
) -> Float[np.ndarray, ' B']:
  """The mean over examples of `|frequency - mean probability|` of their bin, of 15 of equal width, for every draw.

  Args:
    probabilities: of what may happen, in [0, 1].
    happened: whether it did.
    draws: of these examples.
  """
  gaps = np.zeros((len(probabilities), NUM_BINS))
  gaps[np.arange(len(probabilities)), _bins(probabilities)] = happened - probabilities
  return ratio(np.abs(draws.sums(gaps)).sum(0), draws.sums(np.ones((len(probabilities), 1)))[0])


def reliability(probabilities: Float[np.ndarray, ' n'], happened: Bool[np.ndarray, ' n']) -> list[list[float]]:
  """The number of examples, mean probability and frequency of each bin that is not empty."""
  bins = _bins(probabilities)
  counts, sums, hits = (np.bincount(bins, weights, NUM_BINS) for weights in (None, probabilities, happened))
  return [[int(n), float(p / n), float(y / n)] for n, p, y in zip(counts, sums, hits, strict=True) if n]


def _bins(probabilities: np.ndarray) -> np.ndarray:
  """The number of each one's bin; an inner edge belongs to the lower one, as scikit-learn has it."""
  return np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], probabilities)
