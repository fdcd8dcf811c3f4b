"""Writes a source into the folder of a prepared set, whole or not at all; `reader.py` says what lies there."""

import errno
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt32
from PIL import Image

from mtl_jax.config import choose, get_config
from mtl_jax.data.input.augment import Augmentation, augmentation_warnings
from mtl_jax.data.source import SPLITS, Record, Source, checked
from mtl_jax.data.sources.image_file import FITS, Box, decode
from mtl_jax.data.store.images import ENCODINGS
from mtl_jax.data.store.reader import VERSION, Schema, array_kinds, checksum, digest
from mtl_jax.errors import DataError, one_line
from mtl_jax.kinds import shown
from mtl_jax.platform.ahead import in_order
from mtl_jax.platform.atomic_dir import new_folder, sync
from mtl_jax.platform.progress_bar import bar
from mtl_jax.tasks import Task

JPEG_QUALITY = 95
MAX_SIDE = 8192  # Of the stored images, in pixels.
_WORKERS = min(32, os.cpu_count() or 1)  # Beyond that, threads wait for the interpreter.
_ORIENTATION = 0x0112  # The EXIF note that says how to turn an image upright; 1 as it lies.


def prepare(
  source: Source | Callable[[Path], Source],
  out: Path,
  *,
  image_size: tuple[int, int],
  encoding: str = 'decoded',
  fit: str = 'squash',
  workers: int | None = None,
  log: Callable[[str], None],
) -> Schema:
  """Writes a source into the new folder `out`, whole or not at all.

  Args:
    source: what to read; lines in its `notes`, if it has any, are logged. Or a function that makes it, which may
      write files of its own into the folder it is given.
    out: the folder to make; one that exists must be empty.
    image_size: height and width of the stored images in pixels.
    encoding: `decoded` keeps pixels; `jpeg` keeps JPEGs of that size, of quality 95 with 4:2:0 chroma, and a source's
      own bytes where they are such a JPEG already.
    fit: the way of images of other shapes into the stored ones, see `fit_box`; labels move with them.
    workers: threads that decode; by default one a processor.
    log: takes the lines about what was kept.

  Raises:
    DataError: for bad input, a folder that is taken or being prepared, or a disk that is full.
  """
  if not (min(image_size) >= 1 and max(image_size) <= MAX_SIDE):
    raise DataError(f'--image_size: height and width in pixels must be from 1 to {MAX_SIDE}, not {shown(image_size)}')
  choose(fit, FITS, field='--fit')
  choose(encoding, tuple(ENCODINGS), field='--encoding')
  if (Path(out) / 'schema.json').exists():
    raise DataError(f'{out}: already holds a prepared set; remove it or choose another --out')
  with new_folder(out) as folder:
    opened = source(folder) if callable(source) else source
    augmented = Augmentation(**get_config().data.augment)
    for line in (*getattr(opened, 'notes', ()), *augmentation_warnings(opened.tasks, augmented)):
      log(line)
    records, splits = _ordered(opened)
    tasks = [task.at_size(*image_size) for task in opened.tasks]
    schema = {
      'version': VERSION,
      'source': opened.name,
      'options': dict(getattr(opened, 'options', {})),
      'image_size': list(image_size),
      'encoding': encoding,
      **({} if fit == 'squash' else {'fit': fit}),  # As sets had it before there was one.
      'tasks': [task.to_json() for task in tasks],
      'splits': splits,
      'num_examples': len(records),
    }
    arrays = {path: np.zeros(shape, dtype) for path, (shape, dtype) in array_kinds(schema, tasks).items()}
    schema['counts'] = _write(folder, schema, arrays, records, tasks, workers=workers or _WORKERS, log=log)
    write_schema(folder, schema, (ENCODINGS[encoding], *arrays, 'names.txt'))
  return schema


