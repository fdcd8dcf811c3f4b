"""Reads annotation files, a row an image, and refuses a bad one in a line that says where and what to do."""

import csv
import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np

from mtl_jax.data.source import ListedImages, held_out
from mtl_jax.errors import DataError
from mtl_jax.tasks import Task

MAX_PIXELS = 1e6  # A coordinate beyond this is no pixel, and would lose its fraction in float32.

Rows: TypeAlias = Iterator[tuple[int, list[str]]]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A kind of cell: its parser (KeyError or ValueError for anything else), and its description."""

  read: Callable[[str], float]
  expected: str


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """One annotation file.

  Attributes:
    path: the file.
    columns: names of the `k` columns.
    lines: by the name of each of the `n` rows its line in the file, from 1.
    values: the cells, float64 `[n, k]`.
  """

  path: Path
  columns: tuple[str, ...]
  lines: dict[str, int]
  values: np.ndarray

  def select(self, labels: Sequence[str]) -> np.ndarray:
    """The columns of these labels, float32 `[n, k]`."""
    return self.values[:, [self.columns.index(label) for label in labels]].astype(np.float32)

  def refuse(self, name: str, message: str) -> NoReturn:
    """Refuses the row of that name."""
    refuse_line(self.path, self.lines[name], message)

  def aligned(self, other: 'Table') -> 'Table':
    """This table in the other's order of rows. Raises DataError where the two do not name the same ones."""
    for one, two in ((self, other), (other, self)):
      if alone := [name for name in one.lines if name not in two.lines]:
        one.refuse(
          alone[0], f'{alone[0][:40]!r} is not in {two.path} ({len(alone)} such names); fetch both files again'
        )
    row_of = {name: row for row, name in enumerate(self.lines)}
    return dataclasses.replace(self, lines=other.lines, values=self.values[[row_of[name] for name in other.lines]])


def read_text(path: Path) -> str:
  """A file of UTF-8, with or without a byte order mark. Raises DataError where it is none, empty or unreadable."""
  try:
    content = path.read_bytes()
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error.strerror}; fetch it') from error
  if not content.strip():
    raise DataError(f'{path}: is empty; fetch the file again')
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    refuse_line(path, line, 'is no UTF-8 text; save the file as UTF-8 or fetch it again')


def read_lines(path: Path) -> Rows:
  """Yields the cells of each line that has any, apart by blanks or of a CSV file, with the line's number from 1."""
  for line, row in _rows_of(path):
    if not ''.join(row).isprintable():  # Names of tasks, labels, classes and images come from cells.
      refuse_line(path, line, 'has control characters; correct or fetch the file again')
    yield line, row


def _rows_of(path: Path) -> Rows:
  if path.suffix != '.csv':
    yield from ((line, row) for line, text in enumerate(read_text(path).split('\n'), 1) if (row := text.split()))
    return
  reader = csv.reader(io.StringIO(read_text(path), newline=''), strict=True)
  try:
    yield from ((reader.line_num, row) for row in reader if row)
  except csv.Error as error:
    refuse_line(path, reader.line_num, f'is no CSV ({error}); correct or fetch the file again')


def read_table(path: Path, rows: Rows, cells: Mapping[str, Cell]) -> Table:
  """Rows of a name and a cell for each column, checked.

  Args:
    path: the file they come from, for messages.
    rows: the cells of each row, with its line in the file.
    cells: what each column holds, by the column's name, in the file's order.

  Raises:
    DataError: for too few or many columns, a cell that cannot be read, a name that comes twice, or no row at all.
  """
  lines: dict[str, int] = {}
  values: list[float] = []
  for line, (name, *row) in rows:
    if len(row) != len(cells):
      wrong = 'few' if len(row) < len(cells) else 'many'
      wrong = f'too {wrong} columns: {1 + len(row)}, not {1 + len(cells)}'
      refuse_line(path, line, f'{wrong}; correct or fetch the file again')
    for (column, cell), text in zip(cells.items(), row, strict=True):
      try:
        values.append(cell.read(text))
      except (KeyError, ValueError):
        wrong = f'{column[:40]!r} of {name[:40]!r} is {text[:20]!r}'
        refuse_line(path, line, f'{wrong}, not {cell.expected}; correct the row')
    if lines.setdefault(name, line) != line:
      refuse_line(path, line, f'{name[:40]!r} was already named in line {lines[name]}; remove one of the rows')
  if not lines:
    raise DataError(f'{path}: holds no row; fetch the file again')
  return Table(path, tuple(cells), lines, np.array(values, np.float64).reshape(len(lines), len(cells)))


