"""Combines several prepared sets with different labels: common label names, and batches with rows of each set.

A label that a set lacks is masked there; the masks do all the work in losses and metrics.
"""

import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.source import SPLITS, landmark_task
from mtl_jax.data.store import cache as sets
from mtl_jax.data.store.images import Images
from mtl_jax.data.store.reader import Store
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.platform import address
from mtl_jax.tasks import LandmarkTask, Task

FIELD = 'config.data.rename'

log = logging.getLogger('mtl_jax')

Renames: TypeAlias = Mapping[str, str]  # Labels as `task/label`.
Column: TypeAlias = tuple[Task, int]  # A task of a set, and the number of one of its labels.
_LABEL = r'\s*([^/=]*[^/=\s])\s*/\s*([^/=]*[^/=\s])\s*'


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
  """Several prepared sets opened together, with the same attributes as a `Store`.

  Attributes:
    parts: the sets, their labels under the mixture's names.
    tasks: all tasks of the parts, each with all labels that some part has for it.
    directory: the folders, for messages.
    image_size: height and width of the stored images in pixels, of all sets.
    fit: the way that images came to that size, of all sets.
    split_sizes: the number of rows of each split.
    checksum: a digest over those of the parts, in their order.
  """

  parts: tuple[Store, ...]
  tasks: tuple[Task, ...]
  directory: str
  image_size: tuple[int, int]
  fit: str
  split_sizes: dict[str, int]
  checksum: str

  @classmethod
  def of(cls, parts: 'tuple[Store, ...]') -> 'Mixture':
    """Raises DataError where tasks of one name differ in kind."""
    return cls(
      parts=parts,
      tasks=_union(parts),
      directory=', '.join(str(part.directory) for part in parts),
      image_size=parts[0].image_size,
      fit=parts[0].fit,
      split_sizes={name: sum(part.split_sizes[name] for part in parts) for name in SPLITS},
      checksum=hashlib.sha256('/'.join(part.checksum for part in parts).encode()).hexdigest(),
    )


DataSet: TypeAlias = Store | Mixture  # What a run is trained or evaluated on.


def open_data(data: ConfigDict) -> DataSet:
  """Opens the prepared set of `config.data.dir`, or the mixture of `config.data.dirs`, and renames labels.

  Raises:
    UserError: for a folder without a prepared set, sets that do not fit together, or a wrong rename.
  """
  if not (data.dirs or data.dir):
    raise ConfigError(
      'config.data.dir is empty; name a prepared set with --config.data.dir=DIR, several with --config.data.dirs=A,B'
    )
  found = open_mixture(data.dirs or [data.dir], parse_renames(data.rename), corrupt_share=data.corrupt_share)
  return found if data.dirs else found.parts[0]


def absolute_dirs(data: ConfigDict) -> dict[str, Any]:
  """The fields `dir` and `dirs` with absolute paths, so that evaluation finds the sets from any folder."""
  return {
    'dir': address.absolute(data.dir) if data.dir else '',
    'dirs': tuple(map(address.absolute, data.dirs)),
  }


def open_mixture(directories: Sequence[Path | str], renames: Renames, *, corrupt_share: float = 0.0) -> Mixture:
  """Opens several prepared sets, in folders or buckets, as one data set.

  Raises:
    DataError: for a folder without a prepared set, or sets whose images or tasks do not fit together.
    ConfigError: for a rename of a label that no set has, or to one that none can have, or a set named twice.
  """
  directories = list(map(address.absolute, directories))
  for i, directory in enumerate(directories):
    if directory in directories[:i]:
      raise ConfigError(f'config.data.dirs: {directory} is named twice; config.data.weights says how much of each')
  stores = [sets.open_set(directory, corrupt_share=corrupt_share) for directory in directories]
  for store in stores[1:]:
    have, want = (f'{"x".join(map(str, one.image_size))} ({one.fit})' for one in (store, stores[0]))
    if have != want:
      flags = f'--image_size {" ".join(map(str, stores[0].image_size))} --fit {stores[0].fit}'
      raise DataError(
        f'{store.directory} holds images of {have}, {stores[0].directory} of {want}; '
        f'prepare all of a mixture alike, such as with {flags}'
      )
  _check_renames(renames, stores)
  return Mixture.of(tuple(rename(store, renames) for store in stores))


