"""Reads FairFace (Kärkkäinen, Joo 2021) in its own layout: a CSV file for each of train/ and val/."""

from pathlib import Path

from mtl_jax.data.source import ListedImages
from mtl_jax.data.sources.text_table import Cell, Table, read_lines, read_official, read_table, refuse_line
from mtl_jax.tasks import BinaryTask, CategoricalTask, OrdinalTask, Task

# The first year of each bin, by what a cell may say; spreadsheets take two of the bins for dates.
YEARS = {'0-2': 0, '3-9': 3, '10-19': 10, '20-29': 20, '30-39': 30, '40-49': 40, '50-59': 50, '60-69': 60}
YEARS |= {'more than 70': 70}
AS_DATES = {'03-Sep': 3, '3-Sep': 3, '09-Mar': 3, '9-Mar': 3, 'Oct-19': 10, '19-Oct': 10}
RACES = ('White', 'Black', 'East Asian', 'Southeast Asian', 'Indian', 'Middle Eastern', 'Latino_Hispanic')
TASKS: tuple[Task, ...] = (
  OrdinalTask('age_group', ('age',), classes=(*list(YEARS)[:-1], '70+'), edges=tuple(list(YEARS.values())[1:])),
  BinaryTask('gender', ('Male',)),
  # UTKFace's white, black and indian mean the same; its asian is two of these, and its other holds the last two.
  CategoricalTask('race7', ('race',), classes=tuple(race.lower().replace(' ', '_') for race in RACES)),
)
COLUMNS = ['file', 'age', 'gender', 'race', 'service_test']
CELLS = {  # By the tasks' labels.
  'age': Cell({text: float(year) for text, year in (YEARS | AS_DATES).items()}.__getitem__, 'a bin such as 20-29'),
  'Male': Cell({'Male': 1.0, 'Female': 0.0}.__getitem__, 'a gender, Male or Female'),
  'race': Cell({race: float(number) for number, race in enumerate(RACES)}.__getitem__, f'one of {", ".join(RACES)}'),
  'service_test': Cell({'TRUE': 1.0, 'FALSE': 0.0, 'True': 1.0, 'False': 0.0}.__getitem__, 'TRUE or FALSE'),
}
FILES = {'train': 'fairface_label_train.csv', 'test': 'fairface_label_val.csv'}


def open_fairface(directory: Path) -> ListedImages:
  """Reads both CSV files; one of them may be missing.

  The official validation rows are `test`, since the authors publish no other; a tenth of the training images, by their
  bytes, is `val`: see `held_out`. The column service_test, which rows the authors tried commercial services on, says
  nothing of the face and is not kept.

  Raises:
    DataError: where the folder is not FairFace, a file is malformed or an image is missing (naming file and line).
  """
  return read_official(Path(directory), FILES, _read_table, name='FairFace', tasks=TASKS)[0]


def _read_table(path: Path) -> Table:
  rows = read_lines(path)
  line, header = next(rows, (1, []))
  if header != COLUMNS:
    refuse_line(path, line, f'must be {",".join(COLUMNS)}; fetch the file again')
  return read_table(path, rows, CELLS)
