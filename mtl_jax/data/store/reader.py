"""The files of a prepared set, opened and checked; `writer.py` makes one.

    DIR/schema.json         what is in it, with the digests of the files; written last
    DIR/images.npy          uint8 [n, h, w, 3]; or, with --encoding jpeg,
    DIR/images.bin          JPEGs of that size, one after another, and
    DIR/offsets.npy         int64 [n + 1], where in images.bin each begins, and where the last one ends, in bytes
    DIR/crc32.npy           uint32 [n], of the bytes of each image in its file
    DIR/labels/<task>.npy   float32 [n, k], 0 where the label is missing
    DIR/mask/<task>.npy     bool [n, k], False where the label is missing; a dense task's labels are uint8 [n, h, w]
    DIR/source_size.npy     int32 [n, 2], width and height of the source image, or of the part kept, in pixels
    DIR/identity.npy        int32 [n], the number of the person, -1 where unknown
    DIR/names.txt           the image's name in its source, one a line

Rows are ordered train, val, test, so that each split is a range; an example's id is its row number. Sets of version 1,
which are decoded and have no crc32.npy, are read too.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mtl_jax.data.source import SPLITS
from mtl_jax.data.store.images import ENCODINGS, Images, Records
from mtl_jax.errors import DataError, one_line
from mtl_jax.tasks import Task, from_json

VERSION = 2
VERSIONS = (1, 2)
WHOLE_DIGEST_BYTES = 4 * 2**30  # Larger files are digested at their ends only: seconds, not minutes, to open.
END_BYTES = 64 * 2**20
_MAKE = 'make one with: mtl-jax prepare SET --source DIR --out'

Schema: TypeAlias = dict[str, Any]
Kinds: TypeAlias = dict[str, tuple[tuple[int, ...], type[np.generic]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """A prepared set of `n` examples, opened.

  Attributes:
    directory: where it is.
    image_size: height and width of the stored images in pixels.
    tasks: the tasks that it has labels for.
    splits: the rows of each split; some may be empty.
    records: the images, uint8 `[n, h, w, 3]`, read when asked for.
    labels: for each task float32 `[n, k]`, or uint8 `[n, h, w]`, 0 where missing.
    mask: for each task bool of the same shape, False where missing.
    source_size: width and height of the source images, or of the parts kept, in pixels, int32 `[n, 2]`.
    identity: the number of the person, -1 where unknown, int32 `[n]`.
    names: the images' names in their source.
    schema: what schema.json holds.
    checksum: a digest over the schema and thereby over the digests of all files.
  """

  directory: Path
  image_size: tuple[int, int]
  tasks: tuple[Task, ...]
  splits: dict[str, range]
  records: Records
  labels: dict[str, np.ndarray]
  mask: dict[str, np.ndarray]
  source_size: np.ndarray
  identity: np.ndarray
  names: list[str]
  schema: Schema
  checksum: str

  @property
  def parts(self) -> 'tuple[Store, ...]':
    """The one set that this is; a `Mixture` has several."""
    return (self,)

  @property
  def images(self) -> Images:
    """All images, uint8 `[n, h, w, 3]`."""
    return Images(((self.records, range(len(self.records))),))

  @property
  def split_sizes(self) -> dict[str, int]:
    """The number of rows of each split."""
    return {name: len(rows) for name, rows in self.splits.items()}

  def split(self, name: str) -> range:
    """The rows of a split. Raises DataError where it is unknown or has none."""
    if not self.splits.get(name):
      there = ', '.join(f'{split} ({len(rows)})' for split, rows in self.splits.items() if rows)
      raise DataError(f'split {name!r} of {self.directory} has no rows; it has {there}')
    return self.splits[name]


def open_store(directory: Path, *, corrupt_share: float = 0.0) -> Store:
  """Opens a prepared set after checking its files.

  Every file is read and compared with its digest; of a file above 4 GiB (images.npy) only the size and the first and
  last 64 MiB are, and of images.bin only the size. Each image is compared with its CRC whenever it is read.

  Args:
    directory: of the set.
    corrupt_share: largest share of its images that may turn out to be corrupt when they are read.

  Raises:
    DataError: where there is no prepared set, or another version of it, or its files are not what was written.
  """
  directory = Path(directory)
  try:
    schema = read_schema(directory)
    tasks = _tasks(schema)
    height, width = _image_size(schema)
    kinds, images = array_kinds(schema, tasks), ENCODINGS[schema.get('encoding', 'decoded')]
    check_files(directory, {path: schema['files'][path] for path in (images, *kinds, 'names.txt')})
    arrays = {path: _load(directory / path, *kind) for path, kind in kinds.items()}
    names = (directory / 'names.txt').read_text('utf-8').split('\n')[:-1]
    records = Records(
      directory / images,
      shape=(height, width, 3),
      offsets=arrays['offsets.npy'] if 'offsets.npy' in arrays else _offsets(directory / images, schema),
      crc32=arrays.get('crc32.npy'),
      encoding=schema.get('encoding', 'decoded'),
      names=names,
      corrupt_share=corrupt_share,
    )
    splits = _splits(schema)
    if len(names) != len(records):
      raise ValueError(f'{len(names)} names of {len(records)} rows')
  except OSError as error:
    raise DataError(f'{directory}: cannot be read: {one_line(error)}') from error
  except (ArithmeticError, AttributeError, EOFError, LookupError, RecursionError, TypeError, ValueError) as error:
    raise DataError(f'{directory / "schema.json"}: is malformed ({one_line(error)}); prepare the set again') from error
  return Store(
    directory=directory,
    image_size=(height, width),
    tasks=tasks,
    splits=splits,
    records=records,
    labels={task.name: arrays[f'labels/{task.name}.npy'] for task in tasks},
    mask={task.name: arrays[f'mask/{task.name}.npy'] for task in tasks},
    source_size=arrays['source_size.npy'],
    identity=arrays['identity.npy'],
    names=names,
    schema=schema,
    checksum=schema['checksum'],
  )


def array_kinds(schema: Schema, tasks: Sequence[Task]) -> Kinds:
  """Shape and type of each array of a set, but of its images, by its path."""
  rows = _whole(schema['num_examples'], least=1)
  kinds: Kinds = {'source_size.npy': ((rows, 2), np.int32), 'identity.npy': ((rows,), np.int32)}
  if schema['version'] > 1:
    kinds['crc32.npy'] = ((rows,), np.uint32)
  if schema.get('encoding') == 'jpeg':
    kinds['offsets.npy'] = ((rows + 1,), np.int64)
  for task in tasks:
    kinds[f'labels/{task.name}.npy'] = ((rows, *task.label_shape), task.label_dtype)
    kinds[f'mask/{task.name}.npy'] = ((rows, *task.label_shape), np.bool_)
  return kinds


def _tasks(schema: Schema) -> tuple[Task, ...]:
  try:
    tasks = tuple(from_json(task) for task in schema['tasks'])
  except DataError as error:
    raise ValueError(str(error)) from error
  names = [task.name for task in tasks]
  for named in (names, *(task.labels for task in tasks)):
    if not (named and all(isinstance(name, str) for name in named) and len(set(named)) == len(named)):
      raise ValueError(f'{named!r} are no names')
  return tasks


def _image_size(schema: Schema) -> tuple[int, int]:
  height, width = (_whole(side, least=1) for side in schema['image_size'])
  return height, width


def _splits(schema: Schema) -> dict[str, range]:
  """The rows of each split: one after another, as they lie."""
  bounds = [[_whole(bound) for bound in schema['splits'][name]] for name in SPLITS]
  begins, ends = zip(*bounds, strict=True)
  if begins != (0, *ends[:-1]) or ends[-1] != schema['num_examples'] or sorted(ends) != list(ends):
    raise ValueError(f'splits {schema["splits"]} of {schema["num_examples"]} rows')
  return {name: range(begin, end) for name, (begin, end) in zip(SPLITS, bounds, strict=True)}


def _whole(value: Any, least: int = 0) -> int:
  if type(value) is not int or value < least:
    raise ValueError(f'{value!r} is no whole number of at least {least}')
  return value


def _offsets(path: Path, schema: Schema) -> np.ndarray:
  """Offsets of each image in images.npy, and the end of the last one."""
  mapped: Any = np.load(path, mmap_mode='r')
  shape = (schema['num_examples'], *_image_size(schema), 3)
  if mapped.shape != shape or mapped.dtype != np.uint8 or not mapped.flags.c_contiguous:
    raise ValueError(f'{path.name} is {mapped.dtype} {mapped.shape}')
  return mapped.offset + np.arange(len(mapped) + 1, dtype=np.int64) * (mapped.nbytes // len(mapped))


def read_schema(directory: Path) -> Schema:
  """The content of schema.json. Raises DataError where there is none, or another version, or it was changed."""
  path = directory / 'schema.json'
  if not directory.is_dir():
    raise DataError(f'{directory}: no such folder of a prepared set; {_MAKE} {directory}')
  if not path.is_file():
    raise DataError(f'{directory}: is no prepared set (it has no schema.json); {_MAKE} DIR')
  schema = json.loads(path.read_text('utf-8'))
  if schema['version'] not in VERSIONS:
    known = ' and '.join(map(str, VERSIONS))
    raise DataError(
      f'{path}: is of version {schema["version"]!r}, but this program reads {known}; prepare the set again'
    )
  if schema['checksum'] != checksum(schema):
    raise DataError(f'{path}: was changed since it was prepared; prepare the set again')
  return schema


def check_files(directory: Path, files: dict[str, dict[str, Any]]) -> None:
  """Raises DataError for a file that is missing or has not the size and digest that it was written with."""
  for path, written in files.items():
    if not (directory / path).is_file():
      raise DataError(f'{directory / path}: is missing; prepare the set again')
    if (size := (directory / path).stat().st_size) != written['bytes']:
      raise DataError(f'{directory / path}: holds {size} bytes, not {written["bytes"]}; prepare the set again')
  for path, written in files.items():
    if digest(directory / path) != written:
      raise DataError(f'{directory / path}: was changed since it was prepared; prepare the set again')


def _load(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
  array = np.load(path)
  if array.shape != shape or array.dtype != dtype:
    raise ValueError(f'{path.name} is {array.dtype} {array.shape}')
  return array


def digest(path: Path) -> dict[str, Any]:
  """Size and sha256 of a file, or of the two ends of a very large one; of JPEGs the size: they have their CRCs."""
  size = path.stat().st_size
  if path.name == ENCODINGS['jpeg']:
    return {'bytes': size}
  with path.open('rb') as file:
    if size <= WHOLE_DIGEST_BYTES:
      return {'bytes': size, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}
    ends = hashlib.sha256(file.read(END_BYTES))
    file.seek(-END_BYTES, os.SEEK_END)
    ends.update(file.read())
  return {'bytes': size, 'sha256_of_ends': ends.hexdigest()}


def checksum(schema: Schema) -> str:
  """The checksum over all that the schema says."""
  content = {key: value for key, value in schema.items() if key != 'checksum'}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
