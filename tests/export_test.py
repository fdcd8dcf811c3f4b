"""An exported program predicts what the checkpoint predicts, for any number of images, without this package."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.export
import numpy as np
import pytest

from mtl_jax import cli
from mtl_jax.evaluation.step import predict_step
from mtl_jax.models import convolution
from mtl_jax.run import trained_model
from mtl_jax.training import loop

# The loader, where neither this package nor Flax can be imported.
ALONE = """
import runpy, sys
sys.modules['mtl_jax'] = sys.modules['flax'] = None
folder = sys.argv.pop(1)
runpy.run_path(folder + '/load.py', run_name='__main__')
"""


@pytest.fixture(scope='module')
def run(tiny_config, tmp_path_factory):
  """The workdir of a ResNet after a step: its maps of 4x4 have convolutions in two forms."""
  directory = tmp_path_factory.mktemp('runs') / 'resnet'
  loop.train(tiny_config(**{'model.backbone': 'resnet18', 'train.steps': 1, 'eval.every_steps': 0}), directory)
  return directory


@pytest.fixture(scope='module')
def exported(run):
  assert cli.main(['export', '--workdir', str(run), '--out', str(run.parent / 'model')]) == 0
  return run.parent / 'model'


def make_images(rows: int) -> np.ndarray:
  return np.random.default_rng(rows).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)


def test_the_loader_alone_gives_the_checkpoints_predictions(exported, run, tmp_path):
  model = trained_model.restore(run)
  predict = jax.jit(partial(predict_step, model=model.model, tasks=model.tasks))
  images = make_images(5)
  np.save(tmp_path / 'images.npy', images)
  arguments = [str(exported), str(tmp_path / 'images.npy'), str(tmp_path / 'out.npz')]
  environment = {**os.environ, 'XLA_FLAGS': ''}  # One device, where the run had eight.
  subprocess.run([sys.executable, '-c', ALONE, *arguments], check=True, cwd=tmp_path, env=environment, timeout=120)
  expected = predict(model.variables, model.label_stats, images)[1]
  found = np.load(tmp_path / 'out.npz')
  assert set(found) == set(expected) == {'attributes', 'landmarks'}
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


def test_the_program_takes_any_number_of_images_on_three_platforms(exported):
  program = jax.export.deserialize(bytearray((exported / 'model.stablehlo').read_bytes()))
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  (images,) = program.in_avals
  assert (str(images.shape), str(images.dtype)) == ('(b, 32, 32, 3)', 'uint8')
  predictions = program.call(make_images(2))
  assert (predictions['attributes'].shape, predictions['landmarks'].shape) == ((2, 40), (2, 10))


def test_the_description_names_every_output_with_its_unit(exported):
  described = json.loads((exported / 'model.json').read_text())
  assert described['input']['image_size'] == [32, 32]
  assert described['platforms'] == ['cpu', 'cuda', 'tpu']
  landmarks = described['outputs']['landmarks']
  assert landmarks['shape'] == ['b', 10]
  assert landmarks['names'][:2] == ['lefteye_x', 'lefteye_y']
  assert landmarks['unit'].startswith('fraction of the image')
  assert len(described['outputs']['attributes']['names']) == 40
  assert described['run']['step'] > 0
  assert described['computes_in'] == 'float32'
  assert described['versions'].keys() >= {'mtl_jax', 'jax'}


def test_each_platform_is_given_its_own_form_of_a_convolution():
  def two_forms(images, kernel):
    return convolution.convolve(images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((2, 2, 2, 3), (3, 3, 3, 5))]
  forms = {}
  for platforms in (('cpu',), ('cuda',), ('cpu', 'tpu')):
    with convolution.chosen_by_platform():
      text = jax.export.export(jax.jit(partial(two_forms)), platforms=platforms)(*shapes).mlir_module()
    forms[platforms] = 'stablehlo.dot_general' in text, 'stablehlo.convolution' in text
  assert forms == {('cpu',): (True, False), ('cuda',): (False, True), ('cpu', 'tpu'): (True, True)}
