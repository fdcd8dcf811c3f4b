"""What a reader must give: records, and the tasks their labels belong to. A new data set starts here."""

import dataclasses
from collections.abc import Iterable, Mapping
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
    labels: for each task `[k]` float32 as the source states them (landmarks in pixels of the source image);
      NaN is a missing label, and a task that is absent has none.
    identity: the number of the person, -1 where the source does not say.
  """

  name: str
  split: str
  image: Path
  labels: Mapping[str, np.ndarray]
  identity: int = -1


class Source(Protocol):
  """A data set that `store.prepare` can read; an attribute `notes`, lines to log, may come besides."""

  @property
  def name(self) -> str: ...

  @property
  def tasks(self) -> tuple[Task, ...]: ...

  def records(self) -> Iterable[Record]:
    """All records, in a fixed order. Raises DataError, naming file and row, at the first bad one."""
    ...
