"""Slices of a split have the metrics of their own images, with intervals; what cannot be measured there is said."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from mtl_jax import cli
from mtl_jax.data.input import mixture
from mtl_jax.data.source import Record
from mtl_jax.data.store.reader import open_store
from mtl_jax.data.store.writer import prepare
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation import slices
from mtl_jax.metrics.draws import draw
from mtl_jax.tasks import BinaryTask, CategoricalTask, RegressionTask

NUM = 40


class Faces:
  """Test images of noise, two of each person; nobody looks right, and of no woman the age is known."""

  name = 'faces'
  tasks = (
    BinaryTask('attributes', ('Smiling', 'Male')),
    CategoricalTask('pose', ('pose',), classes=('left', 'front', 'right')),
    RegressionTask('age', ('age',)),
  )

  def records(self):
    rng = np.random.default_rng(0)
    for number in range(NUM):
      content = io.BytesIO()
      Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(content, 'png')
      male = np.nan if number < 4 else number % 3 == 0
      labels = {
        'attributes': np.array([rng.integers(2), male]),
        'pose': rng.integers(0, 2, 1),
        'age': np.array([30 if male else np.nan]),
      }
      yield Record(f'{number}.png', 'test', content.getvalue, labels, identity=number // 2)


@pytest.fixture(scope='module')
def sliced(tmp_path_factory):
  """The set, its test split, predictions for it, and what slices by `Male` and `pose` gave."""
  directory = tmp_path_factory.mktemp('faces') / 'set'
  prepare(Faces(), directory, image_size=(8, 8), encoding='decoded', log=lambda _: None)
  store, rng = open_store(directory), np.random.default_rng(1)
  split = mixture.load_split(store, 'test', store.tasks)
  predictions = {'attributes': rng.random((NUM, 2)), 'pose': rng.random((NUM, 3)), 'age': rng.uniform(1, 80, (NUM, 1))}
  by = slices.choose(['attributes/Male', 'pose'], store)
  return store, split, predictions, slices.of_split(by, predictions, split, store.tasks, store, name='test')


def test_a_slice_has_the_metrics_of_its_own_images(sliced):
  _, split, predictions, found = sliced
  labels, mask = split.labels['attributes'], split.mask['attributes']
  for value in (0, 1):
    rows = mask[:, 1] & (labels[:, 1] == value)
    one = found['slices']['attributes/Male'][str(value)]
    assert one['num_examples'] == rows.sum()
    expected = sklearn_metrics.average_precision_score(labels[rows, 0], predictions['attributes'][rows, 0])
    assert one['tasks']['attributes']['per_output']['Smiling']['ap'] == pytest.approx(expected)
    expected = sklearn_metrics.accuracy_score(split.labels['pose'][rows, 0], predictions['pose'][rows].argmax(1))
    assert one['tasks']['pose']['accuracy'] == pytest.approx(expected)


def test_intervals_are_percentiles_over_resamples_of_people(sliced):
  store, split, predictions, found = sliced
  rows = split.mask['attributes'][:, 1] & (split.labels['attributes'][:, 1] == 1)
  right = (predictions['attributes'][:, 0] >= 0.5) == split.labels['attributes'][:, 0]
  resampled = draw(store.identity)
  assert resampled.weights is not None
  values = [
    np.average(right[rows], weights=w)
    for weights in resampled.weights.T
    if (w := weights[resampled.clusters[rows]]).any()
  ]
  one = found['slices']['attributes/Male']['1']['intervals']['attributes']
  assert one['per_output']['Smiling']['accuracy'] == pytest.approx(np.percentile(values, (2.5, 97.5)))
  low, high = found['intervals']['age']['mae']
  assert low < high
  assert found['intervals']['age'].keys() == {'mae', 'rmse', 'per_output'}
  assert found['intervals']['attributes']['macro_ece'] is None  # Resampling enlarges it.
  assert found['intervals']['attributes']['per_output']['Smiling']['ece'] is None


def test_empty_slices_labels_of_one_class_and_missing_labels_are_said(sliced):
  found = sliced[-1]['slices']
  right = found['pose']['right']
  assert right['num_examples'] == 0
  assert right['tasks']['attributes']['macro_accuracy'] is None
  assert right['intervals']['attributes']['macro_accuracy'] is None
  assert right['unlabelled'] == ['attributes/Smiling', 'attributes/Male', 'pose', 'age']
  women = found['attributes/Male']['0']
  assert (women['one_class'], women['unlabelled']) == (['attributes/Male'], ['age'])
  assert found['pose']['front']['one_class'] == ['pose']


@pytest.mark.parametrize('name', ['hair', 'attributes/Mael', 'attributes', 'age'])
def test_what_divides_no_split_is_refused_by_its_flag(sliced, name):
  with pytest.raises(ConfigError, match='--slices'):
    slices.choose([name], sliced[0])


def test_eval_prints_a_table_for_each_label_and_a_report_shows_it(trained_dir, tmp_path, capsys):
  directory = shutil.copytree(trained_dir, tmp_path / 'run')
  assert cli.main(['eval', '--workdir', str(directory), '--slices', 'attributes/Male,attributes/Young']) == 0
  text = capsys.readouterr().out
  assert 'By attributes/Male' in text
  assert 'By attributes/Young' in text
  assert 'all alike in attributes/' in text
  assert cli.main(['report', '--workdir', str(directory)]) == 0
  assert 'by attributes/Young' in (directory / 'report.html').read_text()
