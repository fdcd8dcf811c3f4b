"""FairFace's bins are read in every form that spreadsheets leave; its official validation rows are the test split."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl_jax import cli
from mtl_jax.data.sources import utkface
from mtl_jax.data.sources.fairface import RACES, YEARS, open_fairface
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import DataError

HEADER = 'file,age,gender,race,service_test'
TRAIN, VAL = 'fairface_label_train.csv', 'fairface_label_val.csv'


def write_fairface(root: Path, *, ages=tuple(YEARS), races=RACES) -> None:
  """Images and both CSV files as the authors publish them; the ages in turn, and so the races."""
  for folder, file, num in (('train', TRAIN, 27), ('val', VAL, 9)):
    (root / folder).mkdir(parents=True)
    lines = [HEADER]
    for row in range(num):
      Image.new('RGB', (8, 8), (row, num, 0)).save(root / folder / f'{row}.jpg')
      gender = ('Male', 'Female')[row % 2]
      cells = ages[row % len(ages)], gender, races[row % len(races)], 'TRUE' if row % 3 else 'FALSE'
      lines.append(','.join([f'{folder}/{row}.jpg', *cells]))
    (root / file).write_text('\n'.join(lines) + '\n')


def test_labels_and_splits_are_what_the_rows_say(tmp_path):
  write_fairface(tmp_path / 'source')
  assert cli.main(['prepare', 'fairface', '--source', f'{tmp_path}/source', '--out', f'{tmp_path}/set']) == 0
  opened = open_store(tmp_path / 'set')
  assert {task.name: task.kind for task in opened.tasks} == {
    'age_group': 'ordinal',
    'gender': 'binary',
    'race7': 'categorical',
  }
  assert all(name.startswith('val/') for name in opened.names[opened.splits['test'].start :])
  assert opened.split_sizes['test'] == 9
  rows = [int(Path(name).stem) for name in opened.names]
  assert opened.labels['age_group'][:, 0].tolist() == [row % 9 for row in rows]
  assert opened.labels['gender'][:, 0].tolist() == [1 - row % 2 for row in rows]
  assert opened.labels['race7'][:, 0].tolist() == [row % 7 for row in rows]


def test_every_year_of_utkface_falls_into_the_bin_of_its_name(tmp_path):
  write_fairface(tmp_path)
  age = open_fairface(tmp_path).tasks[0]
  for year in range(1, utkface.MAX_AGE + 1):
    number = int(age.from_source(np.array([year], np.float32), width=8, height=8)[0])
    first, _, last = age.classes[number].partition('-')
    assert int(first.rstrip('+')) <= year <= int(last or 1000)


def test_ages_that_a_spreadsheet_took_for_dates_are_read(tmp_path):
  for number, ages in enumerate((('3-9', '10-19'), ('03-Sep', 'Oct-19'), ('9-Mar', '19-Oct'))):
    write_fairface(tmp_path / str(number), ages=ages)
  found = [open_fairface(tmp_path / str(number)).labels['age_group'] for number in range(3)]
  np.testing.assert_array_equal(found[0], found[1])
  np.testing.assert_array_equal(found[0], found[2])


def test_races_that_mean_the_same_are_named_as_in_utkface(tmp_path):
  write_fairface(tmp_path)
  theirs = {task.name: task for task in utkface.TASKS}['race'].classes
  assert {'white', 'black', 'indian'} <= set(theirs) & set(open_fairface(tmp_path).tasks[2].classes)


def test_a_file_alone_is_read(tmp_path):
  write_fairface(tmp_path)
  (tmp_path / TRAIN).unlink()
  source = open_fairface(tmp_path)
  assert set(source.splits) == {'test'}
  assert TRAIN in source.notes[0]


@pytest.mark.parametrize(
  ('row', 'said'),
  [
    ('train/0.jpg,21,Male,White,TRUE', 'age'),
    ('train/0.jpg,20-29,male,White,TRUE', 'gender'),
    ('train/0.jpg,20-29,Male,Asian,TRUE', 'race'),
    ('train/0.jpg,20-29,Male,White,maybe', 'service_test'),
    ('train/0.jpg,20-29,Male,White', 'columns'),
    ('train/99.jpg,20-29,Male,White,TRUE', 'train/99.jpg'),
  ],
)
def test_a_bad_row_is_refused_by_file_line_and_column(tmp_path, row, said):
  write_fairface(tmp_path)
  (tmp_path / TRAIN).write_text(f'{HEADER}\n{row}\n')
  with pytest.raises(DataError, match=f'{TRAIN}: line 2: .*{said}'):
    open_fairface(tmp_path)


def test_another_header_is_refused(tmp_path):
  write_fairface(tmp_path)
  (tmp_path / VAL).write_text('file,age,gender,race\nval/0.jpg,20-29,Male,White\n')
  with pytest.raises(DataError, match=f'{VAL}: line 1'):
    open_fairface(tmp_path)


def test_real_faces_are_read_whole():
  if 'MTL_JAX_REAL_DATA' not in os.environ:
    pytest.skip('MTL_JAX_REAL_DATA names no folder of real data')
  source = open_fairface(Path(os.environ['MTL_JAX_REAL_DATA']) / 'fairface')
  assert [source.splits.count(split) for split in ('train', 'val', 'test')] == [5430, 573, 1466]
  assert source.labels['gender'].sum() == 3994  # Men.
