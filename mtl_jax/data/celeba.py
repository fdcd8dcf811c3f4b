"""Reads CelebA: the official folders, the same files side by side, or Kaggle's CSV files."""

import array
import csv
import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from mtl_jax.data.source import SPLITS, Record
from mtl_jax.errors import DataError
from mtl_jax.tasks import BinaryTask, LandmarkTask, Task

FOLDERS = ('', 'Anno', 'Eval')
IMAGE_FOLDERS = (
  'img_align_celeba/img_align_celeba',
  'img_align_celeba',
  'Img/img_align_celeba/img_align_celeba',
  'Img/img_align_celeba',
)
MAX_PIXELS = 1e6  # A coordinate beyond this is no pixel, and would lose its fraction in float32.


@dataclasses.dataclass(frozen=True)
class Cells:
  """What the cells of one kind of file hold: how to read one, and in words."""

  read: Callable[[str], float]
  expected: str
  columns: tuple[str, ...] = ()  # Known beforehand where the text file has no header.


@dataclasses.dataclass(frozen=True)
class LabelFile:
  """A file of labels: its name without suffix, its cells, and the task that its columns make."""

  stem: str
  cells: Cells
  make_task: Callable[['Table'], Task]


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


@dataclasses.dataclass(eq=False)
class CelebA:
  """CelebA's annotations, read and checked; the images are only listed. A `Source`.

  Attributes:
    tasks: `attributes`, `landmarks`, or both.
    notes: lines that the user should see, such as what is missing.
    images: the folder of the images.
    image_names: names of the `n` images, in the order of the partition file.
    splits: each image's split.
    labels: for each task float32 `[n, k]`; landmarks in pixels of the source image.
    identity: the number of the person, -1 where unknown, int32 `[n]`.
  """

  tasks: tuple[Task, ...]
  notes: tuple[str, ...]
  images: Path
  image_names: list[str]
  splits: list[str]
  labels: dict[str, np.ndarray]
  identity: np.ndarray
  name: str = 'celeba'

  def records(self) -> Iterator[Record]:
    for row, name in enumerate(self.image_names):
      labels = {task: values[row] for task, values in self.labels.items()}
      yield Record(name, self.splits[row], self.images / name, labels, int(self.identity[row]))


def open_celeba(directory: Path) -> CelebA:
  """Finds and reads CelebA's annotation files below a folder.

  Raises:
    DataError: where the folder is not CelebA, a file is malformed (naming file and line), files do not list the same
      images, or an image does not exist.
  """
  directory = Path(directory)
  if not directory.is_dir():
    raise DataError(f'{directory}: no such folder; give the one that holds img_align_celeba')
  tables = {name: _find(directory, kind.stem, kind.cells) for name, kind in LABELS.items()}
  if all(table is None for table in tables.values()):
    stems = ' nor '.join(kind.stem for kind in LABELS.values())
    raise DataError(f'{directory}: is not CelebA: neither {stems} (.txt or .csv) is here, in Anno or in Eval')
  partition = _find(directory, 'list_eval_partition', PARTITION)
  if partition is None:
    raise DataError(f'{directory}: list_eval_partition.txt (or .csv) is neither here, in Anno nor in Eval')
  images = _find_images(directory)
  num_unlisted = _check_images(images, partition)

  tasks, labels, notes = [], {}, []
  if num_unlisted:
    notes.append(f'warning: {num_unlisted} images of {images} are left out, since {partition.path.name} lacks them')
  for name, table in tables.items():
    if table is None:
      notes.append(f'warning: {LABELS[name].stem} is missing, so there is no task {name}')
      continue
    task = LABELS[name].make_task(table)
    order = [table.columns.index(column) for column in task.labels]
    tasks.append(task)
    labels[name] = _aligned(table, partition)[:, order].astype(np.float32)
  identity = _find(directory, 'identity_CelebA', IDENTITY)
  people = np.full(len(partition.names), -1) if identity is None else _aligned(identity, partition)[:, 0]
  splits = [SPLITS[int(number)] for number in partition.values[:, 0]]
  return CelebA(tuple(tasks), tuple(notes), images, partition.names, splits, labels, people.astype(np.int32))


