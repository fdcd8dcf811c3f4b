"""Several arrays read as one, without copying them: the images of a mixture's sets stay mapped where they lie."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Concatenation:
  """Arrays `[n_i, ...]` of one type, alike but for their first axis, one after another as `[n, ...]`.

  It has as much of an array's interface as a split's images need.
  """

  def __init__(self, parts: Sequence[np.ndarray]):
    self.parts = tuple(parts)
    self.dtype = self.parts[0].dtype
    self.shape = (sum(map(len, self.parts)), *self.parts[0].shape[1:])

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def nbytes(self) -> int:
    return sum(part.nbytes for part in self.parts)

  def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
    """The rows at these positions, `[b, ...]`; only they are read."""
    assert axis == 0
    taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
    first = 0
    for part in self.parts:
      here = (rows >= first) & (rows < first + len(part))
      taken[here] = part.take(rows[here] - first, axis=0)
      first += len(part)
    return taken

  def reshape(self, num_rows: int, width: int) -> 'Concatenation':
    """The same rows, each as `width` values, or flat for -1; `num_rows` stays as it is."""
    assert num_rows == len(self)
    return Concatenation([part.reshape(len(part), width) for part in self.parts])

  def __getitem__(self, index: Any) -> np.ndarray:
    """A part of the whole as one array, for which everything is read and copied."""
    return np.concatenate(self.parts)[index]
