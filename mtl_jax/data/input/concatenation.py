"""The images of several sets read as one, without copying them: a mixture's images stay where they lie."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mtl_jax.data.input.pipeline import Rows
from mtl_jax.data.store.images import indexed


class Concatenation:
  """Images `[n_i, ...]`, alike but for their first axis, one after another as `[n, ...]`, to be used like those."""

  def __init__(self, parts: Sequence[Rows]):
    self.parts = tuple(parts)
    self.dtype = self.parts[0].dtype
    self.shape = (sum(map(len, self.parts)), *self.parts[0].shape[1:])

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def nbytes(self) -> int:
    return sum(part.nbytes for part in self.parts)

  @property
  def num_corrupt(self) -> int:
    return sum(part.num_corrupt for part in self.parts)

  def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
    """The rows at these positions, `[b, ...]`; only they are read."""
    assert axis == 0
    taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
    for part, here, positions in self._by_part(rows):
      taken[here] = part.take(positions, axis=0)
    return taken

  def good(self, rows: np.ndarray) -> np.ndarray:
    """True for those of these positions, taken before, that hold their own image, bool `[b]`."""
    good = np.empty(len(rows), bool)
    for part, here, positions in self._by_part(rows):
      good[here] = part.good(positions)
    return good

  def _by_part(self, rows: np.ndarray) -> Iterator[tuple[Rows, np.ndarray, np.ndarray]]:
    """Each part, which of these rows it holds, and where it does."""
    first = 0
    for part in self.parts:
      here = (rows >= first) & (rows < first + len(part))
      yield part, here, rows[here] - first
      first += len(part)

  def __getitem__(self, index: Any) -> np.ndarray:
    """Reads rows, as of an array whose first index is of rows: no others are read."""
    return indexed(self, index)
