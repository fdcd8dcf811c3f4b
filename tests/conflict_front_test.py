"""A sweep over weights on faces whose two tasks contend for one shared number: what no network can exceed is known."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import small_runs
from PIL import Image

import mtl_jax
from mtl_jax import config as configs
from mtl_jax.data.source import Record
from mtl_jax.data.synthetic import drawing, people
from mtl_jax.sweeps import sweep
from mtl_jax.tasks import BinaryTask

SEEN = ('Pale_Skin', 'Wearing_Necktie')  # Lines in the space of pixels tell both, even at 16x16.
TASKS = tuple(name.lower() for name in SEEN)
SPLITS = {'train': 300, 'val': 100, 'test': 100}
MOST = 2 - 1 / 4  # The sum of both accuracies, where each combination of labels has a quarter of the faces.
UNIT = """
import flax.linen as nn
from mtl_jax.models.backbone import Backbone


class Unit(Backbone):
  width: int = 1
  num_stages = 1

  @nn.compact
  def stage(self, x, index, *, train):
    return nn.Dense(self.width)(x.reshape(len(x), 1, 1, -1))
"""


class Faces:
  """Drawn faces, as many with each combination of two attributes, which are what they look like."""

  name = 'contending'
  tasks = tuple(BinaryTask(name, (name,)) for name in TASKS)

  def records(self):
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    for index, split in enumerate(splits):
      values = {'Bald': 0, 'Blurry': 0} | {name: index >> bit & 1 for bit, name in enumerate(SEEN)}
      subject = people.subject_of(index, seed=0)
      strength = {**subject.strength, **{name: 0.9 if value else -0.9 for name, value in values.items()}}
      face, _ = drawing.draw(dataclasses.replace(subject, strength=strength), np.random.default_rng(index))
      stream = io.BytesIO()
      Image.fromarray(face).save(stream, 'PNG')
      labels = {task: [values[name]] for task, name in zip(TASKS, SEEN, strict=True)}
      yield Record(f'{index}.png', split, stream.getvalue, labels, identity=index)


open_source = Faces


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
  return mtl_jax.prepare(Path(__file__), out=tmp_path_factory.mktemp('contending') / 'faces', image_size=(16, 16))


@pytest.fixture
def config(faces, tmp_path, monkeypatch):
  small_runs.on_one_device(monkeypatch)
  (tmp_path / 'unit.py').write_text(UNIT)
  fields = {
    'tasks': TASKS, 'model.backbone': f'{tmp_path / "unit.py"}:Unit', 'train.steps': 300, 'train.batch_size': 64,
    'eval.every_steps': 300, 'optimizer.learning_rate': 1e-2,
  }  # fmt: skip
  return configs.load(small_runs.make_config(faces, **{'model.width': 1}), fields)


def test_weights_reach_either_end_of_a_front_that_no_network_with_one_shared_unit_exceeds(config, tmp_path):
  """Two thresholds on one number predict three of four combinations, so a quarter of the faces has an error."""
  fields = {'sweep.weights_of': TASKS, 'sweep.weight_steps': 6, 'sweep.sampler': 'grid', 'sweep.confirm_seeds': 2}
  found = sweep.run(configs.load(config, {**fields, 'study.num_resamples': 100}), tmp_path / 'run')['front']
  kept = [found['compared']['tasks'][task]['macro_accuracy'] for task in TASKS]
  reached = {arm: np.array([of[arm]['values'] for of in kept]) for arm in found['compared']['arms']}
  alone = reached.pop('single')
  assert (alone.sum(axis=0) > MOST).all()  # So the tasks do contend.
  assert all((accuracies.sum(axis=0) <= MOST).all() for accuracies in reached.values())
  assert found['hypervolume']['fixed weights']['of_single']['mean'] < 1
  assert found['hypervolume']['fixed weights']['beyond_single']['mean'] == 0
  on_front = np.array([reached[point['arm']].mean(axis=1) for point in found['points'] if point['kind'] == 'weights'])
  np.testing.assert_allclose(on_front.max(axis=0), alone.mean(axis=1), atol=0.1)
  assert (on_front.min(axis=0) < 0.75).all()


def test_two_shared_units_end_the_conflict(config, tmp_path):
  metrics = mtl_jax.train(config, tmp_path / 'run', overrides={'model.width': 2}).evaluate()['tasks']
  assert sum(metrics[task]['macro_accuracy'] for task in TASKS) > MOST