def image_files(table: Table, folder: Path, *, nested: bool = False) -> dict[str, Path]:
  """The file of each image that a table's rows are named by: of that name, or with `.png` for its ending.

  Args:
    table: what names the images.
    folder: where they lie.
    nested: they lie in folders of that folder, which the names begin with.

  Raises:
    DataError: for the first row without a file.
  """
  places = {f'{each.name}/': each for each in folder.iterdir() if each.is_dir()} if nested else {'': folder}
  there = {f'{prefix}{entry.name}' for prefix, place in places.items() for entry in os.scandir(place)}
  found = {name: name if name in there else re.sub(r'\.[^./]*$', '.png', name) for name in table.lines}
  if missing := [name for name, file in found.items() if file not in there]:
    such = f'{len(missing)} such images; unpack them all or remove their rows from every file'
    table.refuse(missing[0], f'{missing[0][:60]!r} is not in {folder} ({such})')
  return {name: folder / file for name, file in found.items()}


def read_official(
  directory: Path, files: Mapping[str, str], read: Callable[[Path], Table], *, name: str, tasks: tuple[Task, ...]
) -> tuple[ListedImages, dict[str, Table]]:
  """Reads a set that its authors split in two: the file of `train` and that of `test`, of which one may be missing.

  Of the training images, those that `held_out` names are `val`. A table's columns are named as the tasks' labels are.

  Returns:
    The source, train first, and its tables.

  Raises:
    DataError: where both are missing, what `read` raises, for an image that is not there, or is named by both.
  """
  if not directory.is_dir():
    raise DataError(f'{directory}: no such folder; give the one that holds {" and ".join(files.values())}')
  tables = {split: read(directory / file) for split, file in files.items() if (directory / file).is_file()}
  if not tables:
    raise DataError(f'{directory}: is not {name}: neither {" nor ".join(files.values())} is here')
  if len(tables) == 2 and (both := [image for image in tables['test'].lines if image in tables['train'].lines]):
    there = f'{files["train"]} in line {tables["train"].lines[both[0]]}'
    tables['test'].refuse(both[0], f'{both[0][:40]!r} was already named by {there}; remove one of the rows')
  images, splits = {}, []
  for split, table in tables.items():
    found = image_files(table, directory, nested=True)
    images |= found
    splits += ['val' if split == 'train' and held_out(path) else split for path in found.values()]
  missing = [split for split in files if split not in tables]
  source = ListedImages(
    name=name.lower(),
    tasks=tasks,
    notes=tuple(f'warning: {files[split]} is missing, so there are no {split} images' for split in missing),
    images=images,
    splits=splits,
    labels={task.name: np.concatenate([table.select(task.labels) for table in tables.values()]) for task in tasks},
  )
  return source, tables


def is_count(cell: str) -> bool:
  """True for a whole number, not negative, that fits in 32 bits."""
  return cell.isascii() and cell.isdigit() and len(cell) < 10


def refuse_line(path: Path, line: int, message: str) -> NoReturn:
  raise DataError(f'{path}: line {line}: {message}')


def _number_of_pixels(cell: str) -> float:
  value = float(cell)
  if not -MAX_PIXELS < value < MAX_PIXELS or '_' in cell:  # NaN fails the comparison.
    raise ValueError(cell)
  return value


PIXELS = Cell(_number_of_pixels, 'a number of pixels')
