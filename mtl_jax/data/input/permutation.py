"""A keyed pseudorandom permutation, computed for single elements without storing it."""

import numpy as np
from jaxtyping import Int, Int64, UInt64

ROUNDS = 8  # With fewer, the 720 orders of 6 elements are measurably not equally frequent.


def permuted(
  places: Int[np.ndarray, ' b'], *, sizes: Int[np.ndarray, ' b'], keys: UInt64[np.ndarray, ' b']
) -> Int64[np.ndarray, ' b']:
  """Evaluates permutation `keys[i]` of `sizes[i]` elements at `places[i]`.

  A Feistel network over a rectangle of barely more cells than elements, applied again to what falls outside (Black &
  Rogaway 2002, "Ciphers with Arbitrary Finite Domains").

  Args:
    places: from 0, below `sizes`.
    sizes: the numbers of elements, at least 1.
    keys: well-mixed, see `key_of`.
  """
  places, sizes = (np.asarray(values).astype(np.uint64) for values in (places, sizes))
  widths = np.ceil(np.sqrt(sizes)).astype(np.uint64)
  heights = -(-sizes.astype(np.int64) // widths.astype(np.int64)).astype(np.uint64)
  found = np.empty(len(places), np.int64)
  left = np.arange(len(places))
  while len(left):
    places = _shuffled(places, widths[left], heights[left], keys[left])
    inside = places < sizes[left]
    found[left[inside]] = places[inside]
    left, places = left[~inside], places[~inside]
  return found


def _shuffled(cells: np.ndarray, widths: np.ndarray, heights: np.ndarray, keys: np.ndarray) -> np.ndarray:
  """Cells of rectangles, permuted: by turns each column number moves by a hash of the row's, and the other way."""
  rows, columns = np.divmod(cells, widths)
  for number in range(0, 2 * ROUNDS, 2):
    columns = (columns + mixed(keys ^ (rows + np.uint64(number << 32))) % widths) % widths
    rows = (rows + mixed(keys ^ (columns + np.uint64((number + 1) << 32))) % heights) % heights
  return rows * widths + columns


def key_of(*numbers: int | np.ndarray) -> UInt64[np.ndarray, ' b']:
  """A key for each row of whole numbers from 0; single numbers serve for all rows."""
  key = np.zeros(1, np.uint64)
  for number in numbers:
    key = mixed(key ^ np.asarray(number).astype(np.uint64))
  return key


def mixed(values: np.ndarray) -> np.ndarray:
  """One step of splitmix64 (Steele et al. 2014), which wraps around at 2^64; of an array, which does so silently."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))