def _write(
  folder: Path,
  schema: Schema,
  arrays: dict[str, np.ndarray],
  records: Sequence[Record],
  tasks: Sequence[Task],
  *,
  workers: int,
  log: Callable[[str], None],
) -> dict[str, Any]:
  """Writes all files but schema.json, logs what was kept, and returns the counts of that."""
  outside = {task.name: np.zeros(len(records), np.int32) for task in tasks}
  as_they_were = np.zeros(len(records), bool)

  def read_row(row: int) -> bytes:
    """The bytes to store of a record's image; fills in its row of each array."""
    record = records[row]
    content, box, size = _image_bytes(record, schema)
    as_they_were[row] = box is None
    box = box or (0, 0, *size)
    arrays['source_size.npy'][row] = box[2] - box[0], box[3] - box[1]
    arrays['identity.npy'][row] = record.identity
    for task in tasks:
      if task.name in record.labels:
        labels, outside[task.name][row] = _labels(record, task, box=box, size=size)
        missing = np.isnan(labels)
        arrays[f'labels/{task.name}.npy'][row] = np.where(missing, 0, labels)
        arrays[f'mask/{task.name}.npy'][row] = ~missing
    return content

  _write_images(folder, read_row, schema, arrays, workers=workers)
  for path, array in arrays.items():
    content = io.BytesIO()  # Saving straight to the file would not say that it was the disk that is full.
    np.save(content, array)
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(content.getbuffer())
  (folder / 'names.txt').write_text(''.join(f'{record.name}\n' for record in records), 'utf-8', newline='\n')
  masks = {task.name: arrays[f'mask/{task.name}.npy'] for task in tasks}
  counts = {
    'kept': len(records),
    'refused': 0,  # A bad row stops everything.
    'masked': {name: int(mask.size - np.count_nonzero(mask)) for name, mask in masks.items()},
    'outside': {name: int(num.sum()) for name, num in outside.items()},
    'as_they_were': int(as_they_were.sum()),  # Of --encoding jpeg, images whose bytes are those of the source.
  }
  _log_split_sizes(schema, counts, log)
  for task in tasks:
    name, mask = task.name, masks[task.name]
    if task.coordinates and mask.any():
      pixels = arrays[f'labels/{name}.npy'].reshape(len(records), -1, 2) * arrays['source_size.npy'][:, None]
      if pixels.max() <= 1:
        log(f'warning: {name}: all points lie within a pixel of the upper left corner; give pixels, not fractions')
    log(f'{name}: {mask.size} labels, of which {counts["masked"][name]} are masked')
    if num := counts['outside'][name]:
      first = records[int(outside[name].argmax())].name
      log(f'warning: {name}: {num} labels lie outside their image and are masked, first in {first}')
  for split, (begin, end) in schema['splits'].items():
    if begin == end:
      log(f'warning: split {split} has no rows')
  return counts


def _log_split_sizes(schema: Schema, counts: dict[str, Any], log: Callable[[str], None]) -> None:
  size = 'x'.join(map(str, schema['image_size'])) + (f' ({schema["fit"]})' if 'fit' in schema else '')
  sizes = ', '.join(f'{split} {end - begin}' for split, (begin, end) in schema['splits'].items())
  log(f'{schema["source"]}: kept {counts["kept"]} images at {size}: {sizes}; refused {counts["refused"]}')
  if schema['encoding'] == 'jpeg':
    log(f'JPEGs of quality {JPEG_QUALITY}, and {counts["as_they_were"]} with the bytes of the source')


def _ordered(source: Source) -> tuple[list[Record], dict[str, list[int]]]:
  """All records by split, and the first row of each split and the one after its last."""
  by_split: dict[str, list[Record]] = {split: [] for split in SPLITS}
  names = set()
  for stated in source.records():
    record = checked(stated, source.tasks, source=source.name)
    if record.name in names:
      raise DataError(f'{source.name}: {record.name!r} is named twice; correct the source')
    names.add(record.name)
    by_split[record.split].append(record)
  if not names:
    raise DataError(f'{source.name}: has no rows')
  ends = np.cumsum([len(records) for records in by_split.values()]).tolist()
  splits = {split: [end - len(by_split[split]), end] for split, end in zip(SPLITS, ends, strict=True)}
  return [record for records in by_split.values() for record in records], splits


def _labels(record: Record, task: Task, *, box: Box, size: tuple[int, int]) -> tuple[np.ndarray, int]:
  """The labels to store that a record states of an image of that size, of which the stored one shows the box.

  Returns:
    Labels float32 `[k]`, or a map `[h, w]`, NaN where missing, and how many of them the task itself takes for missing.

  Raises:
    DataError: for a value that the task does not have.
  """
  value, (width, height) = record.labels[task.name], size
  try:
    stated = np.asarray(value() if callable(value) else value)
    if stated.dtype == object and None in stated.flat:  # NumPy makes it NaN.
      raise TypeError('None is no number')
    stated = stated.astype(np.float32)
  except (TypeError, ValueError, OverflowError):
    said = f'must be numbers, NaN where one is missing, not {shown(value)}'
    raise DataError(f'{record.name}: {task.name}: {said}; correct the source') from None
  try:
    task.check(stated)
    if box != (0, 0, width, height):
      stated = task.in_box(stated, box, width=width, height=height)
    labels = task.from_source(stated, width=box[2] - box[0], height=box[3] - box[1])
  except ValueError as error:
    raise DataError(f'{record.name}: {task.name}: {one_line(error)}; correct the source') from error
  return labels, 0 if task.dense else int((np.isnan(labels) & ~np.isnan(stated)).sum())


