"""The images of several sets read as one, without copying them: a mixture's images stay where they lie."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.data.images import Images, indexed


class Concatenation:
  """Images `[n_i, ...]`, alike but for their first axis, one after another as `[n, ...]`, to be used like `Images`."""

  def __init__(self, parts: Sequence[Images]):
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
    return self._by_part(rows, Images.take, np.empty((len(rows), *self.shape[1:]), self.dtype))

  def good(self, rows: np.ndarray) -> np.ndarray:
    """Which of these positions, taken before, hold their own image and not another in its place, bool `[b]`."""
    return self._by_part(rows, Images.good, np.empty(len(rows), bool))

  def _by_part(self, rows: np.ndarray, ask: Any, answers: np.ndarray) -> np.ndarray:
    first = 0
    for part in self.parts:
      here = (rows >= first) & (rows < first + len(part))
      answers[here] = ask(part, rows[here] - first)
      first += len(part)
    return answers

  def reshape(self, num_rows: int, width: int) -> 'Concatenation':
    """The same rows, each as `width` values, or flat for -1; `num_rows` stays as it is."""
    assert num_rows == len(self)
    return Concatenation([part.reshape(len(part), width) for part in self.parts])

  def __getitem__(self, index: Any) -> np.ndarray:
    """As of an array whose first index is of rows: only they are read."""
    return indexed(self, index)
