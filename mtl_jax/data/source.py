"""The contract of readers: records, and the tasks their labels belong to. A new data set starts here."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mtl_jax.errors import DataError
from mtl_jax.tasks import LandmarkTask, Task

SPLITS = ('train', 'val', 'test')


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
  crop: tuple[int, int, int, int] | None = None


class Source(Protocol):
  """A data set that `store_writer.prepare` can read.

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
class ListedImages:
  """A `Source` whose annotations were read and checked; its `n` images are only listed.

  Attributes:
    name: the data set's name.
    tasks: what it has labels for.
    notes: lines that the user should see, such as what is missing.
    images: the folder below which the images lie.
    image_names: the path of each image below that folder, all different.
    splits: each image's split.
    labels: for each task float32 `[n, k]`, or `n` functions, as in `Record`.
    identity: the number of the person, -1 where unknown, int32 `[n]`; None where it is known of none.
    crops: the part of some images, by name, that is kept, as in `Record`.
    options: how the set was read, in JSON's types.
  """

  name: str
  tasks: tuple[Task, ...]
  notes: tuple[str, ...]
  images: Path
  image_names: list[str]
  splits: list[str]
  labels: dict[str, Any]
  identity: np.ndarray | None = None
  crops: Mapping[str, tuple[int, int, int, int]] = dataclasses.field(default_factory=dict)
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def records(self) -> Iterator[Record]:
    for row, name in enumerate(self.image_names):
      labels = {task: values[row] for task, values in self.labels.items()}
      identity = -1 if self.identity is None else int(self.identity[row])
      yield Record(name, self.splits[row], self.images / name, labels, identity, self.crops.get(name))


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


def landmark_task(columns: Sequence[str]) -> LandmarkTask:
  """The task `landmarks` of columns POINT_x and POINT_y in any order: x and y in turn, points by first appearance.

  Raises:
    ValueError: for a column without its pair, or a left point without its right one.
  """
  points = tuple(dict.fromkeys(column[:-2] for column in columns))
  labels = tuple(f'{point}_{axis}' for point in points for axis in 'xy')
  if sorted(labels) != sorted(columns):
    alone = sorted(set(labels) ^ set(columns))[0]
    raise ValueError(f'landmarks are named POINT_x and POINT_y in pairs; see {alone[:40]!r}')
  for side, other in (('left', 'right'), ('right', 'left')):
    for point in points:
      if point.startswith(side) and other + point.removeprefix(side) not in points:
        raise ValueError(f'{point[:40]!r} needs its {other} partner, since images are mirrored')
  return LandmarkTask('landmarks', labels)
