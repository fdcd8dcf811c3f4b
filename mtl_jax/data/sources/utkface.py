"""Reads UTKFace, whose labels are in the file names: AGE_GENDER_RACE_TIME.jpg, in any folders."""

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mtl_jax.data.source import ListedImages, content_digest, tenth_of
from mtl_jax.errors import DataError
from mtl_jax.tasks import BinaryTask, CategoricalTask, RegressionTask, Task

MAX_AGE = 116  # The set says 0 to 116; nobody in it is 0.
TASKS: tuple[Task, ...] = (
  RegressionTask('age', ('age',)),
  BinaryTask('gender', ('Male',)),
  CategoricalTask('race', ('race',), classes=('white', 'black', 'asian', 'indian', 'other')),
)
# What a name may say in each task's place, as a label.
MEANINGS: dict[str, dict[str, float]] = {
  'age': {str(age): float(age) for age in range(1, MAX_AGE + 1)},
  'gender': {'0': 1.0, '1': 0.0},  # UTKFace counts women; here, as everywhere, 1 is male.
  'race': {str(race): float(race) for race in range(5)},
}
# Some real names lack the race, others the dot before jpg or have a blank there: what follows the digits is ignored.
NAME = re.compile(r'(?P<age>[^_]*)_(?P<gender>[^_]*)(?:_(?P<race>[^_]*))?_[0-9]+[^_0-9][^_]*', re.ASCII)
NUM_SHOWN = 3  # Names in a note.


@dataclasses.dataclass
class Image:
  """An image and what its copies' names say.

  Attributes:
    name: the path of the first copy.
    digest: sha256 of the file, in hex.
    labels: by task, NaN where a name does not say.
    contradicted: the tasks in which names contradict each other; their labels are NaN.
  """

  name: str
  digest: str
  labels: dict[str, float]
  contradicted: set[str] = dataclasses.field(default_factory=set)

  def merge(self, labels: dict[str, float]) -> None:
    """Takes from a copy's name what this one's lacked; drops what the two say differently."""
    for task, label in labels.items():
      if np.isnan(self.labels[task]) and task not in self.contradicted:
        self.labels[task] = label
      elif not np.isnan(label) and label != self.labels[task]:
        self.labels[task] = np.nan
        self.contradicted.add(task)


def open_utkface(directory: Path) -> ListedImages:
  """Reads the names of the `.jpg` files below a folder, and their bytes.

  A part of a name that cannot be read (an age outside 1 to 116, a race that is missing) is a missing label; an image
  whose name says nothing is left out. Of byte-identical files the first by path is kept; where their names contradict
  each other, the label is missing. `notes` counts all of these.

  UTKFace has no official split. The first 8 hex digits of the sha256 digest of an image's bytes, modulo 10, put it in
  `val` (0), `test` (1) or `train` (the rest), whatever its name.

  Raises:
    DataError: where there is no such folder, no image whose name says something, or a file that cannot be read.
  """
  directory = Path(directory)
  if not directory.is_dir():
    raise DataError(f'{directory}: no such folder; give the one that holds UTKFace')
  found = _image_files(directory)
  labels = {name: labels for name in found if (labels := labels_of(name)) is not None}
  if not labels:
    such = f'as {found[0][-60:]!a} is not' if found else 'in it or below it'
    raise DataError(f'{directory}: is not UTKFace: no image is named AGE_GENDER_RACE_TIME.jpg, {such}')
  images, copies = _without_copies(directory, labels)
  return ListedImages(
    name='utkface',
    tasks=TASKS,
    notes=tuple(_notes(found, labels, images, copies)),
    images=directory,
    image_names=[image.name for image in images],
    splits=[_split(image.digest) for image in images],
    labels={
      task.name: np.array([[image.labels[task.name]] for image in images], np.float32).reshape(-1, 1) for task in TASKS
    },
  )


def labels_of(name: str) -> dict[str, float] | None:
  """Labels of each task in an image's name, or its path; NaN where one is missing, None where all are."""
  match = NAME.fullmatch(name.rpartition('/')[2])
  if match is None or not name.isprintable():  # Names are kept one a line.
    return None
  labels = {task: meaning.get(match[task], np.nan) for task, meaning in MEANINGS.items()}
  return None if all(np.isnan(label) for label in labels.values()) else labels


def _image_files(directory: Path) -> list[str]:
  """Paths below the directory of all `.jpg` files, in order; hidden files and folders are left out."""

  def refuse(error: OSError) -> None:
    raise DataError(f'{error.filename}: cannot be read: {error.strerror}') from error

  names = []
  for folder, folders, files in os.walk(directory, onerror=refuse):
    folders[:] = [name for name in folders if not name.startswith('.')]
    below = Path(folder).relative_to(directory)
    names += [(below / name).as_posix() for name in files if name.lower().endswith('.jpg') and not name.startswith('.')]
  return sorted(names)


def _without_copies(directory: Path, labels: dict[str, dict[str, float]]) -> tuple[list[Image], list[str]]:
  """One image for all files of the same bytes, and the names of the files left out."""
  images: dict[str, Image] = {}
  copies = []
  for name, said in labels.items():
    digest = content_digest(directory / name)
    if digest in images:
      images[digest].merge(said)
      copies.append(name)
    else:
      images[digest] = Image(name, digest, dict(said))
  return list(images.values()), copies


def _split(digest: str) -> str:
  return {0: 'val', 1: 'test'}.get(tenth_of(digest), 'train')


def _notes(
  found: Iterable[str], labels: dict[str, dict[str, float]], images: Iterable[Image], copies: list[str]
) -> Iterable[str]:
  """Lines about what is missing or left out, each with the count and the first names."""
  skipped = [name for name in found if name not in labels]
  if skipped:
    yield _note(skipped, 'images are left out, since their names are not AGE_GENDER_RACE_TIME.jpg')
  for task in MEANINGS:
    lacking = [name for name, said in labels.items() if np.isnan(said[task])]
    if lacking:
      yield _note(lacking, f'names have no readable {task}')
  if copies:
    yield _note(copies, 'images are left out as byte-identical copies of others')
  for task in MEANINGS:
    contradicted = [image.name for image in images if task in image.contradicted]
    if contradicted:
      yield _note(contradicted, f'images have copies whose names contradict each other in {task}, which is masked')


def _note(names: list[str], what: str) -> str:
  shown = ', '.join(ascii(name[-60:]) for name in names[:NUM_SHOWN])
  return f'warning: {len(names)} {what}: {shown}{", ..." if len(names) > NUM_SHOWN else ""}'
