"""The contract of readers: records, and the tasks their labels belong to. A new data set starts here."""

import dataclasses
import hashlib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from mtl_jax.errors import DataError
from mtl_jax.kinds import nearest, shown
from mtl_jax.tasks import LandmarkTask, Task

SPLITS = ('train', 'val', 'test')
POINTS = ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth')  # Of most sets; left is the viewer's.
MAX_IDENTITY = 2**31 - 1
_UNWRITABLE = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')  # Names are kept one a line, in UTF-8.

Crop: TypeAlias = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Record:
  """One image of a source, not decoded yet.

  Attributes:
    name: the image's name in its source, unique there.
    split: one of `SPLITS`.
    image: an image file in any format that Pillow reads, or a function that gives the bytes of one: called once, when
      they are needed, from one of several threads.
    labels: for each task `[k]` float32 as the source states them (landmarks in pixels of the source image, or of its
      crop); NaN is a missing label, and a task that is absent has none. A dense task's is a map of the source
      image's size, or of its crop's. In its place a function that gives it may stand, called as that of the image.
    identity: the number of the person, -1 where the source does not say.
    crop: left, top, right and bottom, in pixels of the upright source image, of the part to keep instead of the
      whole; it may reach past the edges, where it is black. The reader shifts landmarks by its left and top.
  """

  name: str
  split: str
  image: Path | Callable[[], bytes]
  labels: Mapping[str, np.ndarray | Callable[[], np.ndarray]]
  identity: int = -1
  crop: Crop | None = None


class Source(Protocol):
  """The interface of data sets that `store_writer.prepare` reads.

  Two attributes may come besides: `notes`, lines to log, and `options`, how the set was read, in JSON's types, which
  the prepared set keeps in its schema.
  """

  @property
  def name(self) -> str: ...

  @property
  def tasks(self) -> tuple[Task, ...]: ...

  def records(self) -> Iterable[Record]:
    """All records, in a fixed order. Raises DataError, naming file and row, at the first bad one."""
    ...


@dataclasses.dataclass(eq=False)
class OpenedSource:
  """A `Source` whose records a function gives."""

  name: str
  tasks: tuple[Task, ...]
  records: Callable[[], Iterator[Record]]
  notes: tuple[str, ...] = ()
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class ListedImages:
  """A `Source` whose annotations were read and checked; its `n` images are only listed.

  Attributes:
    name: the data set's name.
    tasks: what it has labels for.
    notes: lines that the user should see, such as what is missing.
    images: the file of each image, by its name.
    splits: each image's split.
    labels: for each task float32 `[n, k]`, or `n` functions, as in `Record`.
    identity: the number of the person, -1 where unknown, int32 `[n]`; None where it is known of none.
    crops: the part of some images, by name, that is kept, as in `Record`.
    options: how the set was read, in JSON's types.
  """

  name: str
  tasks: tuple[Task, ...]
  notes: tuple[str, ...]
  images: Mapping[str, Path]
  splits: list[str]
  labels: dict[str, Any]
  identity: np.ndarray | None = None
  crops: dict[str, Crop] = dataclasses.field(default_factory=dict)
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def records(self) -> Iterator[Record]:
    for row, (name, path) in enumerate(self.images.items()):
      labels = {task: values[row] for task, values in self.labels.items()}
      identity = -1 if self.identity is None else int(self.identity[row])
      yield Record(name, self.splits[row], path, labels, identity, self.crops.get(name))


def checked(record: Any, tasks: Sequence[Task], *, source: str) -> Record:
  """Checks and normalizes a record. Raises DataError, naming source and record, for any other value."""

  def refuse_unless(kept: bool, what: str) -> None:
    if not kept:
      raise DataError(f'{source}: {getattr(record, "name", "")!r:.80}: {what}; correct the source')

  refuse_unless(isinstance(record, Record), f'records() must give values of Record, not of {type(record).__name__}')
  refuse_unless(isinstance(record.name, str), f'the name of a record must be text, not {shown(record.name)}')
  refuse_unless(not _UNWRITABLE.search(record.name), 'the name has a line break or another control character')
  refuse_unless(record.split in SPLITS, f'is in split {shown(record.split)}, not one of {", ".join(SPLITS)}')
  is_image = isinstance(record.image, str | Path) or callable(record.image)
  refuse_unless(is_image, 'the image must be a Path, or a function that gives its bytes')
  refuse_unless(isinstance(record.labels, Mapping), 'labels must be a dictionary by task')
  known = [task.name for task in tasks]
  for name in record.labels:
    refuse_unless(name in known, f'labels: no choice {shown(name)}; {nearest(str(name), known)}')
  identity = _whole(record.identity)
  in_range = identity is not None and -1 <= identity <= MAX_IDENTITY
  refuse_unless(in_range, f'identity must be a whole number from -1 to {MAX_IDENTITY}, not {shown(record.identity)}')
  crop = record.crop
  if crop is not None:
    sides = [_whole(side) for side in crop] if isinstance(crop, Sequence | np.ndarray) else []
    is_crop = len(sides) == 4 and None not in sides
    refuse_unless(is_crop, f'a crop is left, top, right, bottom in whole pixels, not {shown(crop)}')
    refuse_unless(crop[0] < crop[2] and crop[1] < crop[3], f'the crop {shown(crop)} is empty')
    crop = tuple(sides)
  image = Path(record.image) if isinstance(record.image, str) else record.image
  return dataclasses.replace(record, image=image, identity=identity, crop=crop)


def _whole(value: Any) -> int | None:
  try:
    return operator.index(value)
  except TypeError:
    return None


def content_digest(path: Path) -> str:
  """The sha256 of a file, in hex. Raises DataError for one that cannot be read."""
  try:
    with path.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error.strerror}') from error


def tenth_of(digest: str) -> int:
  """0 to 9 by an image's digest: a split by it is the same everywhere, and equal images are never in two splits."""
  return int(digest[:8], 16) % 10


def split_by_digest(image: Path) -> str:
  """The split of an image of a set that has none of its own: a tenth is `val`, another `test`."""
  return {0: 'val', 1: 'test'}.get(tenth_of(content_digest(image)), 'train')


def held_out(image: Path) -> bool:
  """True for a tenth of images, by their bytes: those of the training set that are for validation."""
  return tenth_of(content_digest(image)) == 0


def landmark_task(columns: Sequence[str], *, name: str = 'landmarks') -> LandmarkTask:
  """The task of columns POINT_x and POINT_y in any order: x and y in turn, points by first appearance.

  Raises:
    ValueError: for a column without its pair, or a left point without its right one.
  """
  points = dict.fromkeys(column[:-2] for column in columns)
  labels = [f'{point}_{axis}' for point in points for axis in 'xy']
  if alone := sorted(set(labels) ^ set(columns)):
    raise ValueError(f'landmarks are named POINT_x and POINT_y in pairs; see {alone[0][:40]!r}')
  return LandmarkTask(name, tuple(labels))


LANDMARKS = landmark_task([f'{point}_{axis}' for point in POINTS for axis in 'xy'])  # The task of most sets.
