"""Shapes of the user's own parts, which are checked before anything is computed."""

import jax
import numpy as np
import pytest
import small_runs
from own_parts_page import CODE, WRAPPED

import mtl_jax
from mtl_jax import tasks
from mtl_jax.config import parts
from mtl_jax.errors import UserError
from mtl_jax.run import recipe

BINARY = (tasks.BinaryTask('look', ('red', 'round')), tasks.LandmarkTask('centre', ('middle_x', 'middle_y')))
PARTS = """
import flax.linen as nn

from mtl_jax.models import heads
from mtl_jax.models.backbone import Backbone
from mtl_jax.models.sharing.hard import Hard


def conv(index):
  return nn.Conv(4, (3, 3), strides=2, name=f'conv{index}')


class Net(Backbone):
  num_stages = 2

  @nn.compact
  def stage(self, x, index, *, train):
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(conv(index)(x)))
    return nn.BatchNorm(use_running_average=not train, name=f'norm{index}')(x)


def small(dtype):
  return Net(dtype=dtype)


class Flat(Net):
  num_stages = 1

  @nn.compact
  def stage(self, x, index, *, train):
    return nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))


class SharedNorm(Net):
  @nn.compact
  def stage(self, x, index, *, train):
    return nn.BatchNorm(use_running_average=not train)(conv(index)(x))


class Unnamed(Net):
  @nn.compact
  def stage(self, x, index, *, train):
    return nn.Conv(4 + index, (3, 3))(x)


class NoTrain(Net):
  @nn.compact
  def stage(self, x, index):
    return x


class NoPool(Net):
  def pool(self, x):
    return x


class Call(Backbone):
  num_stages = 1

  def __call__(self, x, *, train):
    return x


class Uncounted(Backbone):
  pass


class Three(heads.Head):
  @nn.compact
  def __call__(self, representation):
    return nn.Dense(3)(representation.features)


class Squeezed(heads.Head):
  @nn.compact
  def __call__(self, representation):
    return nn.Dense(1)(representation.features)[:, 0]


class OfArray(heads.Head):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.outputs)(x)


class Dropping(heads.Head):
  @nn.compact
  def __call__(self, representation):
    return nn.Dense(self.outputs)(nn.Dropout(0.5, deterministic=False)(representation.features))


class AlwaysDropping(Net):
  @nn.compact
  def stage(self, x, index, *, train):
    return nn.Dropout(0.5, deterministic=False)(x)


class Several(Hard):
  names: tuple = ()


class Bare(Hard):
  flag: bool = True

  def __call__(self, images, *, train):
    return self.backbone(images, train=train)
"""


@pytest.fixture
def state_maker(tmp_path):
  """`state_maker({'model.head': 'Three'})`: the state of a network with parts of `parts.py`, by field."""
  (tmp_path / 'parts.py').write_text(PARTS)
  (tmp_path / 'cnn.py').write_text(WRAPPED)

  def make(names, chosen=BINARY):
    own = {
      field: f'{tmp_path}/{"cnn" if name == "Wrapped" else "parts"}.py:{name}' if name[0].isupper() else name
      for field, name in names.items()
    }
    config = mtl_jax.get_config(small_runs.make_config(tmp_path, **{'model.width': 0}), own)
    made = recipe.from_config(config, chosen)
    stats = {task.name: task.empty_stats() for task in chosen}
    return made.model, recipe.state_maker(made, config, chosen, label_stats=stats, image_size=(16, 16))

  return make


@pytest.mark.parametrize(
  ('field', 'name', 'said'),
  [
    ('backbone', 'SharedNorm', 'stages 0 and 1 .*BatchNorm_0'),
    ('backbone', 'Unnamed', 'stages 0 and 1 .*Conv_0'),
    ('backbone', 'NoTrain', "TypeError: .*'train'"),
    ('backbone', 'NoPool', r'\(b, 4, 4, 4\), not \(b, f\)'),
    ('backbone', 'Call', r'no method stage\(self, x, index, \*, train\)'),
    ('backbone', 'Uncounted', 'num_stages'),
    ('head', 'Three', r'\(b, 3\), not \(b, 2\)'),
    ('heads.centre', 'Squeezed', r'\(b,\), not \(b, 2\)'),
    ('backbone', 'AlwaysDropping', 'InvalidRngError'),
    ('head', 'Dropping', 'InvalidRngError'),
    ('sharing', 'Several', 'names needs a default'),
    ('sharing', 'Bare', r'\(b, \d+\), not a Representation'),
    ('head', 'OfArray', r'; a head reads representation\.features'),
  ],
)
def test_a_part_of_the_wrong_shape_is_one_line_before_the_first_step(state_maker, field, name, said):
  with pytest.raises(UserError, match=rf'^config\.model\.{field}: .*parts\.py:{name}.*{said}') as caught:
    state_maker({f'model.{field}': name})
  assert '\n' not in str(caught.value)


def test_a_head_of_maps_on_a_backbone_of_features_blames_the_backbone(state_maker):
  with pytest.raises(UserError, match=r'^config\.model\.backbone: .*parts\.py:Flat failed'):
    state_maker({'model.backbone': 'Flat', 'model.heads.centre': 'soft_argmax'})


@pytest.mark.parametrize('fields', [{}, {'model.freeze': 'stage0'}, {'model.sharing': 'cross_stitch'}], ids=str)
@pytest.mark.parametrize('name', ['Net', 'Wrapped', 'Flat'])
def test_backbones_of_maps_and_of_features_are_frozen_and_shared_as_others(state_maker, name, fields):
  model, make = state_maker({'model.backbone': name, **fields})
  shapes = jax.eval_shape(model.outputs, jax.eval_shape(make).variables, jax.ShapeDtypeStruct((3, 16, 16, 3), 'f4'))
  assert {task: found.shape for task, found in shapes.items()} == {'look': (3, 2), 'centre': (3, 2)}


def test_dropout_of_a_backbone_drops_in_training_by_the_steps_key_and_not_in_evaluation(state_maker):
  model, make = state_maker({'model.backbone': 'Flat'})
  variables, images = make().variables, jax.numpy.ones((2, 16, 16, 3))
  features = lambda **mode: np.asarray(model.encode(variables, images, **mode)[0].features)  # noqa: E731
  first, again, other = (features(train=True, key=jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  np.testing.assert_array_equal(features(train=False), features(train=False, key=jax.random.key(1)))


@pytest.mark.parametrize(
  ('before', 'after', 'said'),
  [
    ('return jnp.exp(outputs) - targets * outputs', 'return (outputs - targets).mean(1)', r'\(b,\), not \(b, 1\)'),
    ('return jnp.exp(outputs)\n', 'return outputs.mean()\n', r'\(\), not \(b, 1\)'),
    ('return jnp.exp(outputs) - targets * outputs', 'return 1 / 0', r'ZeroDivisionError: .*\(line \d+\)'),
  ],
)
def test_a_kind_of_task_whose_loss_or_predictions_have_another_shape_is_named(
  state_maker, tmp_path, monkeypatch, before, after, said
):
  monkeypatch.setattr(tasks, 'KINDS', dict(tasks.KINDS))
  assert before in CODE[-1]
  (tmp_path / 'count.py').write_text(CODE[-1].replace(before, after))
  (kind,) = parts.classes(f'{tmp_path}/count.py', tasks.Task, field='config.plugins')
  with pytest.raises(UserError, match=rf'^config\.plugins: .*count\.py:CountTask.*{said}'):
    state_maker({}, (kind('squares', ('squares',)),))
