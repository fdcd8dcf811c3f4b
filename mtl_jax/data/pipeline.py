"""From (seed, step) to a global batch: which rows it holds, reading them, and keeping the next ones ready."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64

from mtl_jax.data.concatenation import Concatenation
from mtl_jax.data.store import Store
from mtl_jax.errors import DataError
from mtl_jax.tasks import Task

Batch = dict[str, Any]  # image, labels, mask, example_id: see `Split.read`.


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of a prepared set, or of several one after another, with the labels of the chosen tasks.

  Attributes:
    images: uint8 `[n, h, w, 3]`, mapped from the store; or features of them, floats `[n, ...]`.
    labels: for each task float32 `[n, k]`.
    mask: for each task bool `[n, k]`, False where there is no label.
    example_id: int32 `[n]`, the row number in the store.
    source_size: int32 `[n, 2]`, width and height of the source images in pixels.
    parts: the number of examples of each set of a mixture; empty for one set.
  """

  images: np.ndarray | Concatenation
  labels: dict[str, np.ndarray]
  mask: dict[str, np.ndarray]
  example_id: np.ndarray
  source_size: np.ndarray
  parts: tuple[int, ...] = ()

  def __len__(self) -> int:
    return len(self.images)

  def read(self, positions: Int64[np.ndarray, ' b']) -> Batch:
    """The examples at these positions; position -1 is padding: a row that is masked throughout."""
    rows = np.maximum(positions, 0)
    present = (positions >= 0)[:, None]
    return {
      'image': self.images.take(rows, axis=0),
      'labels': {name: values[rows] for name, values in self.labels.items()},
      'mask': {name: values[rows] & present for name, values in self.mask.items()},
      'example_id': np.where(positions >= 0, self.example_id[rows], -1).astype(np.int32),
    }


class Input(NamedTuple):
  """The way of the train split's batches into the compiled step: what lies there, what travels, what is made of both.

  Attributes:
    reason: which way it is and why, in a line for the log.
    place: makes the source, what lies on the devices from the start; `()` for nothing.
    read: from positions of examples, `[b]`, to what travels to the devices for them: NumPy arrays of `b` rows.
    fetch: from the source and what travelled to the batch; pure, called inside the compiled step.
  """

  reason: str
  place: Callable[[], Any]
  read: Callable[[Int64[np.ndarray, ' b']], Any]
  fetch: Callable[[Any, Any], Batch]


def streamed_input(split: Split, *, reason: str) -> Input:
  """Nothing lies on the devices, whole batches travel."""
  return Input(reason=reason, place=tuple, read=split.read, fetch=_as_it_came)


def _as_it_came(_: Any, batch: Batch) -> Batch:
  return batch


def load_split(
  store: Store, name: str, tasks: Sequence[Task], *, missing_ok: bool = False, partial_ok: bool = False
) -> Split:
  """One split with the labels of these tasks.

  Args:
    store: a prepared set.
    name: train, val or test.
    tasks: the tasks to load labels for.
    missing_ok: a task the set knows nothing of gets labels that are masked throughout.
    partial_ok: so does a label that the set lacks of a task it knows.

  Raises:
    DataError: if the split has no rows, or the set lacks a task or label.
  """
  rows = store.split(name)
  part = slice(rows.start, rows.stop)
  groups = {task.name: task for task in store.tasks}
  labels, mask = {}, {}
  for task in tasks:
    have = groups[task.group].labels if task.group in groups else ()
    lacking = [label for label in task.labels if label not in have]
    if lacking and not (partial_ok if have else missing_ok):
      raise DataError(f'{store.directory} has no label {lacking[0]!r} of task {task.group!r}')
    labels[task.name] = np.zeros((len(rows), len(task.labels)), np.float32)
    mask[task.name] = np.zeros((len(rows), len(task.labels)), bool)
    if have:
      here = [column for column, label in enumerate(task.labels) if label in have]
      there = [have.index(task.labels[column]) for column in here]
      labels[task.name][:, here] = store.labels[task.group][part][:, there]
      mask[task.name][:, here] = store.mask[task.group][part][:, there]
  example_id = np.arange(rows.start, rows.stop, dtype=np.int32)
  return Split(store.images[part], labels, mask, example_id, np.asarray(store.source_size[part]))


def batch_positions(step: int, *, seed: int, num_examples: int, batch_size: int) -> Int64[np.ndarray, ' b']:
  """Positions in the train split of global batch `step`: a function, so resuming needs only the step.

  Each epoch is a permutation of its own; an epoch's last batch runs on into the next one.
  """
  first = step * batch_size  # Python integers do not overflow.
  parts = []
  while batch_size:
    epoch, offset = divmod(first, num_examples)
    part = _permutation(seed, epoch, num_examples)[offset : offset + batch_size]
    parts.append(part)
    first += len(part)
    batch_size -= len(part)
  return np.concatenate(parts)


@lru_cache(maxsize=16)  # A mixture has a permutation for each of its sets.
def _permutation(seed: int, epoch: int, num_examples: int) -> Int64[np.ndarray, ' n']:
  order = np.random.Generator(np.random.Philox(key=(seed, epoch))).permutation(num_examples)
  order.flags.writeable = False
  return order


def padded_positions(num_examples: int, batch_size: int) -> Iterator[Int64[np.ndarray, ' b']]:
  """All positions in order, in batches of one size; the last is filled up with -1."""
  for first in range(0, num_examples, batch_size):
    positions = np.arange(first, first + batch_size)
    yield np.where(positions < num_examples, positions, -1)


Item = TypeVar('Item')
Result = TypeVar('Result')


def prefetch(make: Callable[[Item], Result], items: Iterable[Item], *, depth: int = 2) -> Iterator[Result]:
  """`make(item)` for each item in order, up to `depth` of them made ahead in a thread."""
  with ThreadPoolExecutor(max_workers=1, thread_name_prefix='input') as executor:
    pending = []
    try:
      for item in items:
        pending.append(executor.submit(make, item))
        if len(pending) > depth:
          yield pending.pop(0).result()
      while pending:
        yield pending.pop(0).result()
    finally:
      for future in pending:
        future.cancel()