def parse_renames(texts: Sequence[str]) -> Renames:
  """Parses renames `task/label=task/label`, from a set's label to the mixture's.

  Raises:
    ConfigError: for a text that is no such pair, or a label renamed twice.
  """
  renames: dict[str, str] = {}
  for text in texts:
    sides = re.fullmatch(f'{_LABEL}={_LABEL}', text)
    if sides is None:
      raise ConfigError(f'{FIELD}: {text!r} is no TASK/LABEL=TASK/LABEL, such as smile/Smiling=attributes/Smiling')
    old, new = f'{sides[1]}/{sides[2]}', f'{sides[3]}/{sides[4]}'
    if old in renames:
      raise ConfigError(f'{FIELD}: {old} is renamed twice')
    renames[old] = new
  return renames


def _check_renames(renames: Renames, stores: Sequence[Store]) -> None:
  """Every renamed label is in some set, and so is its new name, if a set has the task that it goes to.

  Without the second a slip in the new name would make a column of its own.
  """
  known = list(dict.fromkeys(label for store in stores for label in _labels(store)))
  tasks = {task.name for store in stores for task in store.tasks}
  for old, new in renames.items():
    for side in (old, new) if new.partition('/')[0] in tasks else (old,):
      choose(side, known, field=FIELD)


def _labels(store: Store) -> dict[str, Column]:
  """The columns of a set's labels by `task/label`."""
  return {f'{task.name}/{label}': (task, i) for task in store.tasks for i, label in enumerate(task.labels)}


def rename(store: Store, renames: Renames) -> Store:
  """Renames labels of a set; renames of labels that it lacks are ignored.

  Raises:
    ConfigError: where two labels would get one name, or a label would join a task of another kind.
  """
  own = _labels(store)
  if not renames.keys() & own.keys():
    return store
  renamed: dict[str, dict[str, Column]] = {}  # For each new task the columns of its labels.
  taken: dict[str, str] = {}
  for old, column in own.items():
    name, _, label = (new := renames.get(old, old)).partition('/')
    if new in taken:
      raise ConfigError(f'{FIELD}: {taken[new]} and {old} of {store.directory} would both be {new}')
    taken[new] = old
    renamed.setdefault(name, {})[label] = column

  def stacked(arrays: Mapping[str, np.ndarray], columns: dict[str, Column]) -> np.ndarray:
    found = [arrays[task.name] if task.dense else arrays[task.name][:, i] for task, i in columns.values()]
    return found[0] if next(iter(columns.values()))[0].dense else np.stack(found, axis=1)

  return dataclasses.replace(
    store,
    tasks=tuple(_renamed_task(name, columns, store) for name, columns in renamed.items()),
    labels={name: stacked(store.labels, columns) for name, columns in renamed.items()},
    mask={name: stacked(store.mask, columns) for name, columns in renamed.items()},
  )


