"""Uncertainty of a mean over look-aheads: standard errors, the entries above noise, and split-half reliability.

The noise is that of the batches along one training run; the variation between seeds is not in it.
"""

import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from scipy import stats

FALSE_DISCOVERY_RATE = 0.05
LEAST_VALUES = 4  # An error of a mean of fewer says nothing.


def mean(values: Float[np.ndarray, 't ...']) -> Float[np.ndarray, '...']:
  """Means over the first axis of the values that are known; NaN where none is."""
  known = np.isfinite(values)
  count = known.sum(0)
  return np.where(count > 0, np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def standard_error(values: Float[np.ndarray, 't k k']) -> tuple[Float[np.ndarray, 'k k'], Float[np.ndarray, 'k k']]:
  """Standard errors of means over values in the order of training, and the degrees of freedom of these errors.

  Batches are drawn anew each time, but what is measured drifts as training goes on. So the variance is estimated from
  differences of successive values (von Neumann et al. 1941), `sum (x_t - x_{t-1})^2 / (2 (n - 1))`, which a slow drift
  hardly enters, and which is the plain variance where there is none. It has `2 (n - 1)^2 / (3 n - 4)` degrees of
  freedom: twice its squared mean over its variance, for independent normal values. NaN where too few are known.
  """
  count = np.isfinite(values).sum(0)
  variance = np.full(count.shape, np.nan)
  for entry in np.argwhere(count >= LEAST_VALUES):
    own = values[:, *entry].astype(np.float64)
    variance[*entry] = np.square(np.diff(own[np.isfinite(own)])).mean() / 2
  degrees = 2 * np.square(count - 1.0) / np.maximum(3 * count - 4, 1)
  return np.sqrt(variance / np.maximum(count, 1)), np.maximum(degrees, 1)


def above(
  mean: Float[np.ndarray, 'k k'], stderr: Float[np.ndarray, 'k k'], *, degrees: ArrayLike = np.inf
) -> Bool[np.ndarray, 'k k']:
  """True for entries that differ from 0 by more than noise: t-tests at a false discovery rate of 5 %.

  The diagonal is tested by itself, since all of its entries differ by construction.
  """
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio = np.where(stderr > 0, mean / stderr, np.where(mean != 0, np.inf, 0))
  p_values = np.where(np.isfinite(mean) & np.isfinite(stderr), 2 * stats.t.sf(np.abs(ratio), degrees), np.nan)
  found, diagonal = np.zeros(mean.shape, bool), np.eye(len(mean), dtype=bool)
  for part in (diagonal, ~diagonal):
    tested = part & np.isfinite(p_values)
    if tested.any():
      found[tested] = stats.false_discovery_control(p_values[tested]) < FALSE_DISCOVERY_RATE
  return found


def split_half(values: Float[np.ndarray, 't k k']) -> float | None:
  """Reliability of the mean's entries off the diagonal, from 0 (noise) to 1: even values against odd ones.

  The correlation `r` of the two halves' means, stepped up to all values by Spearman and Brown: `2 r / (1 + r)`. None
  where it is undefined: of fewer than two values or three entries, or of entries that do not differ.
  """
  if len(values) < 2:
    return None
  first, second = (mean(values[start::2]) for start in (0, 1))
  off = ~np.eye(len(first), dtype=bool) & np.isfinite(first) & np.isfinite(second)
  if off.sum() < 3 or not (np.ptp(first[off]) and np.ptp(second[off])):
    return None
  r = float(np.corrcoef(first[off], second[off])[0, 1])
  return 2 * r / (1 + r) if r > 0 else 0.0
