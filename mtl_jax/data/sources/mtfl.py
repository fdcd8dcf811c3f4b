"""Reads MTFL in its own layout: training.txt and testing.txt beside the folders of images that they name."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data.source import ListedImages, content_digest, tenth_of
from mtl_jax.data.sources.text_table import PIXELS, Cell, Table, read_rows, refuse_line, rows_apart_by_blanks
from mtl_jax.errors import DataError
from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, Task

POINTS = ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth')  # Left is the viewer's, as the data shows.
# What a row holds after the image's path, in the file's order: every x, every y, then what is marked as 1 or 2.
CELLS: dict[str, Cell] = {
  **{f'{point}_{axis}': PIXELS for axis in 'xy' for point in POINTS},
  'Male': Cell({'1': 1.0, '2': 0.0}.__getitem__, '1 (male) or 2 (female)'),
  'Smiling': Cell({'1': 1.0, '2': 0.0}.__getitem__, '1 (smiling) or 2 (not)'),
  'Eyeglasses': Cell({'1': 1.0, '2': 0.0}.__getitem__, '1 (with glasses) or 2 (without)'),
  'pose': Cell({str(c + 1): float(c) for c in range(5)}.__getitem__, '1 (left profile) to 5 (right profile)'),
}
TASKS: tuple[Task, ...] = (
  LandmarkTask('landmarks', tuple(f'{point}_{axis}' for point in POINTS for axis in 'xy')),
  BinaryTask('gender', ('Male',)),
  BinaryTask('smile', ('Smiling',)),
  BinaryTask('glasses', ('Eyeglasses',)),
  CategoricalTask(
    'pose',
    ('pose',),
    classes=('left_profile', 'left', 'frontal', 'right', 'right_profile'),
    mirrored=(4, 3, 2, 1, 0),
  ),
)
FILES = {'train': 'training.txt', 'test': 'testing.txt'}
MAX_MARGIN = 10.0

Crop = tuple[int, int, int, int]


def open_mtfl(directory: Path, *, crop_margin: float | None = None) -> ListedImages:
  """Reads MTFL's annotations; one of the two files may be missing, and a folder of test faces alone will do.

  MTFL has no validation split. A training image whose bytes have a sha256 digest whose first 8 hex digits are a
  multiple of 10 is in `val`: about 10 %, the same everywhere, and copies of an image under other names go with it.

  Args:
    directory: the folder that holds training.txt and testing.txt.
    crop_margin: crops the images of `train` to a square around their landmarks, grown at each side by this fraction
      of the landmarks' extent; black where that reaches past the image. Images of `val` and `test` stay whole, since
      a crop by the true landmarks would tell the answer. None crops nothing.

  Raises:
    DataError: where the folder is not MTFL, a file is malformed or an image is missing (naming file and line), or the
      margin is not from 0 to 10.
  """
  directory = Path(directory)
  if crop_margin is not None and not 0 <= crop_margin <= MAX_MARGIN:
    raise DataError(f'crop_margin must be from 0 to {MAX_MARGIN:g}, not {crop_margin}')
  if not directory.is_dir():
    raise DataError(f'{directory}: no such folder; give the one that holds training.txt and testing.txt')
  paths = {split: directory / name for split, name in FILES.items()}
  tables = {split: read_table(path) for split, path in paths.items() if path.is_file()}
  if not tables:
    raise DataError(f'{directory}: is not MTFL: neither {" nor ".join(FILES.values())} is here')
  if len(tables) == 2:
    _refuse_common_images(tables['train'], tables['test'])
  _check_images(directory, tables)

  notes = [
    f'warning: {FILES[split]} is missing, so there are no {split} images' for split in FILES if split not in tables
  ]
  splits = [_train_or_val(directory / name) for name in tables['train'].names] if 'train' in tables else []
  splits += ['test'] * len(tables['test'].names) if 'test' in tables else []
  crops: dict[str, Crop] = {}
  if crop_margin is not None and 'train' in tables:
    crops = _crops(tables['train'], splits, margin=crop_margin)
    notes.append(f'train images are cropped to their landmarks and a margin of {crop_margin:g}; others stay whole')
  labels = [_labels(table, crops) for table in tables.values()]
  return ListedImages(
    name='mtfl',
    tasks=TASKS,
    notes=tuple(notes),
    images=directory,
    image_names=[name for table in tables.values() for name in table.names],
    splits=splits,
    labels={task.name: np.concatenate([part[task.name] for part in labels]) for task in TASKS},
    crops=crops,
    options={} if crop_margin is None else {'crop_margin': crop_margin},
  )


def read_table(path: Path) -> Table:
  """The rows of training.txt or testing.txt, checked; images are named with `/`, whatever the file has.

  Raises:
    DataError: for bad text, naming the file and the line.
  """
  rows = ((line, [row[0].replace('\\', '/'), *row[1:]]) for line, row in rows_apart_by_blanks(path))
  return read_rows(path, rows, CELLS)


def square_around(points: np.ndarray, margin: float) -> Crop:
  """A square around points `[p, 2]` in pixels, at least `margin` times their larger extent away from them.

  Returns:
    Left, top, right and bottom in whole pixels; they may lie outside the image.
  """
  low, high = points.min(0), points.max(0)
  side = int(np.ceil((high - low).max() * (1 + 2 * margin))) + 2  # Rounding left and top then uncovers no point.
  left, top = (int(corner) for corner in np.floor((low + high - side) / 2))
  return left, top, left + side, top + side


def _crops(table: Table, splits: Sequence[str], *, margin: float) -> dict[str, Crop]:
  """The squares of those images of training.txt that are in `train`; `splits` begins with the table's rows."""
  crops = {}
  points = _columns(table, TASKS[0]).reshape(-1, len(POINTS), 2)
  for row, name in enumerate(table.names):
    if splits[row] != 'train':
      continue
    if not np.ptp(points[row], axis=0).any():
      refuse_line(table.path, table.lines[row], f'the landmarks of {name[:40]!r} are one point; correct the row')
    crops[name] = square_around(points[row], margin)
  return crops


