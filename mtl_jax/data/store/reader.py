"""Opens and checks a prepared set; `writer.py` writes one.

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
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np

from mtl_jax.data.source import SPLITS
from mtl_jax.data.store.images import ENCODINGS, Images, Records
from mtl_jax.errors import DataError, one_line
from mtl_jax.kinds import shown
from mtl_jax.platform import json_file
from mtl_jax.tasks import Task, UnknownKindError, from_json

VERSION = 2
VERSIONS = (1, 2)
WHOLE_DIGEST_BYTES = 4 * 2**30  # Larger files are digested at their ends only: seconds, not minutes, to open.
END_BYTES = 64 * 2**20
AGAIN = 'prepare the set again'
_MAKE = 'make one with: mtl-jax prepare SET --source DIR --out'

Schema: TypeAlias = dict[str, Any]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
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

  @property
  def checksum(self) -> str:
    """A digest over the schema and thereby over the digests of all files."""
    return self.schema['checksum']

  @property
  def fit(self) -> str:
    """The way that images came to the stored size; sets of before there was one are squashed."""
    return self.schema.get('fit', 'squash')

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


class Header(msgspec.Struct):
  """The fields of schema.json that a set is opened by; `Schema` is all of it."""

  version: Literal[1, 2]
  image_size: tuple[Positive, Positive]
  tasks: list[dict[str, Any]]
  splits: dict[Literal['train', 'val', 'test'], tuple[Count, Count]]
  num_examples: Positive
  files: dict[str, dict[str, Any]]
  encoding: Literal['decoded', 'jpeg'] = 'decoded'
  fit: Literal['squash', 'crop', 'pad'] = 'squash'


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
  schema = read_schema(directory)
  path = directory / 'schema.json'
  header = json_file.convert(schema, Header, place=path, advice=AGAIN, raises=DataError)
  try:
    tasks = tuple(map(from_json, header.tasks))
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
      raise DataError(f'its tasks are {names}')
    splits = _splits(header)
  except UnknownKindError as error:
    raise DataError(f'{path}: {error}') from error
  except DataError as error:
    raise DataError(f'{path} is not as it was written: {error}; {AGAIN}') from error
  kinds, images = array_kinds(schema, tasks), ENCODINGS[header.encoding]
  check_files(directory, header.files, (images, *kinds, 'names.txt'))
  arrays = {name: load_array(directory / name, *kind) for name, kind in kinds.items()}
  try:
    image_names = (directory / 'names.txt').read_text('utf-8').split('\n')[:-1]
  except (OSError, ValueError) as error:
    raise DataError(f'{directory / "names.txt"}: cannot be read: {one_line(error)}; {AGAIN}') from error
  if len(image_names) != header.num_examples:
    raise DataError(f'{directory / "names.txt"}: holds {len(image_names)} names of {header.num_examples} rows; {AGAIN}')
  records = Records(
    directory / images,
    shape=(*header.image_size, 3),
    offsets=arrays['offsets.npy'] if 'offsets.npy' in arrays else _offsets(directory / images, header),
    crc32=arrays.get('crc32.npy'),
    encoding=header.encoding,
    names=image_names,
    corrupt_share=corrupt_share,
  )
  return Store(
    directory=directory,
    image_size=header.image_size,
    tasks=tasks,
    splits=splits,
    records=records,
    labels={task.name: arrays[f'labels/{task.name}.npy'] for task in tasks},
    mask={task.name: arrays[f'mask/{task.name}.npy'] for task in tasks},
    source_size=arrays['source_size.npy'],
    identity=arrays['identity.npy'],
    names=image_names,
    schema=schema,
  )


def array_kinds(schema: Schema, tasks: Sequence[Task]) -> Kinds:
  """Shape and type of each array of a set, but of its images, by its path."""
  rows = schema['num_examples']
  kinds: Kinds = {'source_size.npy': ((rows, 2), np.int32), 'identity.npy': ((rows,), np.int32)}
  if schema['version'] > 1:
    kinds['crc32.npy'] = ((rows,), np.uint32)
  if schema.get('encoding') == 'jpeg':
    kinds['offsets.npy'] = ((rows + 1,), np.int64)
  for task in tasks:
    kinds[f'labels/{task.name}.npy'] = ((rows, *task.label_shape), task.label_dtype)
    kinds[f'mask/{task.name}.npy'] = ((rows, *task.label_shape), np.bool_)
  return kinds


def _splits(header: Header) -> dict[str, range]:
  """The rows of each split: one after another, as they lie."""
  bounds = [header.splits.get(name, (-1, -1)) for name in SPLITS]
  corners = [0, *(end for _, end in bounds)]
  if [begin for begin, _ in bounds] != corners[:-1] or corners != sorted(corners) or corners[-1] != header.num_examples:
    raise DataError(f'its splits are {shown(header.splits)} of {header.num_examples} rows')
  return {name: range(*bound) for name, bound in zip(SPLITS, bounds, strict=True)}


def _offsets(path: Path, header: Header) -> np.ndarray:
  """Offsets of each image in images.npy, and the end of the last one."""
  mapped: Any = load_array(path, (header.num_examples, *header.image_size, 3), np.uint8, mmap_mode='r')
  if not mapped.flags.c_contiguous:
    raise DataError(f'{path}: its rows do not lie one after another; {AGAIN}')
  return mapped.offset + np.arange(len(mapped) + 1, dtype=np.int64) * (mapped.nbytes // len(mapped))


def read_schema(directory: Path) -> Schema:
  """The content of schema.json. Raises DataError where there is none, or another version, or it was changed."""
  path = directory / 'schema.json'
  if not directory.is_dir():
    raise DataError(f'{directory}: no such folder of a prepared set; {_MAKE} {directory}')
  if not path.is_file():
    raise DataError(f'{directory}: is no prepared set (it has no schema.json); {_MAKE} DIR')
  return parse_schema(path.read_bytes(), place=path)


def parse_schema(content: bytes, *, place: Path | str) -> Schema:
  """The content of a schema.json, which errors call `place`. Raises DataError for another version or a change."""
  schema = json_file.parse(content, Schema, place=place, advice=AGAIN, raises=DataError)
  if schema.get('version') not in VERSIONS:
    known = ' and '.join(map(str, VERSIONS))
    raise DataError(f'{place}: is of version {shown(schema.get("version"))}, but this program reads {known}; {AGAIN}')
  if schema.get('checksum') != checksum(schema):
    raise DataError(f'{place}: was changed since it was prepared; {AGAIN}')
  return schema


def check_files(directory: Path, files: dict[str, dict[str, Any]], names: Sequence[str]) -> None:
  """Raises DataError for a file that is missing or has not the size and digest that it was written with."""
  try:
    for name in names:
      path, written = directory / name, files.get(name, {})
      if not path.is_file():
        raise DataError(f'{path}: is missing; {AGAIN}')
      if (size := path.stat().st_size) != written.get('bytes'):
        raise DataError(f'{path}: holds {size} bytes, not {shown(written.get("bytes"))}; {AGAIN}')
    for name in names:
      if digest(directory / name) != files[name]:
        raise DataError(f'{directory / name}: was changed since it was prepared; {AGAIN}')
  except OSError as error:
    raise DataError(f'{directory}: cannot be read: {one_line(error)}') from error


def load_array(
  path: Path, shape: tuple[int, ...], dtype: type[np.generic], *, mmap_mode: Literal['r'] | None = None
) -> np.ndarray:
  """An array of a file. Raises DataError for another shape or type, or no array."""
  try:
    array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
  except Exception as error:  # NumPy's readers raise half a dozen kinds.
    raise DataError(f'{path}: is no array ({one_line(error)}); {AGAIN}') from error
  if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
    raise DataError(f'{path}: is no array {np.dtype(dtype)} of shape {shape}; {AGAIN}')
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
