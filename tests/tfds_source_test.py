"""A set that TFDS has written is read without TensorFlow, or refused in one line that says what to do."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mtl_jax import cli
from mtl_jax.data.sources.tfds import open_tfds
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import DataError

WIDTH, HEIGHT = 178, 218
POINTS = ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth')
LANDMARKS = tuple(f'{point}_{axis}' for point in POINTS for axis in 'xy')
ATTRIBUTES = ('5_o_Clock_Shadow', 'Male', 'Smiling', 'Young')
HAS_TENSORFLOW = importlib.util.find_spec('tensorflow') is not None
ROWS = {'train': range(12), 'validation': range(12, 16), 'test': range(16, 20), 'extra': range(20, 22)}


def picture(row: int) -> Image.Image:
  """A face of one colour, by which its row can be told: a JPEG changes it by little."""
  return Image.new('RGB', (WIDTH, HEIGHT), (row * 10, 255 - row * 10, 128))


def example(row: int) -> dict:
  content = io.BytesIO()
  picture(row).save(content, 'JPEG', quality=95)
  content.seek(0)
  rng = np.random.default_rng(row)
  return {
    'image': content,
    'landmarks': {name: int(rng.integers(0, HEIGHT if name.endswith('y') else WIDTH)) for name in LANDMARKS},
    'attributes': {name: bool(rng.integers(0, 2)) for name in ATTRIBUTES},
    'identity': {'Identity_No': 1000 + row},
  }


FEATURES = {
  'image': tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format='jpeg'),
  'landmarks': dict.fromkeys(LANDMARKS, np.int64),
  'attributes': dict.fromkeys(ATTRIBUTES, np.bool_),
  'identity': {'Identity_No': np.int64},
}


class SmallCelebA(tfds.core.GeneratorBasedBuilder):
  """Features as TFDS's celeb_a has them; `only` and `changed` are for the sets that must be refused."""

  VERSION = tfds.core.Version('1.2.3')
  only: tuple[str, ...] = tuple(FEATURES)
  changed: dict = {}  # noqa: RUF012

  def _info(self):
    chosen = {name: feature for name, feature in {**FEATURES, **self.changed}.items() if name in self.only}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(chosen))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(rows) for split, rows in ROWS.items()}

  def _generate_examples(self, rows):
    for row in rows:
      yield str(row), {name: part for name, part in example(row).items() if name in self.only}


def write(directory: Path, builder=SmallCelebA) -> Path:
  builder(data_dir=str(directory), file_format='array_record').download_and_prepare()
  return directory


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory) -> Path:
  return write(tmp_path_factory.mktemp('tfds'))


def refusal(name: str, directory: Path | None) -> str:
  with pytest.raises(DataError) as caught:
    open_tfds(name, directory)
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_the_prepared_set_equals_what_was_written(data_dir, tmp_path, capsys):
  out = tmp_path / 'set'
  arguments = ['--source', str(data_dir), '--out', str(out), '--image_size', '8', '8']
  assert cli.main(['prepare', 'tfds:small_celeb_a', *arguments]) == 0
  assert 'the split extra of small_celeb_a/1.2.3 is left out' in capsys.readouterr().err
  opened = open_store(out)
  assert [(task.name, task.labels) for task in opened.tasks] == [('attributes', ATTRIBUTES), ('landmarks', LANDMARKS)]
  assert opened.schema['options'] == {'tfds': 'small_celeb_a/1.2.3'}
  assert (opened.source_size == (WIDTH, HEIGHT)).all()
  for split, name in (('train', 'train'), ('val', 'validation'), ('test', 'test')):
    rows = [int(opened.identity[i]) - 1000 for i in opened.split(split)]  # TFDS shuffles what it writes.
    assert sorted(rows) == list(ROWS[name])
    assert [opened.names[i] for i in opened.split(split)] == [f'{name}/{i}' for i in range(len(rows))]
    for i, row in zip(opened.split(split), rows, strict=True):
      stated = example(row)
      assert opened.labels['attributes'][i].tolist() == [stated['attributes'][label] for label in ATTRIBUTES]
      landmarks = np.array([stated['landmarks'][label] for label in LANDMARKS]).reshape(5, 2) / (WIDTH, HEIGHT)
      np.testing.assert_allclose(opened.labels['landmarks'][i].reshape(5, 2), landmarks, rtol=1e-6)
      assert opened.mask['attributes'][i].all()
      assert opened.mask['landmarks'][i].all()
      content = np.asarray(Image.open(stated['image']).resize((8, 8), Image.Resampling.BILINEAR))
      np.testing.assert_array_equal(opened.images[i], content)


def test_tensorflow_is_not_wanted(data_dir):
  for record in open_tfds('small_celeb_a:1.2.3', data_dir).records():
    assert record.image()[:2] == b'\xff\xd8'  # The bytes of the JPEG itself, read one by one.
  assert 'tensorflow' not in sys.modules


def test_attributes_alone_will_do(tmp_path):
  class OnlyAttributes(SmallCelebA, skip_registration=True):
    only = ('image', 'attributes')

  source = open_tfds('only_attributes', write(tmp_path, OnlyAttributes))
  assert [task.name for task in source.tasks] == ['attributes']
  assert {record.identity for record in source.records()} == {-1}


