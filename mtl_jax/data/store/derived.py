"""A derived set: rows computed from a split of a prepared set, such as features of its images.

DIR/schema.json   what the rows were made of, their shape and type, with the digests of the files; written last
DIR/rows.bin      the rows, one after another
DIR/crc32.npy     uint32 [n], of the bytes of each row
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Shaped

from mtl_jax.data.store import reader, writer
from mtl_jax.data.store.images import Images, Records
from mtl_jax.errors import DataError
from mtl_jax.platform import json_file
from mtl_jax.platform.atomic_dir import new_folder

FILES = ('rows.bin', 'crc32.npy')


class Header(msgspec.Struct):
  """The fields of schema.json that a derived set is opened by."""

  made_of: dict[str, Any]
  corrupt: list[reader.Count]
  files: dict[str, dict[str, Any]]


def open_rows(directory: Path, made_of: dict[str, Any]) -> Images:
  """Opens a derived set after checking its files, as `reader.open_store` does.

  A row whose image was corrupt counts as corrupt itself; in its place, as in the image's, the next good one is read.

  Raises:
    DataError: where there is none, or it was made of something else, or its files are not what was written.
  """
  schema = reader.read_schema(directory)
  header = json_file.convert(schema, Header, place=directory / 'schema.json', advice=reader.AGAIN, raises=DataError)
  (num, *shape), dtype = made_of['shape'], np.dtype(made_of['dtype'])
  if header.made_of != made_of or not all(row < num for row in header.corrupt):
    raise DataError(f'{directory}: was made of something else')
  reader.check_files(directory, header.files, FILES)
  offsets = np.arange(num + 1, dtype=np.int64) * (int(np.prod(shape)) * dtype.itemsize)
  crc32, path = reader.load_array(directory / 'crc32.npy', (num,), np.uint32), directory / 'rows.bin'
  records = Records(path, tuple(shape), offsets, crc32, names=range(num), dtype=dtype)
  records.corrupt |= dict.fromkeys(header.corrupt, 'its image is corrupt')
  return Images(((records, range(num)),))


def write_rows(
  directory: Path,
  batches: Iterable[Shaped[np.ndarray, 'b ...']],
  made_of: dict[str, Any],
  *,
  corrupt: Callable[[], list[int]],
  advance: Callable[[int], Any],
) -> None:
  """Writes a derived set, whole or not at all, in place of one that is there.

  Args:
    directory: the folder to make.
    batches: the rows in order.
    made_of: what they depend on, as JSON has it, and of all of them `shape` `[n, ...]` and `dtype`.
    corrupt: asked when the rows are written: the positions of those whose image was corrupt.
    advance: is called after each row.

  Raises:
    DataError: where the folder cannot be written.
  """
  shutil.rmtree(directory, ignore_errors=True)
  num = made_of['shape'][0]
  crc32, offsets = np.zeros(num, np.uint32), np.zeros(num + 1, np.int64)
  with new_folder(directory) as folder:
    contents = (row.tobytes() for batch in batches for row in batch)
    with (folder / 'rows.bin').open('wb') as file:
      writer.append_rows(file, contents, crc32, offsets=offsets, advance=advance)
    np.save(folder / 'crc32.npy', crc32)
    writer.write_schema(folder, {'version': reader.VERSION, 'made_of': made_of, 'corrupt': corrupt()}, FILES)
