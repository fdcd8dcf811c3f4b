"""Writes a source into a folder of plain arrays, whole or not at all, and opens such a folder, checked.

    DIR/schema.json         what is in it, with the digest of every file; written last
    DIR/images.npy          uint8 [n, h, w, 3]
    DIR/labels/<task>.npy   float32 [n, k], 0 where the label is missing
    DIR/mask/<task>.npy     bool [n, k], False where the label is missing
    DIR/source_size.npy     int32 [n, 2], width and height of the source image, or of the part kept, in pixels
    DIR/identity.npy        int32 [n], the number of the person, -1 where unknown
    DIR/names.txt           the image's name in its source, one a line

Rows are ordered train, val, test, so that each split is a range; an example's id is its row number.
"""

import collections
import dataclasses
import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from mtl_jax.data.new_folder import new_folder, sync
from mtl_jax.data.source import SPLITS, Record, Source
from mtl_jax.errors import DataError, one_line
from mtl_jax.tasks import Task, from_json

VERSION = 1
WHOLE_DIGEST_BYTES = 4 * 2**30  # Larger files are digested at their ends only: seconds, not minutes, to open.
END_BYTES = 64 * 2**20
_WORKERS = min(32, os.cpu_count() or 1)  # Beyond that, threads wait for the interpreter.
_MAKE = 'make one with: mtl-jax prepare SET --source DIR --out'