def _labels(table: Table, crops: Mapping[str, Crop]) -> dict[str, np.ndarray]:
  """Labels of each task, float32 `[n, k]`; landmarks of a cropped image are counted from the crop's corner."""
  labels = {task.name: _columns(table, task) for task in TASKS}
  corners = np.array([crops.get(name, (0, 0))[:2] for name in table.names])
  labels['landmarks'] = labels['landmarks'] - np.tile(corners, len(POINTS))
  return {name: values.astype(np.float32) for name, values in labels.items()}


def _columns(table: Table, task: Task) -> np.ndarray:
  return table.values[:, [table.columns.index(label) for label in task.labels]]


def _train_or_val(image: Path) -> str:
  """`val` or `train`, for an image that training.txt names, by its bytes."""
  return 'val' if tenth_of(content_digest(image)) == 0 else 'train'


def _refuse_common_images(train: Table, test: Table) -> None:
  line_of = dict(zip(train.names, train.lines, strict=True))
  for name, line in zip(test.names, test.lines, strict=True):
    if name in line_of:
      there = f'{train.path.name} in line {line_of[name]}'
      refuse_line(test.path, line, f'{name[:40]!r} was already named by {there}; remove one of the rows')


def _check_images(directory: Path, tables: Mapping[str, Table]) -> None:
  """Raises DataError for a row without an image file; images must lie in folders below the directory."""
  folders = [folder for folder in directory.iterdir() if folder.is_dir()]
  there = {f'{folder.name}/{entry.name}' for folder in folders for entry in os.scandir(folder)}
  for table in tables.values():
    missing = [row for row, name in enumerate(table.names) if name not in there]
    if missing:
      such = f'{len(missing)} such images; unpack them all or remove their rows'
      name = table.names[missing[0]][:60]
      refuse_line(table.path, table.lines[missing[0]], f'{name!r} is not in {directory} ({such})')
