"""Reads CelebA: the official folders, the same files side by side, or Kaggle's CSV files."""

from pathlib import Path

import numpy as np

from mtl_jax.data.source import SPLITS, ListedImages, landmark_task
from mtl_jax.data.sources.text_table import (
  PIXELS,
  Cell,
  Rows,
  Table,
  image_files,
  is_count,
  read_lines,
  read_table,
  refuse_line,
)
from mtl_jax.errors import DataError
from mtl_jax.tasks import BinaryTask

FOLDERS = ('', 'Anno', 'Eval')
IMAGE_FOLDERS = tuple(
  f'{above}{name}'
  for name in ('img_align_celeba', 'img_align_celeba_png')
  for above in (f'{name}/', '', f'Img/{name}/', 'Img/')
)


def _number_of_person(cell: str) -> float:
  if not is_count(cell):
    raise ValueError(cell)
  return float(cell)


# Annotation files: the name without suffix, and the kind of cell.
PARTITION = 'list_eval_partition', Cell({'0': 0.0, '1': 1.0, '2': 2.0}.__getitem__, '0 (train), 1 (val) or 2 (test)')
IDENTITY = 'identity_CelebA', Cell(_number_of_person, "a person's number")
LABELS: dict[str, tuple[str, Cell]] = {
  'attributes': ('list_attr_celeba', Cell({'1': 1.0, '-1': 0.0}.__getitem__, '1 or -1')),
  'landmarks': ('list_landmarks_align_celeba', PIXELS),
}


def open_celeba(directory: Path) -> ListedImages:
  """Finds and reads CelebA's annotation files below a folder.

  Raises:
    DataError: where the folder is not CelebA, a file is malformed (naming file and line), files do not list the same
      images, or an image does not exist.
  """
  directory = Path(directory)
  if not directory.is_dir():
    raise DataError(f'{directory}: no such folder; give the one that holds img_align_celeba')
  tables = {name: _find(directory, *file) for name, file in LABELS.items()}
  if not any(tables.values()):
    stems = ' nor '.join(stem for stem, _ in LABELS.values())
    raise DataError(f'{directory}: is not CelebA: neither {stems} (.txt or .csv) is here, in Anno or in Eval')
  partition = _find(directory, *PARTITION, 'partition')
  if partition is None:
    raise DataError(f'{directory}: list_eval_partition.txt (or .csv) is neither here, in Anno nor in Eval')
  folder = next((directory / name for name in IMAGE_FOLDERS if (directory / name).is_dir()), None)
  if folder is None:
    raise DataError(
      f'{directory}: neither img_align_celeba nor Img/img_align_celeba is a folder here; unpack the images'
    )
  images = image_files(partition, folder)

  tasks, labels, notes = [], {}, []
  unlisted = {file.name for file in folder.iterdir() if file.suffix in ('.jpg', '.png')} - {
    file.name for file in images.values()
  }
  if unlisted:
    notes.append(f'warning: {len(unlisted)} images of {folder} are left out, since {partition.path.name} lacks them')
  for name, table in tables.items():
    if table is None:
      notes.append(f'warning: {LABELS[name][0]} is missing, so there is no task {name}')
      continue
    try:
      task = landmark_task(table.columns) if name == 'landmarks' else BinaryTask(name, table.columns)
    except ValueError as error:
      refuse_line(table.path, 1 if table.path.suffix == '.csv' else 2, str(error))
    tasks.append(task)
    labels[name] = table.aligned(partition).select(task.labels)
  people = _find(directory, *IDENTITY, 'identity')
  return ListedImages(
    name='celeba',
    tasks=tuple(tasks),
    notes=tuple(notes),
    images=images,
    splits=[SPLITS[int(number)] for number in partition.values[:, 0]],
    labels=labels,
    identity=None if people is None else people.aligned(partition).values[:, 0].astype(np.int32),
  )


def _find(directory: Path, stem: str, cell: Cell, *known: str) -> Table | None:
  """The table of a file, `.txt` (values apart by blanks) or `.csv`, every row checked; None where it is missing.

  A text file whose columns are not known beforehand holds the number of rows in line 1 and the columns in line 2; a
  CSV file holds `image_id` and the columns in line 1.
  """
  paths = [directory / folder / f'{stem}{suffix}' for suffix in ('.txt', '.csv') for folder in FOLDERS]
  path = next((path for path in paths if path.is_file()), None)
  if path is None:
    return None
  rows, columns, num_rows = read_lines(path), known, None
  if path.suffix == '.csv':
    line, (first, *named) = next(rows, (1, ['']))
    if first != 'image_id':
      refuse_line(path, line, f"must begin with 'image_id' and name the columns, but begins with {first[:20]!r}")
    columns = _columns(path, line, named)
    if known and columns != known:
      refuse_line(path, line, f'must name the columns image_id,{",".join(known)}')
  elif not columns:
    num_rows = _num_rows(path, rows)
    columns = _columns(path, *next(rows, (2, [])))
  table = read_table(path, rows, dict.fromkeys(columns, cell))
  if num_rows not in (None, len(table.lines)):
    refuse_line(path, 1, f'says {num_rows} rows, but {len(table.lines)} follow; correct it or fetch the file again')
  return table


def _num_rows(path: Path, rows: Rows) -> int:
  line, count = next(rows, (1, []))
  if len(count) != 1 or not is_count(count[0]):
    refuse_line(path, line, f'must be the number of rows, but is {" ".join(count)[:40]!r}')
  return int(count[0])


def _columns(path: Path, line: int, columns: list[str]) -> tuple[str, ...]:
  if not columns or '' in columns:
    refuse_line(path, line, 'must name the columns; fetch the file again')
  if len(set(columns)) != len(columns):
    twice = next(c for i, c in enumerate(columns) if c in columns[:i])
    refuse_line(path, line, f'names the column {twice[:40]!r} twice; rename or remove one')
  return tuple(columns)
