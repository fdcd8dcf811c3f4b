"""Reads the batches of a split, and prefetches the next ones."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int64

from mtl_jax.data.store.images import Images
from mtl_jax.platform import processes
from mtl_jax.platform.ahead import Item, Result, in_order

Batch = dict[str, Any]  # The inputs by name, labels, mask, example_id: see `Split.read`.


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of a prepared set, or of several one after another, with the labels of the chosen tasks.

  Attributes:
    images: uint8 `[n, h, w, 3]`, read when asked for; or features of them, floats `[n, ...]`.
    labels: for each task float32 `[n, k]`, or uint8 `[n, h, w]` of a dense one.
    mask: for each task bool of the same shape, False where there is no label, and where the image was found corrupt.
    example_id: int32 `[n]`, the row number in the store.
    source_size: int32 `[n, 2]`, width and height of the source images in pixels.
    parts: the number of examples of each set that they are of; empty for one set.
  """

  images: Images
  labels: dict[str, np.ndarray]
  mask: dict[str, np.ndarray]
  example_id: np.ndarray
  source_size: np.ndarray
  parts: tuple[int, ...] = ()

  def __len__(self) -> int:
    return len(self.images)

  @property
  def inputs(self) -> dict[str, Images]:
    """The network's input of each example, by its name in a batch: `image`, or the `features` that stand for it."""
    return {'image' if self.images.dtype == np.uint8 else 'features': self.images}

  def read(self, positions: Int64[np.ndarray, ' b']) -> Batch:
    """Reads the examples at these positions; position -1 is padding, a row that is fully masked."""
    rows = np.maximum(positions, 0)
    present = positions >= 0
    inputs = {name: values.take(rows) for name, values in self.inputs.items()}
    self.mask_corrupt(rows)
    return {
      **inputs,
      'labels': {name: values[rows] for name, values in self.labels.items()},
      'mask': {name: values[rows] & by_rows(present, values) for name, values in self.mask.items()},
      'example_id': np.where(positions >= 0, self.example_id[rows], -1).astype(np.int32),
    }

  def mask_corrupt(self, rows: Int64[np.ndarray, ' b']) -> None:
    """Masks, for good, the labels of the images among these, taken before, that were found corrupt.

    Batches, the resident copy and metrics all look at the one mask, so a label that has lost its image counts nowhere.
    """
    bad = rows[~self.images.good(rows)]
    if bad.size:
      for mask in self.mask.values():
        mask[bad] = False

  def mask_all_corrupt(self, batch_size: int = 1024) -> None:
    """Reads every image once, for what `mask_corrupt` does."""
    for first in range(0, len(self), batch_size):
      rows = np.arange(first, min(first + batch_size, len(self)))
      self.images.take(rows)
      self.mask_corrupt(rows)

  def corrupt_rows(self) -> list[int]:
    """Positions of the images that any process has found corrupt so far. All processes call this alike."""
    own = np.flatnonzero(~self.images.good(np.arange(len(self)))).tolist()
    return sorted({row for rows in processes.gather('corrupt', own) for row in rows})


class Input(NamedTuple):
  """Transfers the train split's batches to the compiled step: resident on the devices, or streamed from the host.

  Attributes:
    reason: which way it is and why, in a line for the log.
    place: makes the source, what lies on the devices from the start; `()` for nothing.
    read: from positions of the examples of several batches, `[k, b]`, or of one, `[b]`, to what travels to the devices
      for them: NumPy arrays `[k, b, ...]` or `[b, ...]`.
    fetch: from the source and what travelled to the batch; pure, called inside the compiled step.
  """

  reason: str
  place: Callable[[], Any]
  read: Callable[[Int64[np.ndarray, '... b']], Any]
  fetch: Callable[[Any, Any], Batch]


def streamed_input(split: Split, *, reason: str) -> Input:
  """Streams whole batches from the host; nothing is resident on the devices."""

  def read(positions: Int64[np.ndarray, '... b']) -> Batch:
    """Batches read together, so that all processors are kept busy, and laid out one after another without a copy."""
    batch = split.read(positions.reshape(-1))
    return jax.tree.map(lambda values: values.reshape(*positions.shape, *values.shape[1:]), batch)

  return Input(reason=reason, place=tuple, read=read, fetch=lambda _, batch: batch)


def by_rows(values: np.ndarray, like: np.ndarray) -> np.ndarray:
  """A value for each row, `[n]`, in a shape that broadcasts to an array of rows, `[n, ...]`."""
  return values.reshape(-1, *[1] * (like.ndim - 1))


def padded_positions(num_examples: int, batch_size: int) -> Iterator[Int64[np.ndarray, ' b']]:
  """Positions in order, in batches of one size; the last is padded with -1."""
  for first in range(0, num_examples, batch_size):
    positions = np.arange(first, first + batch_size)
    yield np.where(positions < num_examples, positions, -1)


def padded_batches(
  split: Split, batch_size: int, *, local: slice = slice(None), put: Callable[[Batch], Any] = lambda batch: batch
) -> Iterator[Any]:
  """Batches of a whole split in order, padded to one size and prefetched: `put` of the rows `local` of each."""

  def make(positions: Int64[np.ndarray, ' b']) -> Any:
    batch = split.read(positions[local])
    batch.pop('example_id')
    return put(batch)

  return prefetch(make, padded_positions(len(split), batch_size))


def prefetch(make: Callable[[Item], Result], items: Iterable[Item], *, depth: int = 2) -> Iterator[Result]:
  """Yields `make(item)` for each item in order, up to `depth` of them made ahead in two threads.

  While one ends, gathering labels and handing its arrays to the devices, the other keeps the decoding threads busy.
  """
  with ThreadPoolExecutor(max_workers=2, thread_name_prefix='input') as executor:
    yield from in_order(executor, make, items, depth=depth)