Schema: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """A prepared set of `n` examples, opened.

  Attributes:
    directory: where it is.
    image_size: height and width of the stored images in pixels.
    tasks: the tasks that it has labels for.
    splits: the rows of each split; some may be empty.
    images: uint8 `[n, h, w, 3]`, mapped from the disk.
    labels: for each task float32 `[n, k]`, 0 where missing.
    mask: for each task bool `[n, k]`, False where missing.
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
  images: np.ndarray
  labels: dict[str, np.ndarray]
  mask: dict[str, np.ndarray]
  source_size: np.ndarray
  identity: np.ndarray
  names: list[str]
  schema: Schema
  checksum: str

  def split(self, name: str) -> range:
    """The rows of a split. Raises DataError where it is unknown or has none."""
    if not self.splits.get(name):
      there = ', '.join(f'{split} ({len(rows)})' for split, rows in self.splits.items() if rows)
      raise DataError(f'split {name!r} of {self.directory} has no rows; it has {there}')
    return self.splits[name]


def decode(
  image: Path | BinaryIO,
  size: tuple[int, int],
  *,
  crop: tuple[int, int, int, int] | None = None,
  name: str = 'image',
) -> tuple[np.ndarray, tuple[int, int]]:
  """Reads an image file, turned upright by its EXIF note, as RGB squashed to a size by an antialiased filter.

  Args:
    image: a file, or one opened, in any format that Pillow reads.
    size: height and width of the result in pixels.
    crop: left, top, right and bottom, in pixels of the upright image, of the part to read instead of the whole;
      black where it reaches past the edges.
    name: what an opened file is called in errors, if it has no name of its own.

  Returns:
    Pixels uint8 `[h, w, 3]`, and the width and height that the image, or the part of it, had.

  Raises:
    DataError: for a file that is missing, truncated, no image, or absurdly large.
  """
  try:
    with Image.open(image) as opened:
      picture = ImageOps.exif_transpose(opened)
      if picture.mode.startswith('I;16'):  # Pillow would clip at 255 rather than scale.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
      picture = picture.convert('RGB')
      picture = picture.crop(crop) if crop else picture
      pixels = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
  except FileNotFoundError as error:
    raise DataError(f'{image}: no such image') from error
  except Exception as error:  # Pillow's decoders raise a dozen kinds on bad bytes.
    name = str(image) if isinstance(image, Path) else getattr(image, 'name', name)
    raise DataError(f'{name}: is no readable image ({one_line(error)}); fetch it again or remove its row') from error
  return pixels, picture.size


def prepare(
  source: Source | Callable[[Path], Source],
  out: Path,
  *,
  image_size: tuple[int, int],
  workers: int | None = None,
  log: Callable[[str], None],
) -> Schema:
  """Writes a source into the new folder `out`, whole or not at all.

  Args:
    source: what to read; lines in its `notes`, if it has any, are logged. Or a function that makes it, which may
      write files of its own into the folder it is given.
    out: the folder to make; one that exists must be empty.
    image_size: height and width of the stored images in pixels.
    workers: threads that decode; by default one a processor.
    log: takes the lines about what was kept.

  Raises:
    DataError: for bad input, a folder that is taken or being prepared, or a disk that is full.
  """
  if min(image_size) < 1:
    raise DataError(f'image_size: height and width must be positive, not {image_size[0]} {image_size[1]}')
  if (Path(out) / 'schema.json').exists():
    raise DataError(f'{out}: already holds a prepared set; remove it or choose another --out')
  with new_folder(out) as folder:
    opened = source(folder) if callable(source) else source
    schema = _write(opened, folder, image_size=image_size, workers=workers or _WORKERS, log=log)
    _write_schema(folder, schema)
  return schema


def open_store(directory: Path) -> Store:
  """Opens a prepared set after checking its files.

  Every file is read and compared with its digest; of a file above 4 GiB (images.npy) only the size and the first and
  last 64 MiB are.

  Raises:
    DataError: where there is no prepared set, or another version of it, or its files are not what was written.
  """
  directory = Path(directory)
  try:
    schema = _read_schema(directory)
    tasks = tuple(from_json(task) for task in schema['tasks'])
    height, width = schema['image_size']
    rows = schema['num_examples']
    splits = {name: range(*bounds) for name, bounds in schema['splits'].items()}
    shapes = _shapes(tasks, rows=rows, image_size=(height, width))
    files = {path: schema['files'][path] for path in (*shapes, 'names.txt')}
    _check_files(directory, files)
    arrays = {path: _load(directory / path, *kind) for path, kind in shapes.items()}
    names = (directory / 'names.txt').read_text('utf-8').split('\n')[:-1]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise DataError(f'{directory / "schema.json"}: is malformed ({one_line(error)}); prepare the set again') from error
  except OSError as error:
    raise DataError(f'{directory}: cannot be read: {one_line(error)}') from error
  return Store(
    directory=directory,
    image_size=(height, width),
    tasks=tasks,
    splits=splits,
    images=arrays['images.npy'],
    labels={task.name: arrays[f'labels/{task.name}.npy'] for task in tasks},
    mask={task.name: arrays[f'mask/{task.name}.npy'] for task in tasks},
    source_size=arrays['source_size.npy'],
    identity=arrays['identity.npy'],
    names=names,
    schema=schema,
    checksum=schema['checksum'],
  )


def _write(
  source: Source, folder: Path, *, image_size: tuple[int, int], workers: int, log: Callable[[str], None]
) -> Schema:
  """Writes all files but schema.json, and returns what belongs into that."""
  for note in getattr(source, 'notes', ()):
    log(note)
  records, splits = _ordered(source)
  shapes = _shapes(source.tasks, rows=len(records), image_size=image_size)
  for kind in ('labels', 'mask'):
    (folder / kind).mkdir(parents=True)
  arrays = {path: np.zeros(shape, dtype) for path, (shape, dtype) in shapes.items() if path != 'images.npy'}
  outside = {task.name: np.zeros(len(records), np.int32) for task in source.tasks}

  def read_row(row: int) -> np.ndarray:
    record = records[row]
    image = io.BytesIO(record.image()) if callable(record.image) else record.image
    pixels, size = decode(image, image_size, crop=record.crop, name=record.name)
    _fill_row(row, record, arrays, outside, tasks=source.tasks, size=size)
    return pixels

  _write_images(folder / 'images.npy', read_row, shape=shapes['images.npy'][0], workers=workers)
  for path, array in arrays.items():
    content = io.BytesIO()  # Saving straight to the file would not say that it was the disk that is full.
    np.save(content, array)
    (folder / path).write_bytes(content.getbuffer())
  (folder / 'names.txt').write_text(''.join(f'{record.name}\n' for record in records), 'utf-8', newline='\n')
  masks = {task.name: arrays[f'mask/{task.name}.npy'] for task in source.tasks}
  counts = {
    'kept': len(records),
    'refused': 0,  # A bad row stops everything.
    'masked': {name: int(mask.size - np.count_nonzero(mask)) for name, mask in masks.items()},
    'outside': {name: int(num.sum()) for name, num in outside.items()},
  }
  schema = {
    'version': VERSION,
    'source': source.name,
    'options': dict(getattr(source, 'options', {})),
    'image_size': list(image_size),
    'tasks': [task.to_json() for task in source.tasks],
    'splits': splits,
    'num_examples': len(records),
    'counts': counts,
  }
  _log_counts(schema, {name: records[num.argmax()].name for name, num in outside.items()}, log)
  return schema


def _log_counts(schema: Schema, first_outside: dict[str, str], log: Callable[[str], None]) -> None:
  height, width = schema['image_size']
  counts, num_examples = schema['counts'], schema['num_examples']
  sizes = ', '.join(f'{split} {end - begin}' for split, (begin, end) in schema['splits'].items())
  log(f'{schema["source"]}: kept {num_examples} images at {height}x{width}: {sizes}; refused {counts["refused"]}')
  for task in schema['tasks']:
    name = task['name']
    log(f'{name}: {num_examples * len(task["labels"])} labels, of which {counts["masked"][name]} are masked')
    if counts['outside'][name]:
      where = f'outside their image and are masked, first in {first_outside[name]}'
      log(f'warning: {name}: {counts["outside"][name]} labels lie {where}')
  for split, (begin, end) in schema['splits'].items():
    if begin == end:
      log(f'warning: split {split} has no rows')


def _ordered(source: Source) -> tuple[list[Record], dict[str, list[int]]]:
  """All records by split, and the first row of each split and the one after its last."""
  by_split: dict[str, list[Record]] = {split: [] for split in SPLITS}
  names = set()
  for record in source.records():
    if record.name in names:
      raise DataError(f'{source.name}: {record.name!r} is named twice; correct the source')
    if record.split not in by_split:
      raise DataError(f'{source.name}: {record.name!r} is in split {record.split!r}, not one of {", ".join(SPLITS)}')
    if '\n' in record.name:
      raise DataError(f'{source.name}: {record.name!r} has a line break in its name; rename it')
    if record.crop and not (record.crop[0] < record.crop[2] and record.crop[1] < record.crop[3]):
      raise DataError(f'{source.name}: the crop {record.crop} of {record.name!r} is empty; correct the source')
    names.add(record.name)
    by_split[record.split].append(record)
  if not names:
    raise DataError(f'{source.name}: has no rows')
  ends = np.cumsum([len(records) for records in by_split.values()]).tolist()
  splits = {split: [end - len(by_split[split]), end] for split, end in zip(SPLITS, ends, strict=True)}
  return [record for records in by_split.values() for record in records], splits


def _shapes(
  tasks: Sequence[Task], *, rows: int, image_size: tuple[int, int]
) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
  """Shape and type of each array of a set, by its path."""
  shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
    'images.npy': ((rows, *image_size, 3), np.uint8),
    'source_size.npy': ((rows, 2), np.int32),
    'identity.npy': ((rows,), np.int32),
  }
  for task in tasks:
    shapes[f'labels/{task.name}.npy'] = ((rows, len(task.labels)), np.float32)
    shapes[f'mask/{task.name}.npy'] = ((rows, len(task.labels)), np.bool_)
  return shapes


def _fill_row(
  row: int,
  record: Record,
  arrays: dict[str, np.ndarray],
  outside: dict[str, np.ndarray],
  *,
  tasks: Sequence[Task],
  size: tuple[int, int],
) -> None:
  """Writes a record, but its pixels, to its row; counts the labels that the task itself takes for missing."""
  arrays['source_size.npy'][row] = size
  arrays['identity.npy'][row] = record.identity
  for task in tasks:
    if task.name not in record.labels:
      continue
    stated = np.array(record.labels[task.name], np.float32)
    if stated.shape != (len(task.labels),):
      raise DataError(f'{record.name}: {task.name} has {stated.size} labels, not {len(task.labels)}')
    try:
      task.check(stated)
    except ValueError as error:
      raise DataError(f'{record.name}: {task.name}: {error}; correct the source') from error
    labels = task.from_source(stated, width=size[0], height=size[1])
    missing = np.isnan(labels)
    arrays[f'labels/{task.name}.npy'][row] = np.where(missing, 0, labels)
    arrays[f'mask/{task.name}.npy'][row] = ~missing
    outside[task.name][row] = (missing & ~np.isnan(stated)).sum()


def _write_images(path: Path, read_row: Callable[[int], np.ndarray], *, shape: tuple[int, ...], workers: int) -> None:
  """Writes images, read by threads, each to its place in an .npy file; few are in memory at a time.

  A mapped array would do the same, but kills the process when the disk is full.
  """
  with path.open('wb') as file:
    np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
    file.flush()
    begin = file.tell()

    def copy_row(row: int) -> None:
      pixels = read_row(row).tobytes()
      if os.pwrite(file.fileno(), pixels, begin + row * len(pixels)) != len(pixels):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
      tqdm(total=shape[0], desc='prepare', unit='image', file=sys.stderr, mininterval=1.0) as progress,
      futures.ThreadPoolExecutor(workers) as pool,
    ):
      window: collections.deque[futures.Future[None]] = collections.deque()
      for row in range(shape[0]):
        if len(window) == 8 * workers:
          window.popleft().result()
          progress.update()
        window.append(pool.submit(copy_row, row))
      for future in window:
        future.result()
        progress.update()


def _write_schema(folder: Path, schema: Schema) -> None:
  """Completes the schema with the files' digests and writes it, when all else is safely on the disk."""
  tasks, rows = [from_json(task) for task in schema['tasks']], schema['num_examples']
  paths = (*_shapes(tasks, rows=rows, image_size=tuple(schema['image_size'])), 'names.txt')
  schema['files'] = {path: _digest(folder / path) for path in paths}
  schema['checksum'] = _checksum(schema)
  for path in (*paths, 'labels', 'mask'):
    sync(folder / path)
  (folder / 'schema.json').write_text(json.dumps(schema, indent=2) + '\n', 'utf-8')
  sync(folder / 'schema.json')


