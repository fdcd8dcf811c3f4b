"""Runs that start from another run's weights: what is taken, what is new, and what is refused."""

import logging
import re

import jax
import numpy as np
import pytest
import small_runs
from flax import traverse_util
from safetensors.numpy import save_file

from mtl_jax.data.store import cache as sets
from mtl_jax.errors import UserError
from mtl_jax.models import own_weights
from mtl_jax.run import start_weights, trained_model
from mtl_jax.training import building, loop


@pytest.fixture(scope='module')
def source(faces, tmp_path_factory):
  """A run with averaged weights."""
  directory = tmp_path_factory.mktemp('weights') / 'run'
  loop.train(small_runs.make_config(faces, **{'optimizer.ema_decay': 0.9, 'eval.every_steps': 12}), directory)
  return directory


def start(faces, **overrides) -> dict[str, np.ndarray]:
  """The arrays that a run begins with, by their plain names."""
  config = small_runs.make_config(faces, **overrides)
  store = sets.open_set(config.data.dir)
  run = building.build(config, store)
  state = jax.jit(run.make_state)(pretrained_weights=start_weights.load(config.model, store.image_size))
  return own_weights.flatten(jax.device_get(state.variables))


def test_a_run_starts_from_the_averaged_weights_of_another_and_says_so(faces, source, caplog):
  caplog.set_level(logging.INFO, 'mtl_jax')
  found = start(faces, **{'model.weights': str(source)})
  theirs = own_weights.flatten(trained_model.restore(source).variables)
  assert found.keys() == theirs.keys()
  for name, value in found.items():
    np.testing.assert_array_equal(value, theirs[name], err_msg=name)
  assert 'new here: none; left over there: none' in caplog.text


def test_other_tasks_get_new_heads_and_the_shared_part_of_the_run(faces, source, caplog):
  caplog.set_level(logging.INFO, 'mtl_jax')
  found = start(faces, **{'model.weights': f'{source}@12', 'tasks': 'landmarks', 'model.head': 'mlp'})
  theirs = own_weights.flatten(trained_model.restore(source, step=12).variables)
  for name in found:
    if 'backbone' in name:
      np.testing.assert_array_equal(found[name], theirs[name], err_msg=name)
  assert 'new here: head_landmarks/hidden, head_landmarks/output' in caplog.text
  assert 'left over there: head_attributes/output' in caplog.text


@pytest.mark.parametrize('freeze', ['stage1', 'backbone'])
def test_frozen_stages_are_taken_from_a_run_that_trained_them(faces, source, freeze):
  found = start(faces, **{'model.weights': str(source), 'model.freeze': freeze})
  theirs = own_weights.flatten(trained_model.restore(source).variables)
  assert {name for name in found if 'backbone' in name} == {name for name in theirs if 'backbone' in name}
  for name in found:
    np.testing.assert_array_equal(found[name], theirs[name], err_msg=name)


def test_every_copy_of_a_backbone_starts_from_the_one_of_the_run(faces, source):
  found = start(faces, **{'model.weights': str(source), 'model.sharing': 'mmoe'})
  theirs = own_weights.flatten(trained_model.restore(source).variables)
  copies = {name: re.sub(r'backbone_\w+?/', 'backbone/', name) for name in found if '/backbone_' in name}
  assert len(copies) > len(set(copies.values()))
  for name, one in copies.items():
    np.testing.assert_array_equal(found[name], theirs[one], err_msg=name)


@pytest.mark.parametrize(
  ('value', 'told'),
  [
    ('{source}@7', 'step 7'),
    ('{source}/nothing', 'nothing'),
    ('{source}@12@3', '@12'),
  ],
)
def test_a_run_or_step_that_is_not_there_is_refused(faces, source, value, told):
  with pytest.raises(UserError, match=told):
    start(faces, **{'model.weights': value.format(source=source)})


def test_a_head_is_taken_whole_or_not_at_all(faces, source, said):
  wide = {'model.head': 'mlp', 'model.head_features': 128}  # As wide as the features, so the output layer would fit.
  found, scratch = (start(faces, **wide, **more) for more in ({'model.weights': str(source)}, {}))
  for name in found:
    if 'head_' in name:
      np.testing.assert_array_equal(found[name], scratch[name], err_msg=name)
  assert any('left over there: head_attributes/output, head_landmarks/output' in line for line in said)


def test_a_layer_is_taken_whole_or_not_at_all():
  ones = {'params/backbone/conv1/kernel': np.ones((3, 2)), 'params/backbone/conv1/bias': np.ones(2)}
  same = {'params/backbone/conv2/kernel': np.ones((2, 2)), 'params/backbone/position': np.ones((4, 2))}
  zeros = lambda shape: np.zeros(shape, np.float32)  # noqa: E731
  backbone = {'conv1': {'kernel': zeros((3, 2))}, 'conv2': {'kernel': zeros((2, 2))}, 'position': zeros((9, 2))}
  placed = own_weights.place({'params': {'shared': {'backbone': backbone}}}, ones | same)['params']['shared'][
    'backbone'
  ]
  assert (placed['conv1']['kernel'].sum(), placed['conv2']['kernel'].sum(), placed['position'].sum()) == (0, 4, 0)


def test_a_run_of_another_backbone_is_refused(faces, source):
  with pytest.raises(UserError, match=r'config.model.weights .*backbone'):
    start(faces, **{'model.weights': str(source), 'model.width': 3})


def test_weights_of_a_backbone_of_another_name_are_told_in_a_warning(faces, source, said):
  with pytest.raises(UserError, match=r'config.model.weights .*backbone'):
    start(faces, **{'model.weights': str(source), 'model.backbone': 'resnet18'})
  assert any(line.startswith('warning: config.model.weights') and 'convnet, not resnet18' in line for line in said)


def test_a_file_of_our_names_is_taken_as_the_run_is_and_refused_with_nan(faces, source, tmp_path):
  theirs = {
    name: np.array(value) for name, value in own_weights.flatten(trained_model.restore(source).variables).items()
  }
  save_file(theirs, tmp_path / 'own.safetensors')
  found = start(faces, **{'model.weights': f'{tmp_path}/own.safetensors'})
  for name, value in found.items():
    np.testing.assert_array_equal(value, theirs[name], err_msg=name)
  theirs['params/head_landmarks/output/bias'][0] = np.nan
  save_file(theirs, tmp_path / 'own.safetensors')
  with pytest.raises(UserError, match=r'own\.safetensors: params/head_landmarks/output/bias'):
    start(faces, **{'model.weights': f'{tmp_path}/own.safetensors'})


def test_plain_names_are_those_of_arrays_once_each(faces, source):
  variables = trained_model.restore(source).variables
  assert len(own_weights.flatten(variables)) == len(traverse_util.flatten_dict(variables))