def read_table(path: Path, cells: Cells) -> Table:
  """An annotation file, `.txt` (values apart by blanks) or `.csv`, with every row checked.

  A text file whose columns are not known beforehand holds the number of rows in line 1 and the columns in line 2; a
  CSV file holds `image_id` and the columns in line 1.

  Raises:
    DataError: for anything else, naming the file and the line.
  """
  rows = _csv_rows(path) if path.suffix == '.csv' else _text_rows(path)
  columns, num_rows = _header(path, rows, cells)
  names: list[str] = []
  lines: list[int] = []
  values = array.array('d')
  for line, row in rows:
    if len(row) != 1 + len(columns):
      wrong = 'few' if len(row) <= len(columns) else 'many'
      _refuse(path, line, f'too {wrong} columns: {len(row)}, not {1 + len(columns)}; correct or fetch the file again')
    try:
      values.extend(map(cells.read, row[1:]))
    except (KeyError, ValueError):
      _refuse_cell(path, line, columns, row, cells)
    names.append(row[0])
    lines.append(line)
  if not names:
    raise DataError(f'{path}: holds no row; fetch the file again')
  if num_rows not in (None, len(names)):
    _refuse(path, 1, f'says {num_rows} rows, but {len(names)} follow; correct it or fetch the file again')
  if len(set(names)) != len(names):
    _refuse_duplicate(path, names, lines)
  return Table(path, columns, names, lines, np.array(values).reshape(len(names), len(columns)))


def _text(path: Path) -> str:
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
    _refuse(path, line, 'is no UTF-8 text; save the file as UTF-8 or fetch it again')


def _text_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
  for line, text in enumerate(_text(path).split('\n'), start=1):
    if row := text.split():
      yield line, row


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
  reader = csv.reader(io.StringIO(_text(path), newline=''), strict=True)
  try:
    for row in reader:
      if row:
        yield reader.line_num, row
  except csv.Error as error:
    _refuse(path, reader.line_num, f'is no CSV ({error}); correct or fetch the file again')


def _header(path: Path, rows: Iterator[tuple[int, list[str]]], cells: Cells) -> tuple[tuple[str, ...], int | None]:
  """The names of the columns, and the number of rows that the file says it has."""
  num_rows = None
  if path.suffix == '.csv':
    line, (first, *columns) = next(rows, (1, ['']))
    if first != 'image_id':
      _refuse(path, line, f"must begin with 'image_id' and name the columns, but begins with {first[:20]!r}")
  elif cells.columns:
    return cells.columns, None
  else:
    line, count = next(rows, (1, []))
    if len(count) != 1 or not _is_count(count[0]):
      _refuse(path, line, f'must be the number of rows, but is {" ".join(count)[:40]!r}')
    num_rows = int(count[0])
    line, columns = next(rows, (line + 1, []))
  if not columns or '' in columns:
    _refuse(path, line, 'must name the columns; fetch the file again')
  if len(set(columns)) != len(columns):
    twice = next(c for i, c in enumerate(columns) if c in columns[:i])
    _refuse(path, line, f'names the column {twice[:40]!r} twice; rename or remove one')
  if cells.columns and tuple(columns) != cells.columns:
    _refuse(path, line, f'must name the columns image_id,{",".join(cells.columns)}')
  return tuple(columns), num_rows


def _attribute_task(table: Table) -> Task:
  return BinaryTask('attributes', table.columns)


def _landmark_task(table: Table) -> Task:
  """Landmarks as x and y in turn, whatever the order of the file's columns."""
  header = 1 if table.path.suffix == '.csv' else 2
  points = tuple(dict.fromkeys(column[:-2] for column in table.columns))
  columns = tuple(f'{point}_{axis}' for point in points for axis in 'xy')
  if sorted(columns) != sorted(table.columns):
    alone = sorted(set(columns) ^ set(table.columns))[0]
    _refuse(table.path, header, f'landmarks are named POINT_x and POINT_y in pairs; see {alone[:40]!r}')
  for side, other in (('left', 'right'), ('right', 'left')):
    for point in points:
      if point.startswith(side) and other + point.removeprefix(side) not in points:
        _refuse(table.path, header, f'{point[:40]!r} needs its {other} partner, since images are mirrored')
  return LandmarkTask('landmarks', columns)