def _renamed_task(name: str, columns: dict[str, Column], store: Store) -> Task:
  """The task of that name that the set's labels make."""
  first = next(iter(columns.values()))[0]
  for task, i in columns.values():
    if _facts(task) != _facts(first):
      joins = f'{task.name}/{task.labels[i]} of {store.directory} is {task.kind}'
      raise ConfigError(f'{FIELD}: {joins} and cannot join {name}, which is {first.kind}')
  try:
    if isinstance(first, LandmarkTask):
      points = {first.points[i // 2]: label[:-2] for label, (_, i) in columns.items()}
      over = first.nme_over
      over = tuple(points.get(end, end) for end in over) if isinstance(over, tuple) else over
      return dataclasses.replace(landmark_task(tuple(columns), name=name), nme_over=over)
    return dataclasses.replace(first, name=name, labels=tuple(columns))
  except ValueError as error:
    raise ConfigError(f'{FIELD}: {name} of {store.directory}: {error}') from error


def _facts(task: Task) -> dict[str, Any]:
  """The kind of a task and all else but its name and labels."""
  return {**task.to_json(), 'name': '', 'labels': ()}


def _union(parts: Sequence[Store]) -> tuple[Task, ...]:
  """All tasks of the sets, each with the labels of all. Raises DataError for tasks of one name that differ in kind."""
  merged: dict[str, Task] = {}
  for part in parts:
    for task in part.tasks:
      first = merged.get(task.name, task)
      if _facts(task) != _facts(first):
        raise DataError(
          f'{part.directory}: its task {task.name!r} is {task.kind}, that of the sets before it {first.kind}, or of '
          f'other classes or nme_over; leave one of them out, or mend {FIELD}'
        )
      try:
        merged[task.name] = dataclasses.replace(first, labels=tuple(dict.fromkeys((*first.labels, *task.labels))))
      except ValueError as error:
        raise DataError(f'{part.directory}: {error}, those of other sets among them; mend {FIELD}') from error
  return tuple(merged.values())


def load_split(
  data: DataSet, name: str, tasks: Sequence[Task], *, missing_ok: bool = False, partial_ok: bool = False
) -> Split:
  """Loads one split of a prepared set, or of all sets of a mixture, concatenated, with the labels of these tasks.

  An example's id in a mixture is its row number plus the numbers of rows of the sets before its own.

  Args:
    data: the set or the mixture.
    name: train, val or test.
    tasks: the tasks to load labels for.
    missing_ok: a task that a set knows nothing of gets labels that are masked throughout, as always in a mixture.
    partial_ok: so does a label that a set lacks of a task it knows.

  Raises:
    DataError: if the split has no rows; for `train`, if a set has none there; if the set lacks a task or label.
  """
  rows: list[tuple[Store, range]] = []
  for part in data.parts:
    if name != 'train' and data.split_sizes.get(name) and not part.split_sizes[name]:
      log.warning('warning: split %s of %s has no rows', name, part.directory)
    else:
      rows.append((part, part.split(name)))
  if isinstance(data, Store):
    _refuse_lacking(data, tasks, missing_ok=missing_ok, partial_ok=partial_ok)
  first_rows = dict(zip(data.parts, np.cumsum([0, *(len(part.records) for part in data.parts)]), strict=False))
  return Split(
    images=Images(tuple((part.records, own) for part, own in rows)),
    labels={
      task.name: np.concatenate([_columns(part, part.labels, own, task) for part, own in rows]) for task in tasks
    },
    mask={task.name: np.concatenate([_columns(part, part.mask, own, task) for part, own in rows]) for task in tasks},
    example_id=np.concatenate([first_rows[part] + np.arange(own.start, own.stop) for part, own in rows]).astype(
      np.int32
    ),
    source_size=np.concatenate([part.source_size[own.start : own.stop] for part, own in rows]),
    parts=tuple(len(own) for _, own in rows),
  )


def _refuse_lacking(store: Store, tasks: Sequence[Task], *, missing_ok: bool, partial_ok: bool) -> None:
  known = {task.name: task.labels for task in store.tasks}
  for task in tasks:
    lacking = [label for label in task.labels if label not in known.get(task.group, ())]
    if lacking and not (partial_ok if task.group in known else missing_ok):
      raise DataError(f'{store.directory} has no label {lacking[0]!r} of task {task.group!r}')


def _columns(store: Store, arrays: Mapping[str, np.ndarray], rows: range, task: Task) -> np.ndarray:
  """A task's labels or masks `[n, k]` from a set's arrays; 0 or False where the set does not have them."""
  own = next((one for one in store.tasks if one.name == task.group), None)
  if own is None:
    dtype = bool if arrays is store.mask else task.label_dtype
    return np.zeros((len(rows), *task.label_shape), dtype)
  found = arrays[own.name][rows.start : rows.stop]
  if task.dense or task.labels == own.labels:
    return found
  columns = [own.labels.index(label) if label in own.labels else -1 for label in task.labels]
  return np.where(np.array(columns) >= 0, found[:, columns], np.zeros((), found.dtype))


def identities(data: DataSet, example_ids: np.ndarray) -> np.ndarray:
  """The number of the person on each of these examples, -1 where unknown; sets of a mixture share no person."""
  known, first = [], 0
  for part in data.parts:
    own = np.asarray(part.identity, np.int64)
    known.append(np.where(own >= 0, own + first, -1))
    first += int(own.max(initial=-1)) + 1
  return np.concatenate(known)[example_ids]
