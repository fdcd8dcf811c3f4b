"""Reads CelebA: the official folders, the same files side by side, or Kaggle's CSV files."""

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mtl_jax.data.source import SPLITS, ListedImages, landmark_task
from mtl_jax.data.sources.text_table import (
  PIXELS,
  Cell,
  Table,
  is_count,
  read_rows,
  read_text,
  refuse_line,
  rows_apart_by_blanks,
)
from mtl_jax.errors import DataError
from mtl_jax.tasks import BinaryTask, Task

FOLDERS = ('', 'Anno', 'Eval')
IMAGE_FOLDERS = (
  'img_align_celeba/img_align_celeba',
  'img_align_celeba',
  'Img/img_align_celeba/img_align_celeba',
  'Img/img_align_celeba',
)


@dataclasses.dataclass(frozen=True)
class Cells:
  """The format of the cells of one kind of file, which are all alike."""

  cell: Cell
  columns: tuple[str, ...] = ()  # Known beforehand where the text file has no header.


@dataclasses.dataclass(frozen=True)
class LabelFile:
  """A file of labels: its name without suffix, its cells, and the task that its columns make."""

  stem: str
  cells: Cells
  make_task: Callable[[Table], Task]


def open_celeba(directory: Path) -> ListedImages:
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
  return ListedImages(
    'celeba', tuple(tasks), tuple(notes), images, partition.names, splits, labels, people.astype(np.int32)
  )


def read_table(path: Path, cells: Cells) -> Table:
  """An annotation file, `.txt` (values apart by blanks) or `.csv`, with every row checked.

  A text file whose columns are not known beforehand holds the number of rows in line 1 and the columns in line 2; a
  CSV file holds `image_id` and the columns in line 1.

  Raises:
    DataError: for anything else, naming the file and the line.
  """
  rows = _csv_rows(path) if path.suffix == '.csv' else rows_apart_by_blanks(path)
  columns, num_rows = _header(path, rows, cells)
  table = read_rows(path, rows, dict.fromkeys(columns, cells.cell))
  if num_rows not in (None, len(table.names)):
    refuse_line(path, 1, f'says {num_rows} rows, but {len(table.names)} follow; correct it or fetch the file again')
  return table


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
  reader = csv.reader(io.StringIO(read_text(path), newline=''), strict=True)
  try:
    for row in reader:
      if row:
        yield reader.line_num, row
  except csv.Error as error:
    refuse_line(path, reader.line_num, f'is no CSV ({error}); correct or fetch the file again')


def _header(path: Path, rows: Iterator[tuple[int, list[str]]], cells: Cells) -> tuple[tuple[str, ...], int | None]:
  """The names of the columns, and the number of rows that the file says it has."""
  num_rows = None
  if path.suffix == '.csv':
    line, (first, *columns) = next(rows, (1, ['']))
    if first != 'image_id':
      refuse_line(path, line, f"must begin with 'image_id' and name the columns, but begins with {first[:20]!r}")
  elif cells.columns:
    return cells.columns, None
  else:
    line, count = next(rows, (1, []))
    if len(count) != 1 or not is_count(count[0]):
      refuse_line(path, line, f'must be the number of rows, but is {" ".join(count)[:40]!r}')
    num_rows = int(count[0])
    line, columns = next(rows, (line + 1, []))
  if not columns or '' in columns:
    refuse_line(path, line, 'must name the columns; fetch the file again')
  if len(set(columns)) != len(columns):
    twice = next(c for i, c in enumerate(columns) if c in columns[:i])
    refuse_line(path, line, f'names the column {twice[:40]!r} twice; rename or remove one')
  if cells.columns and tuple(columns) != cells.columns:
    refuse_line(path, line, f'must name the columns image_id,{",".join(cells.columns)}')
  return tuple(columns), num_rows


def _attribute_task(table: Table) -> Task:
  return BinaryTask('attributes', table.columns)


def _landmark_task(table: Table) -> Task:
  """Landmarks as x and y in turn, whatever the order of the file's columns."""
  try:
    return landmark_task(table.columns)
  except ValueError as error:
    refuse_line(table.path, 1 if table.path.suffix == '.csv' else 2, str(error))


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
  """Counts the image files that are named nowhere; raises DataError for a row without an image file."""
  there = {entry.name for entry in os.scandir(images)}
  missing = [row for row, name in enumerate(partition.names) if name not in there]
  if missing:
    name = partition.names[missing[0]][:40]
    such = f'{len(missing)} such images; unpack them all or remove their rows from every file'
    refuse_line(partition.path, partition.lines[missing[0]], f'{name!r} is not in {images} ({such})')
  return sum(name.endswith(('.jpg', '.png')) for name in there.difference(partition.names))


def _number_of_person(cell: str) -> float:
  if not is_count(cell):
    raise ValueError(cell)
  return float(cell)


PARTITION = Cells(Cell({'0': 0.0, '1': 1.0, '2': 2.0}.__getitem__, '0 (train), 1 (val) or 2 (test)'), ('partition',))
IDENTITY = Cells(Cell(_number_of_person, "a person's number"), ('identity',))
ATTRIBUTES = Cells(Cell({'1': 1.0, '-1': 0.0}.__getitem__, '1 or -1'))
LANDMARKS = Cells(PIXELS)
LABELS = {
  'attributes': LabelFile('list_attr_celeba', ATTRIBUTES, _attribute_task),
  'landmarks': LabelFile('list_landmarks_align_celeba', LANDMARKS, _landmark_task),
}
