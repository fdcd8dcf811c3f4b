"""Reads UTKFace, whose labels are in the file names: AGE_GENDER_RACE_TIME.jpg, in any folders."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

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
ENDINGS = ('.jpg', '.png')
NUM_SHOWN = 3  # Names in a note.


def open_utkface(directory: Path) -> ListedImages:
  """Reads the names of the `.jpg` and `.png` files below a folder, and their bytes.

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
  said = {name: labels for name in found if (labels := labels_of(name)) is not None}
  if not said:
    such = f'as {found[0][-60:]!a} is not' if found else 'in it or below it'
    raise DataError(f'{directory}: is not UTKFace: no image is named AGE_GENDER_RACE_TIME.jpg, {such}')
  copies: dict[str, list[str]] = {}
  for name in said:
    copies.setdefault(content_digest(directory / name), []).append(name)
  images = {names[0]: np.stack([said[name] for name in names]) for names in copies.values()}
  lows, highs = (np.stack([extreme.reduce(all_of) for all_of in images.values()]) for extreme in (np.fmin, np.fmax))
  return ListedImages(
    name='utkface',
    tasks=TASKS,
    notes=tuple(_notes(found, said, list(copies.values()), contradicted=lows < highs)),
    images={name: directory / name for name in images},
    splits=[{0: 'val', 1: 'test'}.get(tenth_of(digest), 'train') for digest in copies],
    labels={task.name: np.where(lows < highs, np.nan, lows)[:, i : i + 1] for i, task in enumerate(TASKS)},
  )


def labels_of(name: str) -> Float32[np.ndarray, '3'] | None:
  """The label of each task in an image's name, or its path; NaN where one is missing, None where all are."""
  match = NAME.fullmatch(name.rpartition('/')[2])
  if match is None or not name.isprintable():  # Names are kept one a line.
    return None
  labels = np.array([meaning.get(match[task], np.nan) for task, meaning in MEANINGS.items()], np.float32)
  return None if np.isnan(labels).all() else labels


def _image_files(directory: Path) -> list[str]:
  """Paths below the directory of all images, in order; hidden files and folders are left out."""

  def refuse(error: OSError) -> None:
    raise DataError(f'{error.filename}: cannot be read: {error.strerror}') from error

  names = []
  for folder, folders, files in os.walk(directory, onerror=refuse):
    folders[:] = [name for name in folders if not name.startswith('.')]
    images = [name for name in files if name.lower().endswith(ENDINGS) and not name.startswith('.')]
    names += [(Path(folder).relative_to(directory) / name).as_posix() for name in images]
  return sorted(names)


def _notes(
  found: Sequence[str], said: dict[str, np.ndarray], copies: list[list[str]], *, contradicted: np.ndarray
) -> Iterator[str]:
  """Lines about what is missing or left out, each with the count and the first names."""
  yield from _note(
    [n for n in found if n not in said], 'images are left out, since their names are not AGE_GENDER_RACE_TIME.jpg'
  )
  for column, task in enumerate(MEANINGS):
    yield from _note(
      [name for name, labels in said.items() if np.isnan(labels[column])], f'names have no readable {task}'
    )
  yield from _note(
    sorted(name for names in copies for name in names[1:]), 'images are left out as byte-identical copies of others'
  )
  for column, task in enumerate(MEANINGS):
    names = [names[0] for names, wrong in zip(copies, contradicted[:, column], strict=True) if wrong]
    yield from _note(names, f'images have copies whose names contradict each other in {task}, which is masked')


def _note(names: list[str], what: str) -> Iterator[str]:
  if names:
    shown = ', '.join(ascii(name[-60:]) for name in names[:NUM_SHOWN])
    yield f'warning: {len(names)} {what}: {shown}{", ..." if len(names) > NUM_SHOWN else ""}'
