"""Reads single images of a prepared set, or rows derived from them, from one file, and checks each."""

import dataclasses
import logging
import os
import threading
import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Bool, Int, Int64, Shaped, UInt32

from mtl_jax.errors import DataError, one_line

ENCODINGS = {'decoded': 'images.npy', 'jpeg': 'images.bin'}  # Of a set's images, and the file that holds them.
THREADS = len(os.sched_getaffinity(0))
_NAMED = 5  # Corrupt records that an error names.

log = logging.getLogger('mtl_jax')


@dataclasses.dataclass(eq=False)
class Records:
  """The file of `n` images, or other rows, and what is known of each; one that is not what was written is corrupt.

  Attributes:
    path: images.npy, images.bin or rows.bin.
    shape: of a row; of a decoded image `(h, w, 3)`.
    offsets: where in the file each record begins, and where the last one ends, in bytes.
    crc32: of each record's bytes; None where they were not kept.
    names: the rows' names in their source.
    dtype: of a row's values.
    encoding: one of `ENCODINGS`.
    corrupt_share: largest share of the records that may be corrupt.
    corrupt: what is wrong with each record found corrupt so far, by its row.
  """

  path: Path
  shape: tuple[int, ...]
  offsets: Int64[np.ndarray, ' n+1']
  crc32: UInt32[np.ndarray, ' n'] | None
  names: Sequence[Any]
  dtype: Any = np.uint8
  encoding: str = 'decoded'
  corrupt_share: float = 0.0
  corrupt: dict[int, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    self._lock, self.dtype = threading.Lock(), np.dtype(self.dtype)
    # Not mapped: pages of a mapped file count as this process's memory, and one cut short while mapped kills it.
    try:
      self._file = os.open(self.path, os.O_RDONLY)
    except OSError as error:
      raise DataError(f'{self.path}: cannot be read: {error.strerror}') from error
    self._num_bytes = os.fstat(self._file).st_size
    weakref.finalize(self, os.close, self._file)

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def read(self, row: int, out: Shaped[np.ndarray, '...']) -> bool:
    """Reads a row into `out`; False, and `out` is undefined, if its record is corrupt.

    Raises:
      DataError: when more records are corrupt than may be.
    """
    if row in self.corrupt:
      return False
    try:
      self._read(row, out)
    except (OSError, ValueError) as error:  # A disk that fails; bytes that are none of ours.
      self._report(row, one_line(error))
      return False
    return True

  def _read(self, row: int, out: Shaped[np.ndarray, '...']) -> None:
    begin, end = int(self.offsets[row]), int(self.offsets[row + 1])
    if not 0 <= begin <= end <= self._num_bytes:
      raise ValueError('it lies outside of the file')
    jpeg = self.encoding == 'jpeg'
    slot: Any = out if jpeg else out.reshape(-1).view(np.uint8)
    content = os.pread(self._file, end - begin, begin) if jpeg else slot
    num_bytes = len(content) if jpeg else os.preadv(self._file, [slot], begin)
    if num_bytes != end - begin:
      raise ValueError(f'the file ends {end - begin - num_bytes} bytes too early')
    if self.crc32 is not None and zlib.crc32(content) != self.crc32[row]:
      raise ValueError('its bytes are not those that were written')
    if jpeg and simplejpeg.decode_jpeg(content, buffer=slot).shape != out.shape:
      raise ValueError('it is an image of another size')

  def _report(self, row: int, reason: str) -> None:
    """Counts a corrupt record, once."""
    with self._lock:
      if row in self.corrupt:
        return
      self.corrupt[row] = reason
      log.warning(
        'warning: %s: record %d (%s) is corrupt: %s; another image takes its place, its labels are masked',
        *(self.path, row, self.names[row], reason),
      )
      if len(self.corrupt) > self.corrupt_share * len(self):
        named = ', '.join(map(str, sorted(self.corrupt)[:_NAMED]))
        raise DataError(
          f'{self.path}: {len(self.corrupt)} of {len(self)} records are corrupt, more than '
          f'config.data.corrupt_share={self.corrupt_share:g}: record {named}; prepare the set again'
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Rows of one file or of several, one after another, like an array: images uint8 `[n, h, w, 3]` or what is derived.

  In place of a corrupt record stands the next good one of its range: a blank image would enter the statistics of batch
  norm. Which one that is depends on the file alone, so every way to read it gives the same bits.

  Attributes:
    parts: files, alike in the shape and type of a row, and which rows of each.
  """

  parts: tuple[tuple[Records, range], ...]

  def __len__(self) -> int:
    return sum(len(rows) for _, rows in self.parts)

  @property
  def shape(self) -> tuple[int, ...]:
    return (len(self), *self.parts[0][0].shape)

  @property
  def dtype(self) -> np.dtype:
    return self.parts[0][0].dtype

  @property
  def nbytes(self) -> int:
    """Bytes of the decoded images."""
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

  @property
  def num_corrupt(self) -> int:
    """Corrupt records found so far in the whole files."""
    return sum(len(records.corrupt) for records, _ in self.parts)

  def take(self, rows: Int[np.ndarray, ' b'], axis: int = 0) -> Shaped[np.ndarray, 'b ...']:
    """The images at these positions, read and decoded by all processors; no others are.

    Raises:
      DataError: when more records are corrupt than may be.
    """
    assert axis == 0
    taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
    wanted = [(taken[slot], *self._place(row)) for slot, row in enumerate(rows)]
    stripes = min(len(wanted), 4 * THREADS)  # More than threads: some records are larger than others.
    list(_threads().map(_fill, (wanted[stripe::stripes] for stripe in range(stripes))))
    return taken

  def _place(self, row: int) -> tuple[Records, range, int]:
    """The part of a position, and the position in it."""
    for records, own in self.parts:
      if row < len(own):
        return records, own, int(row)
      row -= len(own)
    raise IndexError(row)

  def good(self, rows: Int[np.ndarray, ' b']) -> Bool[np.ndarray, ' b']:
    """True for those of these positions, taken before, that hold their own image, not another in its place."""
    if not self.num_corrupt:
      return np.ones(len(rows), bool)
    places = map(self._place, rows)
    return np.array([own[row] not in records.corrupt for records, own, row in places], bool)

  def __getitem__(self, index: Any) -> np.ndarray:
    """Reads the rows of an index, a slice or an array of them; no others are read."""
    rows = np.arange(len(self))[index]
    return self.take(rows.reshape(-1)).reshape(*rows.shape, *self.shape[1:])


def _fill(wanted: Sequence[tuple[Shaped[np.ndarray, '...'], Records, range, int]]) -> None:
  """Reads into each slot the row at a position of a range, or the next good one."""
  for slot, records, own, row in wanted:
    if not any(records.read(own[(row + step) % len(own)], slot) for step in range(len(own))):
      raise DataError('every record of the split is corrupt; prepare the set again')


@cache
def _threads() -> ThreadPoolExecutor:
  """All processors: reading and decoding leave the interpreter to others."""
  return ThreadPoolExecutor(THREADS, thread_name_prefix='decode')
