"""Clothes are read as they are laid out, disagreement is a missing label, hostile .mat files are refused in a line."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from mtl_jax import cli
from mtl_jax.data.source import content_digest, tenth_of
from mtl_jax.data.sources.clothing import ATTRIBUTES, CHOICES, MAX_BYTES, MAX_ROWS, open_clothing
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import DataError

NUM = 40
STEMS = ('category', 'neckline', 'sleevelength', 'gender', *ATTRIBUTES)
MOST = {'category': 7, 'neckline': 3, 'sleevelength': 3}


def stated(stem: str) -> np.ndarray:
  """The numbers of a file, each of them there; every seventh is NaN."""
  row = np.arange(NUM)
  return np.where(row % 7 == STEMS.index(stem) % 7, np.nan, row % MOST.get(stem, 2) + 1.0)


def write_clothing(root: Path) -> None:
  """Images of many sizes, and labels as the set has them: `GT` `[n, 1]` in a .mat file each."""
  for folder in ('images', 'labels'):
    (root / folder).mkdir(parents=True)
  for row in range(NUM):
    Image.new('RGB', (20 + row, 60 - row), (row, 0, 0)).save(root / 'images' / f'{row + 1:06d}.jpg')
  for stem in STEMS:
    scipy.io.savemat(root / 'labels' / f'{stem}_GT.mat', {'GT': stated(stem)[:, None]})


@pytest.fixture
def clothing(tmp_path):
  write_clothing(tmp_path / 'clothing')
  return tmp_path / 'clothing'


def test_tasks_and_labels_are_what_the_files_say(clothing):
  source = open_clothing(clothing)
  assert [(task.name, task.kind) for task in source.tasks] == [
    *((name, 'categorical') for name in ('category', 'neckline', 'sleeves')),
    *((name, 'binary') for name in ('gender', 'attributes')),
  ]
  assert {task.name: len(task.classes) for task in source.tasks[:3]} == {'category': 7, 'neckline': 3, 'sleeves': 3}
  assert list(source.images) == [f'{row + 1:06d}.jpg' for row in range(NUM)]
  np.testing.assert_equal(source.labels['category'][:, 0], (stated('category') - 1).astype(np.float32))
  np.testing.assert_equal(source.labels['sleeves'][:, 0], (stated('sleevelength') - 1).astype(np.float32))
  np.testing.assert_equal(source.labels['gender'][:, 0], (2 - stated('gender')).astype(np.float32))  # 1 is male here.
  scarf = source.labels['attributes'][:, ATTRIBUTES.index('scarf')]
  np.testing.assert_equal(scarf, (stated('scarf') - 1).astype(np.float32))


def test_the_split_is_by_the_bytes_of_the_images(clothing):
  source = open_clothing(clothing)
  tenths = [tenth_of(content_digest(path)) for path in source.images.values()]
  assert source.splits == [{0: 'val', 1: 'test'}.get(tenth, 'train') for tenth in tenths]


def test_the_command_line_prepares_clothes(clothing, tmp_path):
  arguments = ['--source', str(clothing), '--out', str(tmp_path / 'set'), '--image_size', '8', '8']
  assert cli.main(['prepare', 'clothing', *arguments]) == 0
  opened = open_store(tmp_path / 'set')
  assert len(opened.names) == NUM
  for name in CHOICES:
    assert (~opened.mask[name]).sum() == np.isnan(stated('sleevelength' if name == 'sleeves' else name)).sum()


def _saved(value, **options) -> bytes:
  whole = io.BytesIO()
  scipy.io.savemat(whole, {'GT': value}, **options)
  return whole.getvalue()


cell = np.empty((NUM, 1), object)
cell[:] = [[np.array([[1.0]])]] * NUM
column = np.ones((NUM, 1))


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (b'', 'category_GT.mat'),
    (b'not MATLAB', 'category_GT.mat'),
    (_saved(cell), 'no numbers GT'),
    (_saved({'category': 1.0}), 'no numbers GT'),
    (_saved('shirts'), 'no numbers GT'),
    (_saved(column + 1j), 'real'),
    (_saved(np.ones((NUM, 2))), 'shape'),
    (_saved(np.zeros((0, 1))), 'category_GT.mat'),
    (_saved(np.ones((NUM - 1, 1))), 'rows'),
    (_saved(column * 1.5), 'row 1'),
    (_saved(column * 8), 'row 1'),
    (_saved(column * 0), 'row 1'),
    (_saved(column * np.inf), 'row 1'),
    (_saved(column, do_compression=True)[:150], 'category_GT.mat'),
    (_saved(column)[:116] + zlib.compress(b'GT') * 40, 'category_GT.mat'),
    (_saved(np.zeros((MAX_ROWS + 1, 1)), do_compression=True), 'shape'),
    (_saved(column) + bytes(MAX_BYTES), 'bytes, more than'),
  ],
)
def test_a_file_that_is_no_column_of_labels_is_refused(clothing, content, said):
  (clothing / 'labels' / 'category_GT.mat').write_bytes(content)
  with pytest.raises(DataError, match=r'_GT\.mat') as caught:
    open_clothing(clothing)
  assert said in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('gone', ['labels', 'labels/scarf_GT.mat', 'images/000012.jpg'])
def test_what_is_missing_is_named(clothing, gone):
  (clothing / gone).rename(clothing / 'elsewhere')
  with pytest.raises(DataError, match=Path(gone).name):
    open_clothing(clothing)


def test_real_clothes_are_read_whole():
  if 'MTL_JAX_REAL_DATA' not in os.environ:
    pytest.skip('MTL_JAX_REAL_DATA names no folder of real data')
  source = open_clothing(Path(os.environ['MTL_JAX_REAL_DATA']) / 'clothing')
  assert [source.splits.count(split) for split in ('train', 'val', 'test')] == [1481, 173, 202]
  category = source.labels['category'][:, 0]
  assert np.bincount(category[~np.isnan(category)].astype(int)).tolist() == [134, 88, 108, 220, 232, 62, 260]
  assert np.nansum(source.labels['gender']) == 762  # Men.