def _image_bytes(record: Record, schema: Schema) -> tuple[bytes, Box | None, tuple[int, int]]:
  """The bytes to store of a record's image, with the box and size of `decode`; no box if they are the source's own."""
  size, is_jpeg = tuple(schema['image_size']), schema['encoding'] == 'jpeg'
  image = record.image
  if callable(image):
    content = image()
    if not isinstance(content, bytes):
      raise DataError(f'{record.name}: the image must be bytes, not {type(content).__name__}; correct the source')
    image = io.BytesIO(content)
  if is_jpeg and not record.crop:
    content = image.getvalue() if isinstance(image, io.BytesIO) else image.read_bytes() if image.is_file() else b''
    if _is_such_a_jpeg(content, size):
      return content, None, (size[1], size[0])
  pixels, box, source_size = decode(image, size, crop=record.crop, fit=schema.get('fit', 'squash'), name=record.name)
  content = simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, colorsubsampling='420') if is_jpeg else pixels.tobytes()
  return content, box, source_size


def _is_such_a_jpeg(content: bytes, size: tuple[int, int]) -> bool:
  """True for the bytes of a JPEG of exactly that size, upright and in RGB or grey, that decodes."""
  try:
    with Image.open(io.BytesIO(content), formats=['JPEG']) as opened:
      upright = opened.getexif().get(_ORIENTATION, 1) == 1
      kept = opened.format == 'JPEG' and opened.mode in ('RGB', 'L') and opened.size == (size[1], size[0]) and upright
    return kept and simplejpeg.decode_jpeg(content).shape == (*size, 3)
  except Exception:  # Pillow's decoders raise a dozen kinds on bad bytes; `decode` then says what is wrong.
    return False


def _write_images(
  folder: Path, read_row: Callable[[int], bytes], schema: Schema, arrays: dict[str, np.ndarray], *, workers: int
) -> None:
  """Writes images, read by threads, and fills in their CRCs and offsets."""
  num = schema['num_examples']
  offsets = arrays.get('offsets.npy', np.zeros(num + 1, np.int64))
  with (
    (folder / ENCODINGS[schema['encoding']]).open('wb') as file,
    bar(num, description='prepare', unit='image') as progress,
    futures.ThreadPoolExecutor(workers) as pool,
  ):
    if schema['encoding'] == 'decoded':
      shape = (num, *schema['image_size'], 3)
      np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
      file.flush()
    contents = in_order(pool, read_row, range(num), depth=8 * workers)
    append_rows(file, contents, arrays['crc32.npy'], offsets=offsets, advance=progress.update)


def append_rows(
  file: BinaryIO,
  contents: Iterable[bytes],
  crc32: UInt32[np.ndarray, ' n'],
  *,
  offsets: Int64[np.ndarray, ' n+1'],
  advance: Callable[[int], Any],
) -> None:
  """Writes rows one after another, and fills in their CRCs, and where each begins and the last one ends.

  A mapped array would do the same, but kills the process when the disk is full. `advance` is called after each row.
  """
  offsets[0] = file.tell()
  for row, content in enumerate(contents):
    if os.pwrite(file.fileno(), content, int(offsets[row])) != len(content):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    offsets[row + 1] = offsets[row] + len(content)
    crc32[row] = zlib.crc32(content)
    advance(1)


def write_schema(folder: Path, schema: Schema, paths: Sequence[str]) -> None:
  """Completes the schema with the files' digests and writes it, when all else is safely on the disk."""
  schema['files'] = {path: digest(folder / path) for path in paths}
  schema['checksum'] = checksum(schema)
  for path in {*paths, *(str(Path(path).parent) for path in paths)}:
    sync(folder / path)
  (folder / 'schema.json').write_text(json.dumps(schema, indent=2) + '\n', 'utf-8')
  sync(folder / 'schema.json')
