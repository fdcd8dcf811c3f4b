"""Reads the Clothing Attributes Dataset (Chen, Gallagher, Girod 2012): images/, and a .mat file for each label."""

import io
import warnings
from pathlib import Path

import numpy as np
import scipy.io
from jaxtyping import Float64

from mtl_jax.data.source import ListedImages, split_by_digest
from mtl_jax.errors import DataError, one_line
from mtl_jax.tasks import BinaryTask, CategoricalTask, Task

# fmt: off
ATTRIBUTES = (  # Files NAME_GT.mat, as are those of the other labels.
  'necktie', 'collar', 'placket', 'skin_exposure', 'scarf', 'pattern_solid', 'pattern_floral', 'pattern_spot',
  'pattern_graphics', 'pattern_plaid', 'pattern_stripe', 'red', 'yellow', 'green', 'cyan', 'blue', 'purple', 'brown',
  'white', 'gray', 'black', 'many_colors',
)
# fmt: on
CHOICES = {  # What 1, 2 ... mean.
  'category': ('shirt', 'sweater', 't_shirt', 'outerwear', 'suit', 'tank_top', 'dress'),
  'neckline': ('v_shape', 'round', 'other'),
  'sleeves': ('no_sleeves', 'short_sleeves', 'long_sleeves'),
}
STEMS = {'sleeves': 'sleevelength'}  # Of files that are not named as their task is.
TASKS: tuple[Task, ...] = (
  *(CategoricalTask(name, (name,), classes=classes) for name, classes in CHOICES.items()),
  BinaryTask('gender', ('Male',)),
  BinaryTask('attributes', ATTRIBUTES),
)
MAX_BYTES, MAX_ROWS = 2**20, 2**20  # Of a file: those of 1,856 images take 15 kB. A compressed one can grow a lot.
NUMBERS = ('double', 'single', *(f'{sign}int{bits}' for sign in ('', 'u') for bits in (8, 16, 32, 64)))


def open_clothing(directory: Path) -> ListedImages:
  """Reads images/000001.jpg and on, and of each label `GT` of labels/NAME_GT.mat, a number for each image.

  NaN, where the annotators disagreed, is a missing label. There is no official split: the first 8 hex digits of the
  sha256 digest of an image's bytes, modulo 10, put it in `val` (0), `test` (1) or `train` (the rest).

  Raises:
    DataError: where a file is missing, is no such file (naming it, and the row), or is not of as many rows as the rest.
  """
  directory = Path(directory)
  if not (directory / 'labels').is_dir():
    raise DataError(f'{directory}: is not the Clothing Attributes Dataset: the folder labels is missing')
  columns: dict[str, np.ndarray] = {}
  for name in (*CHOICES, 'gender', *ATTRIBUTES):
    path = directory / 'labels' / f'{STEMS.get(name, name)}_GT.mat'
    columns[name] = (_numbers(path, len(CHOICES.get(name, ('no', 'yes')))) - 1).astype(np.float32)[:, None]
    if len(columns[name]) != (num := len(columns['category'])):
      raise DataError(f'{path}: has {len(columns[name])} rows, category_GT.mat {num}; fetch both again')
  images = {(name := f'{row:06d}.jpg'): directory / 'images' / name for row in range(1, len(columns['category']) + 1)}
  return ListedImages(
    name='clothing',
    tasks=TASKS,
    notes=(),
    images=images,
    splits=[split_by_digest(path) for path in images.values()],
    labels={
      **{name: columns[name] for name in CHOICES},
      'gender': 1 - columns['gender'],  # The set counts women; here, as everywhere, 1 is male.
      'attributes': np.concatenate([columns[name] for name in ATTRIBUTES], axis=1),
    },
  )


def _numbers(path: Path, most: int) -> Float64[np.ndarray, ' n']:
  """`GT` of a file: numbers from 1 to `most`, or NaN. Nothing else of the file is made into Python's objects."""
  try:
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
      raise ValueError(f'it has {len(content)} bytes, more than {MAX_BYTES}')
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      kinds = [kind for name, *kind in scipy.io.whosmat(io.BytesIO(content)) if name == 'GT']
      if len(kinds) != 1 or kinds[0][1] not in NUMBERS:
        raise ValueError('it has no numbers GT')
      if not 1 <= max(shape := kinds[0][0]) == np.prod(shape) <= MAX_ROWS:
        raise ValueError(f'GT has shape {shape}, not one number for each image')
      numbers = scipy.io.loadmat(io.BytesIO(content), variable_names=['GT'])['GT'].reshape(-1)
    if numbers.dtype.kind not in 'iuf':
      raise ValueError('GT is not of real numbers')
  except Exception as error:  # SciPy's readers raise a dozen kinds on bad bytes.
    raise DataError(f'{path}: is no file of labels ({one_line(error)}); fetch it again') from error
  wrong = ~(np.isnan(numbers) | np.isin(numbers, np.arange(1, most + 1)))
  if wrong.any():
    row = int(wrong.argmax())
    raise DataError(f'{path}: row {row + 1} is {numbers[row]:g}, not 1 to {most} or NaN; fetch it again')
  return numbers.astype(np.float64)
