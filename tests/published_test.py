"""A published model: its loader in plain JAX predicts as the run does, its weights start another, its card is true."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import mtl_jax
from mtl_jax import cli
from mtl_jax.config import with_values
from mtl_jax.data.input import mixture
from mtl_jax.evaluation import published
from mtl_jax.evaluation.model import Model
from mtl_jax.models import convnext, multitask, own_weights, resnet, vit
from mtl_jax.run import start_weights, trained_model, workdir
from mtl_jax.tasks import BinaryTask, CategoricalTask, DenseTask, LandmarkTask, OrdinalTask, RegressionTask
from mtl_jax.training import building

# The loader, where neither this package nor Flax can be imported.
ALONE = """
import sys, numpy
sys.modules['mtl_jax'] = sys.modules['flax'] = None
from {loader} import load
numpy.savez('out.npz', **load()[0](numpy.load('images.npy')))
"""


def predict_alone(folder, images, loader='load_model') -> dict[str, np.ndarray]:
  np.save(folder / 'images.npy', images)
  environment = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(folder)}
  command = [sys.executable, '-c', ALONE.format(loader=loader)]
  subprocess.run(command, check=True, cwd=folder, env=environment, timeout=120)
  return dict(np.load(folder / 'out.npz'))


def make_images(rows: int, size=(32, 32)) -> np.ndarray:
  return np.random.default_rng(rows).integers(0, 256, (rows, *size, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def run(trained_dir, tmp_path_factory):
  """A copy of the joint run, evaluated by slices."""
  copy = shutil.copytree(trained_dir, tmp_path_factory.mktemp('published') / 'joint')
  mtl_jax.evaluate(copy, slices=['attributes/Male', 'attributes/Young'])
  return copy


@pytest.fixture(scope='module')
def folder(run):
  assert cli.main(['export', '--workdir', str(run), '--out', str(run.parent / 'out'), '--format', 'safetensors']) == 0
  return run.parent / 'out'


def test_the_loader_alone_predicts_what_the_run_does_by_name(run, folder):
  images = make_images(3)
  found, described = predict_alone(folder, images), json.loads((folder / 'config.json').read_text())
  names = {task['name']: task['names'] for task in described['tasks']}
  for row, expected in enumerate(mtl_jax.load(run).predict(images)):
    attributes = dict(zip(names['attributes'], found['attributes'][row], strict=True))
    assert attributes == pytest.approx(expected['attributes'], abs=1e-5)
    points = {name: 32 * value for name, value in zip(names['landmarks'], found['landmarks'][row], strict=True)}
    for point, (x, y) in expected['landmarks'].items():
      assert (points[f'{point}_x'], points[f'{point}_y']) == pytest.approx((x, y), abs=32e-5)


def test_the_loader_is_short_and_imports_nothing_of_ours(folder):
  text = (folder / 'load_model.py').read_text()
  assert len(text.splitlines()) < 100
  assert 'import mtl_jax' not in text
  assert 'from mtl_jax' not in text


TASKS = (
  BinaryTask('attributes', ('Smiling', 'Male')),
  LandmarkTask('landmarks', ('nose_x', 'nose_y')),
  RegressionTask('age', ('years',)),
  CategoricalTask('pose', ('pose',), classes=('left', 'front', 'right')),
  OrdinalTask('decade', ('decade',), classes=('young', 'middle', 'old')),
  DenseTask('parsing', ('parsing',), classes=('around', 'face'), size=(32, 32)),
)
# Of four backbones fewer layers, of which there are many of a kind.
SHORT = {
  'resnet18': partial(resnet.ResNet, stage_sizes=(1, 1), block=resnet.BasicBlock),
  'resnet50': partial(resnet.ResNet, stage_sizes=(1, 1), block=resnet.BottleneckBlock),
  'convnext_tiny': partial(convnext.ConvNeXt, stage_sizes=(1, 1, 1, 1)),
  'vit_s16': partial(vit.VisionTransformer, depth=2, groups=2),
}
MODELS = {
  'resnet18': {'model.width': 4},
  'resnet50': {
    'model.width': 4,
    'model.norm': 'group',
    'model.stem': 'imagenet',
    'model.heads.landmarks': 'soft_argmax',
  },
  'mobilenet_v2': {'model.width': 4, 'model.freeze': 'stage1', 'model.trunk_features': (6,), 'model.head': 'linear'},
  'convnext_tiny': {'model.width': 4},
  'vit_s16': {'model.width': 16, 'model.sharing': 'multilinear'},
  'convnet': {'model.width': 4, 'model.sharing': 'separate', 'model.head': 'per_output'},
  'celeba_cnn': {'model.width': 4, 'model.sharing': 'soft', 'model.heads.landmarks': 'upsampled_soft_argmax'},
}


def as_other(run, tiny_config, values: dict, tasks=TASKS) -> trained_model.TrainedModel:
  """A model of other settings whose weights, statistics and units are random."""
  config = with_values(tiny_config(','.join(task.name for task in tasks)), values)
  made, random = multitask.from_config(config.model, tasks), np.random.default_rng(0)
  shapes = jax.eval_shape(made.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
  variables = jax.tree.map(lambda leaf: random.uniform(0.1, 0.4, leaf.shape).astype(np.float32), shapes)
  variables = jax.tree.map(lambda leaf: leaf * random.choice((-1, 1), leaf.shape) if leaf.ndim > 1 else leaf, variables)
  stats = {}
  for task in tasks:
    unit = lambda leaf: random.uniform(0.5, 2, leaf.shape).astype(np.float32)  # noqa: E731
    stats[task.name] = jax.tree.map(unit, task.empty_stats())
  facts = replace(run.facts, tasks=tasks)
  return replace(run, config=config, facts=facts, model=made, variables=variables, label_stats=stats)


@pytest.mark.parametrize('backbone', MODELS)
def test_every_backbone_head_and_kind_is_written_plainly(trained_dir, tiny_config, backbone, tmp_path, monkeypatch):
  monkeypatch.setitem(multitask.BACKBONES, backbone, SHORT.get(backbone, multitask.BACKBONES[backbone]))
  values = {'model.backbone': backbone, **MODELS[backbone]}
  tasks = TASKS[:-1] if values.get('model.trunk_features') else TASKS  # A map has no trunk before it.
  model = as_other(trained_model.restore(trained_dir), tiny_config, values, tasks)
  published.write(model, tmp_path)
  namespace = {'__file__': str(tmp_path / 'load_model.py')}
  exec((tmp_path / 'load_model.py').read_text(), namespace)
  images = make_images(2)
  found, expected = namespace['load']()[0](images), jax.jit(Model(model).apply)(model.variables, images)
  assert found.keys() == expected.keys() == {task.name for task in tasks}
  for name, values in expected.items():
    assert np.ptp(np.asarray(values, np.float32)) > 0 or name == 'parsing'
    np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  'values', [{'model.sharing': 'mmoe'}, {'model.sharing': 'separate', 'model.freeze': 'stage0'}], ids=str
)
def test_what_is_not_written_plainly_has_the_loader_of_its_program(trained_dir, tiny_config, values, tmp_path, said):
  model = as_other(trained_model.restore(trained_dir), tiny_config, {'model.backbone': 'convnet', **values}, TASKS[:2])
  published.write(model, tmp_path)
  assert not (tmp_path / 'load_model.py').exists()
  assert values['model.sharing'] in said[0]
  found = predict_alone(tmp_path, make_images(2), 'load')
  assert found['landmarks'].shape == (2, 2)
  assert load_file(tmp_path / 'model.safetensors').keys() == own_weights.flatten(model.variables).keys()


def test_a_run_starts_from_the_folder_and_from_its_file_alike(run, folder, tiny_config):
  theirs = own_weights.flatten(mtl_jax.load(run).variables)
  for place in (folder, folder / 'model.safetensors'):
    config = workdir.with_absolute_paths(tiny_config(**{'model.weights': str(place)}))
    made = building.build(config, mixture.open_data(config.data))
    weights = start_weights.load(config.model, made.store.image_size)
    found = own_weights.flatten(jax.jit(made.make_state)(pretrained_weights=weights).variables)
    assert found.keys() == theirs.keys()
    for name, value in found.items():
      np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_files_of_weights_keep_the_stem_of_their_network(trained_dir, tiny_config, tmp_path):
  net = {'model.backbone': 'resnet18', 'model.width': 4}
  published.write(as_other(trained_model.restore(trained_dir), tiny_config, net, TASKS[:2]), tmp_path)
  for place in (tmp_path, tmp_path / 'model.safetensors'):
    config = workdir.with_absolute_paths(tiny_config(**net, **{'model.weights': str(place)}))
    assert multitask.backbone_from_config(config.model).stem != 'imagenet'


def test_a_format_that_there_is_not_is_refused(run, tmp_path):
  with pytest.raises(mtl_jax.UserError, match='--format'):
    mtl_jax.export(run, tmp_path / 'out', format='onnx')


# The card.


def card(folder) -> tuple[dict, str]:
  _, head, body = (folder / 'README.md').read_text().split('---\n', 2)
  return yaml.safe_load(head), body


def test_the_card_holds_what_the_evaluation_measured(run, folder):
  head, body = card(folder)
  found = json.loads((run / 'eval' / 'test.json').read_text())
  results = {result['task']['name']: result['metrics'][0] for result in head['model-index'][0]['results']}
  assert results['landmarks']['value'] == found['tasks']['landmarks']['nme']
  assert results['attributes']['value'] == found['tasks']['attributes']['macro_accuracy']
  assert head['datasets'] == ['synthetic']
  assert head['pipeline_tag'] == 'image-classification'
  low, high = found['intervals']['landmarks']['nme']
  assert f'{100 * low:.2f}% to {100 * high:.2f}%' in body
  for name, values in found['tasks']['attributes']['per_output'].items():
    assert f'| {name} | {values["num_labels"]} |' in body
  assert 'By attributes/Male' in body
  assert 'drawn' in body


def test_a_card_names_no_path_of_this_machine(run, folder):
  for name in ('README.md', 'config.json', 'load_model.py'):
    text = (folder / name).read_text()
    assert str(run.parent) not in text
    assert workdir.read(run)[0].data.dir not in text


def test_metrics_of_another_step_are_not_taken(run, tmp_path, said):
  other = {2: 4, 4: 2}[json.loads((run / 'eval' / 'test.json').read_text())['step']]
  mtl_jax.export(run, tmp_path / 'out', format='safetensors', step=other)
  head, body = card(tmp_path / 'out')
  assert head['model-index'][0]['results'] == []
  assert 'has not been evaluated' in body
  assert 'eval --workdir' in said[-1]