def _aligned(table: Table, partition: Table) -> np.ndarray:
  """The values of a table in the partition's order of rows."""
  if table.names == partition.names:
    return table.values
  for one, other in ((table, partition), (partition, table)):
    known = set(other.names)
    alone = [row for row, name in enumerate(one.names) if name not in known]
    if alone:
      first = f'line {one.lines[alone[0]]}: {one.names[alone[0]][:40]!r}'
      raise DataError(f'{one.path}: {first} is not in {other.path} ({len(alone)} such names); fetch both files again')
  row_of = {name: row for row, name in enumerate(table.names)}
  return table.values[[row_of[name] for name in partition.names]]


def _find(directory: Path, stem: str, cells: Cells) -> Table | None:
  paths = [directory / folder / f'{stem}{suffix}' for suffix in ('.txt', '.csv') for folder in FOLDERS]
  path = next((path for path in paths if path.is_file()), None)
  return None if path is None else read_table(path, cells)


def _find_images(directory: Path) -> Path:
  for folder in IMAGE_FOLDERS:
    if (directory / folder).is_dir():
      return directory / folder
  raise DataError(f'{directory}: neither img_align_celeba nor Img/img_align_celeba is a folder here; unpack the images')


def _check_images(images: Path, partition: Table) -> int:
  """How many image files are named nowhere; raises DataError for a row without an image file."""
  there = {entry.name for entry in os.scandir(images)}
  missing = [row for row, name in enumerate(partition.names) if name not in there]
  if missing:
    name = partition.names[missing[0]][:40]
    such = f'{len(missing)} such images; unpack them all or remove their rows from every file'
    _refuse(partition.path, partition.lines[missing[0]], f'{name!r} is not in {images} ({such})')
  return sum(name.endswith(('.jpg', '.png')) for name in there.difference(partition.names))


def _number_of_pixels(cell: str) -> float:
  value = float(cell)
  if not -MAX_PIXELS < value < MAX_PIXELS or '_' in cell:  # NaN fails the comparison.
    raise ValueError(cell)
  return value


def _number_of_person(cell: str) -> float:
  if not _is_count(cell):
    raise ValueError(cell)
  return float(cell)


def _is_count(cell: str) -> bool:
  return cell.isascii() and cell.isdigit() and len(cell) < 10  # So it fits in 32 bits.


def _refuse(path: Path, line: int, message: str) -> NoReturn:
  raise DataError(f'{path}: line {line}: {message}')


def _refuse_cell(path: Path, line: int, columns: tuple[str, ...], row: list[str], cells: Cells) -> NoReturn:
  for column, cell in zip(columns, row[1:], strict=True):
    try:
      cells.read(cell)
    except (KeyError, ValueError):
      _refuse(path, line, f'{column[:40]!r} of {row[0][:40]!r} is {cell[:20]!r}, not {cells.expected}; correct the row')
  raise AssertionError('a row was refused, and none of its cells')


def _refuse_duplicate(path: Path, names: list[str], lines: list[int]) -> NoReturn:
  first: dict[str, int] = {}
  for name, line in zip(names, lines, strict=True):
    if name in first:
      _refuse(path, line, f'{name[:40]!r} was already named in line {first[name]}; remove one of the rows')
    first[name] = line
  raise AssertionError('names repeat, and none was found twice')


PARTITION = Cells({'0': 0.0, '1': 1.0, '2': 2.0}.__getitem__, '0 (train), 1 (val) or 2 (test)', ('partition',))
IDENTITY = Cells(_number_of_person, "a person's number", ('identity',))
ATTRIBUTES = Cells({'1': 1.0, '-1': 0.0}.__getitem__, '1 or -1')
LANDMARKS = Cells(_number_of_pixels, 'a number of pixels')
LABELS = {
  'attributes': LabelFile('list_attr_celeba', ATTRIBUTES, _attribute_task),
  'landmarks': LabelFile('list_landmarks_align_celeba', LANDMARKS, _landmark_task),
}
