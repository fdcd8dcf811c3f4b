"""Reads MTFL in its own layout: training.txt and testing.txt beside the folders of images that they name."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtl_jax.data.source import LANDMARKS, POINTS, Crop, ListedImages
from mtl_jax.data.sources.text_table import PIXELS, Cell, Table, read_lines, read_official, read_table
from mtl_jax.errors import DataError
from mtl_jax.tasks import BinaryTask, CategoricalTask, Task


def _marked(yes: str, no: str) -> Cell:
  return Cell({'1': 1.0, '2': 0.0}.__getitem__, f'1 ({yes}) or 2 ({no})')


# What a row holds after the image's path, in the file's order: every x, every y, then what is marked as 1 or 2.
CELLS: dict[str, Cell] = {
  **{f'{point}_{axis}': PIXELS for axis in 'xy' for point in POINTS},
  'Male': _marked('male', 'female'),
  'Smiling': _marked('smiling', 'not'),
  'Eyeglasses': _marked('with glasses', 'without'),
  'pose': Cell({str(c + 1): float(c) for c in range(5)}.__getitem__, '1 (left profile) to 5 (right profile)'),
}
TASKS: tuple[Task, ...] = (
  LANDMARKS,
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
  found = read_official(directory, FILES, _read_table, name='MTFL')
  notes = list(found.notes)
  crops: dict[str, Crop] = {}
  if crop_margin is not None and 'train' in found.tables:
    in_train = [name for name, split in zip(found.images, found.splits, strict=True) if split == 'train']
    crops = _crops(found.tables['train'], in_train, margin=crop_margin)
    notes.append(f'train images are cropped to their landmarks and a margin of {crop_margin:g}; others stay whole')
  labels = [_labels(table, crops) for table in found.tables.values()]
  return ListedImages(
    name='mtfl',
    tasks=TASKS,
    notes=tuple(notes),
    images=found.images,
    splits=found.splits,
    labels={task.name: np.concatenate([part[task.name] for part in labels]) for task in TASKS},
    crops=crops,
    options={} if crop_margin is None else {'crop_margin': crop_margin},
  )


def _read_table(path: Path) -> Table:
  """The rows of training.txt or testing.txt, checked; images are named with `/`, whatever the file has."""
  return read_table(path, ((line, [row[0].replace('\\', '/'), *row[1:]]) for line, row in read_lines(path)), CELLS)


def square_around(points: np.ndarray, margin: float) -> Crop:
  """A square around points `[p, 2]` in pixels, at least `margin` times their larger extent away from them.

  Returns:
    Left, top, right and bottom in whole pixels; they may lie outside the image.
  """
  low, high = points.min(0), points.max(0)
  side = int(np.ceil((high - low).max() * (1 + 2 * margin))) + 2  # Rounding left and top then uncovers no point.
  left, top = (int(corner) for corner in np.floor((low + high - side) / 2))
  return left, top, left + side, top + side


def _points(table: Table) -> np.ndarray:
  """The landmarks in pixels, float64 `[n, 5, 2]`."""
  return table.values[:, : 2 * len(POINTS)].reshape(-1, 2, len(POINTS)).swapaxes(1, 2)


def _crops(table: Table, names: list[str], *, margin: float) -> dict[str, Crop]:
  """The squares of images of training.txt."""
  points = dict(zip(table.lines, _points(table), strict=True))
  for name in names:
    if not np.ptp(points[name], axis=0).any():
      table.refuse(name, f'the landmarks of {name[:40]!r} are one point; correct the row')
  return {name: square_around(points[name], margin) for name in names}


def _labels(table: Table, crops: Mapping[str, Crop]) -> dict[str, np.ndarray]:
  """Labels of each task, float32 `[n, k]`; landmarks of a cropped image are counted from the crop's corner."""
  corners = np.array([crops.get(name, (0, 0))[:2] for name in table.lines])
  landmarks = (_points(table) - corners[:, None]).reshape(len(corners), -1).astype(np.float32)
  return {TASKS[0].name: landmarks, **{task.name: table.select(task.labels) for task in TASKS[1:]}}
