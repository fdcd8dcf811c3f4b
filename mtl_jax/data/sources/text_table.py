"""Reads annotation files, a row an image, and refuses a bad one in a line that says where and what to do."""

import array
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np

from mtl_jax.errors import DataError

MAX_PIXELS = 1e6  # A coordinate beyond this is no pixel, and would lose its fraction in float32.

Rows: TypeAlias = Iterable[tuple[int, list[str]]]


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
    names: the image of each of the `n` rows, all different.
    lines: each row's line in the file, from 1, `[n]`.
    values: the cells, float64 `[n, k]`.
  """

  path: Path
  columns: tuple[str, ...]
  names: list[str]
  lines: list[int]
  values: np.ndarray


def read_text(path: Path) -> str:
  """A file of UTF-8, with or without a byte order mark. Raises DataError where it is none, empty or unreadable."""
  try:
    content = path.read_bytes()
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error.strerror}') from error
  if not content.strip():
    raise DataError(f'{path}: is empty; fetch the file again')
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    refuse_line(path, line, 'is no UTF-8 text; save the file as UTF-8 or fetch it again')


def rows_apart_by_blanks(path: Path) -> Iterator[tuple[int, list[str]]]:
  """The cells of each line that has any, with the line's number from 1. Raises DataError as `read_text` does."""
  for line, text in enumerate(read_text(path).split('\n'), start=1):
    if row := text.split():
      yield line, row


def read_rows(path: Path, rows: Rows, cells: Mapping[str, Cell]) -> Table:
  """Rows of an image's name and a cell for each column, checked.

  Args:
    path: the file they come from, for messages.
    rows: the cells of each row, with its line in the file.
    cells: what each column holds, by the column's name, in the file's order.

  Raises:
    DataError: for too few or many columns, a cell that cannot be read, a name that comes twice, or no row at all.
  """
  readers = [cell.read for cell in cells.values()]
  names: list[str] = []
  lines: list[int] = []
  values = array.array('d')
  for line, row in rows:
    if len(row) != 1 + len(readers):
      wrong = 'few' if len(row) <= len(readers) else 'many'
      refuse_line(
        path, line, f'too {wrong} columns: {len(row)}, not {1 + len(readers)}; correct or fetch the file again'
      )
    try:
      values.extend([read(text) for read, text in zip(readers, row[1:], strict=True)])
    except (KeyError, ValueError):
      _refuse_cell(path, line, row, cells)
    names.append(row[0])
    lines.append(line)
  if not names:
    raise DataError(f'{path}: holds no row; fetch the file again')
  if len(set(names)) != len(names):
    _refuse_duplicate(path, names, lines)
  return Table(path, tuple(cells), names, lines, np.array(values).reshape(len(names), len(readers)))


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


def _refuse_cell(path: Path, line: int, row: list[str], cells: Mapping[str, Cell]) -> NoReturn:
  for (column, cell), text in zip(cells.items(), row[1:], strict=True):
    try:
      cell.read(text)
    except (KeyError, ValueError):
      wrong = f'{column[:40]!r} of {row[0][:40]!r} is {text[:20]!r}'
      refuse_line(path, line, f'{wrong}, not {cell.expected}; correct the row')
  raise AssertionError('a row was refused, and none of its cells')


def _refuse_duplicate(path: Path, names: list[str], lines: list[int]) -> NoReturn:
  first: dict[str, int] = {}
  for name, line in zip(names, lines, strict=True):
    if name in first:
      refuse_line(path, line, f'{name[:40]!r} was already named in line {first[name]}; remove one of the rows')
    first[name] = line
  raise AssertionError('names repeat, and none was found twice')


PIXELS = Cell(_number_of_pixels, 'a number of pixels')