def _read_schema(directory: Path) -> Schema:
  path = directory / 'schema.json'
  if not directory.is_dir():
    raise DataError(f'{directory}: no such folder of a prepared set; {_MAKE} {directory}')
  if not path.is_file():
    raise DataError(f'{directory}: is no prepared set (it has no schema.json); {_MAKE} DIR')
  schema = json.loads(path.read_text('utf-8'))
  if schema['version'] != VERSION:
    raise DataError(
      f'{path}: is of version {schema["version"]!r}, but this program reads {VERSION}; prepare the set again'
    )
  if schema['checksum'] != _checksum(schema):
    raise DataError(f'{path}: was changed since it was prepared; prepare the set again')
  return schema


def _check_files(directory: Path, files: dict[str, dict[str, Any]]) -> None:
  for path, written in files.items():
    if not (directory / path).is_file():
      raise DataError(f'{directory / path}: is missing; prepare the set again')
    if (size := (directory / path).stat().st_size) != written['bytes']:
      raise DataError(f'{directory / path}: holds {size} bytes, not {written["bytes"]}; prepare the set again')
  for path, written in files.items():
    if _digest(directory / path) != written:
      raise DataError(f'{directory / path}: was changed since it was prepared; prepare the set again')


def _load(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
  array = np.load(path, mmap_mode='r' if path.name == 'images.npy' else None)
  if array.shape != shape or array.dtype != dtype:
    raise ValueError(f'{path.name} is {array.dtype} {array.shape}')
  return array


def _digest(path: Path) -> dict[str, Any]:
  """Size and sha256 of a file, or of the two ends of a very large one."""
  size = path.stat().st_size
  with path.open('rb') as file:
    if size <= WHOLE_DIGEST_BYTES:
      return {'bytes': size, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}
    ends = hashlib.sha256(file.read(END_BYTES))
    file.seek(-END_BYTES, os.SEEK_END)
    ends.update(file.read())
  return {'bytes': size, 'sha256_of_ends': ends.hexdigest()}


def _checksum(schema: Schema) -> str:
  content = {key: value for key, value in schema.items() if key != 'checksum'}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
