"""Uncertainty of a mean over looks: its standard error, the entries above noise, and the agreement of halves.

The noise meant is that of which batches were looked at along one training run. What another seed would give is not in
it: only another run says that.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from scipy import stats

FALSE_DISCOVERY_RATE = 0.05
LEAST_LOOKS = 4  # An error of a mean of fewer looks says nothing.


class Mean(NamedTuple):
  """Means over looks `[..., k, k]`; NaN where no look has an entry.

  Attributes:
    mean: over the looks that have the entry.
    stderr: its standard error; NaN where there are too few looks.
    degrees: of freedom of that error.
  """

  mean: Float[np.ndarray, 'k k']
  stderr: Float[np.ndarray, 'k k']
  degrees: np.ndarray


def mean(values: Float[np.ndarray, 't ...']) -> Float[np.ndarray, '...']:
  """Means over the looks that have an entry; NaN where none has it."""
  there = np.isfinite(values)
  count = there.sum(0)
  return np.where(count > 0, np.where(there, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def over_looks(values: Float[np.ndarray, 't k k']) -> Mean:
  """Means and their standard errors, of looks in the order of training; NaN is an entry that a look does not have.

  Batches are drawn anew at each look, but what is measured drifts as training goes on. So the variance is had from
  differences of successive looks (von Neumann et al. 1941), `sum (x_t - x_{t-1})^2 / (2 (n - 1))`, which a slow drift
  hardly enters, and which is the plain variance where there is none. It has `2 (n - 1)^2 / (3 n - 4)` degrees of
  freedom: twice its squared mean over its variance, for independent normal looks.
  """
  values = np.asarray(values, np.float64)
  count = np.isfinite(values).sum(0)
  flat, variance = values.reshape(len(values), -1), np.full(values[0].size, np.nan)
  for entry in np.flatnonzero(count.reshape(-1) >= LEAST_LOOKS):
    own = flat[:, entry]
    variance[entry] = np.square(np.diff(own[np.isfinite(own)])).mean() / 2
  degrees = 2 * np.square(count - 1.0) / np.maximum(3 * count - 4, 1)
  return Mean(mean(values), np.sqrt(variance.reshape(count.shape) / np.maximum(count, 1)), np.maximum(degrees, 1))


def above(
  mean: Float[np.ndarray, 'k k'], stderr: Float[np.ndarray, 'k k'], *, degrees: ArrayLike = np.inf
) -> Bool[np.ndarray, 'k k']:
  """True for entries that differ from 0 by more than noise: t-tests at a false discovery rate of 5 %.

  The diagonal is tested by itself, since all of its entries differ by construction.
  """
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio = np.where(stderr > 0, mean / stderr, np.where(mean != 0, np.inf, 0))
  p_values = np.where(np.isfinite(mean) & np.isfinite(stderr), 2 * stats.t.sf(np.abs(ratio), degrees), np.nan)
  found = np.zeros(mean.shape, bool)
  diagonal = np.eye(len(mean), dtype=bool)
  for part in (diagonal, ~diagonal):
    tested = part & np.isfinite(p_values)
    if tested.any():
      found[tested] = stats.false_discovery_control(p_values[tested]) < FALSE_DISCOVERY_RATE
  return found


def split_half(values: Float[np.ndarray, 't k k']) -> float | None:
  """Reliability of the mean's entries off the diagonal, from 0 (noise) to 1: even looks against odd ones.

  The correlation `r` of the two halves' means, stepped up to all looks by Spearman and Brown: `2 r / (1 + r)`. None
  where it cannot be had: of fewer than two looks or three entries, or of entries that do not differ.
  """
  if len(values) < 2:
    return None
  halves = [mean(values[first::2]) for first in (0, 1)]
  off = ~np.eye(len(halves[0]), dtype=bool) & np.isfinite(halves[0]) & np.isfinite(halves[1])
  first, second = (half[off] for half in halves)
  if len(first) < 3 or not (np.ptp(first) and np.ptp(second)):
    return None
  r = float(np.corrcoef(first, second)[0, 1])
  return 2 * r / (1 + r) if r > 0 else 0.0
