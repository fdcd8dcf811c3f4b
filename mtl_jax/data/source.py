"""What a reader must give: records, and the tasks their labels belong to. A new data set starts here."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from mtl_jax.tasks import Task

SPLITS = ('train', 'val', 'test')


@dataclasses.dataclass(frozen=True)
class Record:
  """One image of a source, not decoded yet.

  Attributes:
    name: the image's name in its source, unique there.
    split: one of `SPLITS`.
    image: an image file in any format that Pillow reads.
    labels: for each task `[k]` float32 as the source states them (landmarks in pixels of the source image, or of its
      crop); NaN is a missing label, and a task that is absent has none.
    identity: the number of the person, -1 where the source does not say.
    crop: left, top, right and bottom, in pixels of the upright source image, of the part to keep instead of the
      whole; it may reach past the edges, where it is black. The reader shifts landmarks by its left and top.
  """

  name: str
  split: str
  image: Path
  labels: Mapping[str, np.ndarray]
  identity: int = -1
  crop: tuple[int, int, int, int] | None = None


class Source(Protocol):
  """A data set that `store.prepare` can read; an attribute `notes`, lines to log, may come besides."""

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
    labels: for each task float32 `[n, k]`, as in `Record`.
    identity: the number of the person, -1 where unknown, int32 `[n]`; None where it is known of none.
    crops: the part of some images, by name, that is kept, as in `Record`.
  """

  name: str
  tasks: tuple[Task, ...]
  notes: tuple[str, ...]
  images: Path
  image_names: list[str]
  splits: list[str]
  labels: dict[str, np.ndarray]
  identity: np.ndarray | None = None
  crops: Mapping[str, tuple[int, int, int, int]] = dataclasses.field(default_factory=dict)

  def records(self) -> Iterator[Record]:
    for row, name in enumerate(self.image_names):
      labels = {task: values[row] for task, values in self.labels.items()}
      identity = -1 if self.identity is None else int(self.identity[row])
      yield Record(name, self.splits[row], self.images / name, labels, identity, self.crops.get(name))
