"""Reads MTFL in its own layout: training.txt and testing.txt beside the folders of images that they name."""

import dataclasses
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
  source, tables = read_official(directory, FILES, _read_table, name='MTFL', tasks=TASKS)
  if crop_margin is None:
    return source
  points = np.concatenate([table.values[:, : 2 * len(POINTS)] for table in tables.values()])  # Every x, every y.
  points = points.reshape(-1, 2, len(POINTS)).swapaxes(1, 2)
  for row, (image, split) in enumerate(zip(source.images, source.splits, strict=True)):
    if split == 'train':
      if not np.ptp(points[row], axis=0).any():
        tables['train'].refuse(image, f'the landmarks of {image[:40]!r} are one point; correct the row')
      source.crops[image] = square_around(points[row], crop_margin)
      points[row] -= source.crops[image][:2]
  source.labels['landmarks'] = points.reshape(len(points), -1).astype(np.float32)
  note = f'train images are cropped to their landmarks and a margin of {crop_margin:g}; others stay whole'
  notes = (*source.notes, *([note] if 'train' in tables else []))
  return dataclasses.replace(source, notes=notes, options={'crop_margin': crop_margin})


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
