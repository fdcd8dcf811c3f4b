"""CUB is read as it is laid out: species, attributes that could be seen, boxes, splits; refused where it is wrong."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.prepare import prepare
from mtl_jax.data.sources.cub import open_cub
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import DataError

NUM, SPECIES = 30, ('001.Black_footed_Albatross', '002.Laysan_Albatross')
ATTRIBUTES = ('has_bill_shape::curved_(up_or_down)', 'has_size::small_(5_-_9_in)')


@pytest.fixture
def cub(tmp_path):
  """A folder as `write_cub` fills it."""
  write_cub(tmp_path / 'CUB_200_2011')
  return tmp_path / 'CUB_200_2011'


def write_cub(root):
  """Thirty birds of two species as CUB writes them; every third is of the test split, in the middle a dark square."""
  random = np.random.default_rng(0)
  names = [f'{SPECIES[i % 2]}/bird_{i:04d}.jpg' for i in range(NUM)]
  for name in names:
    path = root / 'images' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((40, 50, 3), 200, np.uint8)
    pixels[10:30, 20:40] = random.integers(0, 60, 3)
    Image.fromarray(pixels).save(path, quality=95)
  lists = {
    'images.txt': [f'{i + 1} {name}' for i, name in enumerate(names)],
    'classes.txt': [f'{i + 1} {name}' for i, name in enumerate(SPECIES)],
    'image_class_labels.txt': [f'{i + 1} {i % 2 + 1}' for i in range(NUM)],
    'train_test_split.txt': [f'{i + 1} {int(i % 3 > 0)}' for i in range(NUM)],
    'bounding_boxes.txt': [f'{i + 1} 20.0 10.0 20.0 20.0' for i in range(NUM)],
    'attributes/attributes.txt': [f'{i + 1} {name}' for i, name in enumerate(ATTRIBUTES)],
    'attributes/image_attribute_labels.txt': [
      f'{i + 1} {a + 1} {(i + a) % 2} {1 if i == 4 else 3} 1.5{" 0 2" if i == 7 else ""}'
      for i in range(NUM)
      for a in range(2)
    ],
  }
  for name, lines in lists.items():
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text('\n'.join(lines) + '\n')


def test_species_attributes_and_splits_are_those_of_the_lists(cub):
  source = open_cub(cub)
  species, attributes = source.tasks
  assert (species.kind, species.classes) == ('categorical', SPECIES)
  assert attributes.labels == ATTRIBUTES
  assert source.labels['species'][:, 0].tolist() == [i % 2 for i in range(NUM)]
  assert [split == 'test' for split in source.splits] == [i % 3 == 0 for i in range(NUM)]
  assert set(source.splits) <= {'train', 'val', 'test'}
  expected = np.array([[(i + a) % 2 for a in range(2)] for i in range(NUM)], float)
  expected[4] = np.nan  # Not visible.
  np.testing.assert_array_equal(source.labels['attributes'], expected)


def test_images_are_cropped_to_the_birds(cub, tmp_path):
  out = tmp_path / 'out'
  prepare('cub', source=cub, out=out, image_size=(16, 16), num=0, seed=0, log=lambda _: None)
  store = open_store(out)
  assert np.asarray(store.images.take(np.arange(NUM))).mean() < 80  # The square alone, not what is around it.
  assert {task.name for task in store.tasks} == {'species', 'attributes'}


def test_without_attributes_there_are_the_species(cub):
  for path in (cub / 'attributes').iterdir():
    path.unlink()
  (cub / 'attributes').rmdir()
  source = open_cub(cub)
  assert [task.name for task in source.tasks] == ['species']
  assert 'attributes is missing' in source.notes[0]


@pytest.mark.parametrize(
  ('name', 'line', 'message'),
  [
    ('images.txt', '5 nowhere.jpg', "line 5: 'nowhere.jpg' is not in"),
    ('images.txt', '5', 'line 5: must be a new number'),
    ('image_class_labels.txt', '5 9', "line 5: 'class' of '5' is '9', not a class"),
    ('train_test_split.txt', '77 1', "line 5: '77' is not in"),
    ('attributes/image_attribute_labels.txt', '3 1 2 3 1.0', 'line 5: must be image, attribute, 0 or 1'),
  ],
)
def test_a_wrong_line_is_refused_with_its_place(cub, name, line, message):
  path = cub / name
  lines = path.read_text().split('\n')
  lines[4] = line
  path.write_text('\n'.join(lines))
  with pytest.raises(DataError, match=message) as caught:
    open_cub(cub)
  assert name in str(caught.value)


def test_another_folder_is_not_cub(tmp_path):
  with pytest.raises(DataError, match='is not CUB'):
    open_cub(tmp_path)