@pytest.mark.parametrize(
  ('kept', 'other', 'said'),
  [
    (('attributes', 'landmarks'), {}, 'has no feature image that is an image; its features are attributes, landmarks'),
    (('image', 'identity'), {}, 'has neither landmarks nor attributes; its features are identity, image'),
    (('image', 'attributes'), {'attributes': dict.fromkeys(ATTRIBUTES, np.int64)}, 'attributes/5_o_Clock_Shadow must'),
    (('image', 'landmarks'), {'landmarks': dict.fromkeys(LANDMARKS, np.bool_)}, 'must be a single number of pixels'),
  ],
)
def test_other_features_are_refused(tmp_path, kept, other, said):
  class Unlike(SmallCelebA, skip_registration=True):
    only = kept
    changed = other

  assert said in refusal('unlike', write(tmp_path, Unlike))


def test_landmarks_without_their_pair_are_refused(tmp_path):
  class Odd(SmallCelebA, skip_registration=True):
    only = ('image', 'landmarks')
    changed = {'landmarks': {'nose_x': np.int64}}  # noqa: RUF012

    def _generate_examples(self, rows):
      for row in rows:
        yield str(row), {'image': example(row)['image'], 'landmarks': {'nose_x': 3}}

  assert "named POINT_x and POINT_y in pairs; see 'nose_y'" in refusal('odd', write(tmp_path, Odd))


def test_a_set_that_is_not_there_is_told_how_to_come_by(data_dir, tmp_path):
  message = refusal('celeb_a', data_dir)
  assert message.startswith(f'tfds:celeb_a: TFDS has not written this set in --source {data_dir}; ')
  assert "pip install 'mtl_jax[tf]'" in message
  assert 'tfds build celeb_a --file_format=array_record' in message
  assert 'mtl-jax prepare celeba --source DIR' in message
  assert 'is no folder' in refusal('celeb_a', tmp_path / 'none')
  for name in ('a/b/c', '', 'x:y', '../x'):
    refusal(name, data_dir)


def test_the_default_folder_is_that_of_tfds(data_dir, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(data_dir))
  assert len(list(open_tfds('small_celeb_a', None).records())) == 20
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  assert cli.main(['prepare', 'tfds:small_celeb_a', '--out', str(tmp_path / 'set')]) == 2
  assert "has not written this set in TFDS's default data_dir (--source DIR takes another)" in capsys.readouterr().err


READ_WITH_TENSORFLOW = """
import sys, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tfds_source_test as test
from mtl_jax.data.sources.tfds import open_tfds
folders = [Path(sys.argv[2]) / form for form in ('array_record', 'tfrecord')]
for folder in folders:
  test.SmallCelebA(data_dir=str(folder), file_format=folder.name).download_and_prepare()
first, second = (list(open_tfds('small_celeb_a', folder).records()) for folder in folders)
for one, other in zip(first, second, strict=True):
  assert (one.name, one.split, one.identity) == (other.name, other.split, other.identity)
  assert one.image() == other.image()
  for name, labels in one.labels.items():
    np.testing.assert_array_equal(labels, other.labels[name])
print(len(first), 'tensorflow' in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TENSORFLOW, reason='TensorFlow, the extra tf, is not installed')
def test_tfrecord_files_are_read_with_tensorflow_to_the_same_records(tmp_path):
  command = [sys.executable, '-c', READ_WITH_TENSORFLOW, str(Path(__file__).parent), str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.stdout.splitlines()[-1:] == ['20 True'], done.stderr


@pytest.mark.skipif(HAS_TENSORFLOW, reason='TensorFlow, the extra tf, is installed')
def test_files_that_only_tensorflow_reads_are_refused_without_it(tmp_path):
  path = write(tmp_path) / 'small_celeb_a' / '1.2.3' / 'dataset_info.json'
  info = json.loads(path.read_text())
  path.write_text(json.dumps({**info, 'fileFormat': 'tfrecord'}))
  message = refusal('small_celeb_a', tmp_path)
  assert message == (
    'tfds:small_celeb_a: is in tfrecord files, which TFDS reads with TensorFlow alone; '
    "pip install 'mtl_jax[tf]' and try again"
  )


def test_tfds_asking_for_tensorflow_is_told_in_one_line(data_dir, monkeypatch):
  def ask(*_, **__):
    raise ModuleNotFoundError("No module named 'tensorflow'", name='tensorflow')

  monkeypatch.setattr(tfds.core.read_only_builder, 'builder_from_files', ask)
  message = refusal('small_celeb_a', data_dir)
  assert message.startswith('tfds:small_celeb_a: TFDS needs TensorFlow to read it; ')
  assert "pip install 'mtl_jax[tf]'" in message


@pytest.mark.parametrize(
  'file', ['features.json', 'dataset_info.json', 'small_celeb_a-train.array_record-00000-of-00001']
)
@pytest.mark.parametrize('content', [b'', b'{', None])
def test_broken_files_are_refused_in_one_line(tmp_path, refused, file, content):
  path = write(tmp_path / 'tfds') / 'small_celeb_a' / '1.2.3' / file
  path.write_bytes(content) if content is not None else path.unlink()
  refused('prepare', 'tfds:small_celeb_a', '--source', tmp_path / 'tfds', '--out', tmp_path / 'set')
  assert not (tmp_path / 'set').exists()
