"""Python's own door: the functions of `mtl_jax`, the pages' code, and a trained model in use."""

import dataclasses
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import small_runs
from ml_collections import ConfigDict
from PIL import Image

import mtl_jax
from mtl_jax.data.store import cache as sets
from mtl_jax.evaluation.model import Model
from mtl_jax.run import workdir
from mtl_jax.tasks import LandmarkTask

PAGE = Path(__file__).parents[1] / 'docs' / 'python.md'


@pytest.fixture(scope='module')
def run(faces, tmp_path_factory) -> mtl_jax.Run:
  return mtl_jax.train(small_runs.make_config(faces), tmp_path_factory.mktemp('api') / 'run')


@pytest.fixture
def run_code(tmp_path, monkeypatch, capsys):
  """Runs the Python code of a page in its order, in an empty folder, and gives what it prints."""
  monkeypatch.chdir(tmp_path)
  small_runs.on_one_device(monkeypatch)

  def run(page: Path) -> str:
    code = '\n'.join(re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL))
    exec(compile(code, str(page), 'exec'), {'__name__': 'page'})
    return capsys.readouterr().out

  return run


def test_the_code_of_the_readme_trains_and_predicts(run_code):
  nme, probability = run_code(PAGE.parents[1] / 'README.md').split()
  assert 0 < float(nme) < 1
  assert 0 <= float(probability) <= 1


def test_the_code_of_the_page_runs_in_its_order(run_code):
  printed = run_code(PAGE)
  assert printed.startswith('20 ')
  assert "did you mean 'steps'?" in printed


def test_the_reference_is_made_from_the_docstrings_as_they_are():
  made = runpy.run_path(str(PAGE.with_name('write_api.py')))['page']()
  assert PAGE.with_name('api.md').read_text() == made, 'python docs/write_api.py writes it anew'


def test_every_public_name_is_there_and_importing_them_does_not_start_jax():
  code = 'import sys, mtl_jax; assert "jax" not in sys.modules; print([getattr(mtl_jax, n) for n in mtl_jax.__all__])'
  subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
  with pytest.raises(AttributeError):
    mtl_jax.no_such_name  # noqa: B018


def test_a_run_tells_its_steps_and_is_evaluated_and_resumed(run):
  assert run.step == 12
  assert run.evaluate(split='val')['step'] == run.best_step
  assert mtl_jax.train(config_of(run), run.workdir) == run


WITHOUT_VAL = """
import io
from PIL import Image
from mtl_jax.data.source import Record
from mtl_jax.tasks import BinaryTask

class open_source:
  name, tasks = 'plain', (BinaryTask('look', ('bright',)),)

  def records(self):
    for i in range(24):
      content = io.BytesIO()
      Image.new('RGB', (8, 8), (9 * i,) * 3).save(content, 'png')
      yield Record(f'{i}.png', ('train', 'test')[i % 2], content.getvalue, {'look': [i > 12]})
"""


def test_without_a_validation_split_the_last_step_counts_and_it_is_said(tmp_path, said):
  (tmp_path / 'plain.py').write_text(WITHOUT_VAL)
  plain = mtl_jax.prepare(tmp_path / 'plain.py', out=tmp_path / 'plain', image_size=8)
  run = mtl_jax.train(small_runs.make_config(plain, tasks='look'), tmp_path / 'run', overrides={'train.steps': 2})
  assert run.step == run.best_step == run.load().step == 2
  assert any('no validation split' in line for line in said)


def config_of(run: mtl_jax.Run) -> ConfigDict:
  return workdir.read(run.workdir)[0]


def test_arrays_files_and_lists_of_any_sizes_give_the_same_predictions(run, tmp_path):
  model = run.load()
  pixels = np.random.default_rng(0).integers(0, 255, (40, *model.image_size, 3), np.uint8)  # More than a batch.
  Image.fromarray(pixels[0]).save(tmp_path / 'face.png')
  by_array = model.predict(pixels)
  assert len(by_array) == 40
  assert model.predict(list(pixels[:3])) == by_array[:3]
  assert model.predict([tmp_path / 'face.png', str(tmp_path / 'face.png')]) == [by_array[0]] * 2
  grey = np.full((8, 8, 3), 99, np.uint8)
  small, large = model.predict([grey, np.full((16, 24, 3), 99, np.uint8)])
  np.testing.assert_allclose(large['landmarks']['nose'], small['landmarks']['nose'] * np.array([3, 2]), rtol=1e-5)


def test_predictions_by_apply_are_those_of_the_evaluation(run, tmp_path):
  model = run.load()
  mtl_jax.evaluate(run.workdir, predictions=tmp_path / 'test.npz')
  written = np.load(tmp_path / 'test.npz')
  images = sets.open_set(config_of(run).data.dir).images[written['example_id']]
  found = jax.jit(model.apply)(model.variables, images)
  for task in model.tasks:
    np.testing.assert_allclose(found[task.name], written[f'{task.name}/pred'], rtol=1e-4, atol=1e-5)


def test_features_are_what_the_heads_read(run):
  model = run.load()
  images = np.random.default_rng(1).integers(0, 255, (5, *model.image_size, 3), np.uint8)
  features = model.features(images)
  head = model.variables['params']['head_landmarks']['output']
  stats = model.trained.label_stats['landmarks']
  raw = features @ np.asarray(head['kernel']) + np.asarray(head['bias'])
  np.testing.assert_allclose(model.apply(model.variables, images)['landmarks'], raw * stats.std + stats.mean, atol=1e-5)


@pytest.mark.parametrize(
  'images', [[], 'face.png', None, np.zeros((8, 8, 3), np.uint8), [np.zeros((8, 8, 3))], [np.zeros((8, 8), np.uint8)]]
)
def test_what_is_no_list_of_images_is_refused(run, images):
  with pytest.raises(mtl_jax.UserError, match='images'):
    run.load().predict(images)


@pytest.mark.parametrize(('dtype', 'side'), [(np.float32, 16), (np.uint8, 8)])
def test_apply_refuses_images_of_another_type_or_size_also_when_it_is_compiled(run, dtype, side):
  model, images = run.load(), np.zeros((2, side, side, 3), dtype)
  for apply in (model.apply, jax.jit(model.apply)):
    with pytest.raises(mtl_jax.UserError, match=r'images: .*uint8 \[n, 16, 16, 3\]'):
      apply(model.variables, images)


def test_align_asks_for_a_task_of_two_points(run):
  trained = run.load().trained
  one_point = (LandmarkTask('centre', ('middle_x', 'middle_y')),)
  model = Model(dataclasses.replace(trained, facts=dataclasses.replace(trained.facts, tasks=one_point)))
  with pytest.raises(mtl_jax.UserError, match='two points or more; it predicts centre'):
    model.predict([np.zeros((8, 8, 3), np.uint8)], align=True)


@pytest.mark.parametrize(
  ('options', 'told'),
  [
    ({'image_size': (32.0, 32.0)}, 'image_size'),
    ({'image_size': (32, 32, 3)}, 'image_size'),
    ({'image_size': '32'}, 'image_size'),
    ({'encoding': 'jpg'}, '--encoding'),
    ({'num': 4.5}, '--num'),
  ],
)
def test_a_set_is_prepared_only_of_sizes_and_names_that_there_are(tmp_path, options, told):
  with pytest.raises(mtl_jax.UserError, match=told):
    mtl_jax.prepare('synthetic', out=tmp_path / 'set', **{'num': 4, 'image_size': 8} | options)


def test_one_number_is_the_size_of_square_images(tmp_path):
  assert sets.open_set(mtl_jax.prepare('synthetic', out=tmp_path / 'set', num=4, image_size=8)).image_size == (8, 8)


def test_weights_that_are_asked_for_and_would_not_be_read_are_refused_those_of_a_preset_stay(run, tmp_path):
  config, fields = config_of(run), {'objective': {'name': 'cagrad', 'weights': {'landmarks': 3.0}}}
  with pytest.raises(mtl_jax.UserError, match=r'config\.objective\.weights\.landmarks .*cagrad'):
    mtl_jax.train(config, tmp_path / 'run', overrides=fields)
  with pytest.raises(mtl_jax.UserError, match=r'config\.objective\.options\.preference'):
    mtl_jax.train(config, tmp_path / 'run', overrides=['objective.name=upgrad', 'objective.weights.landmarks=3'])
  weighted = mtl_jax.get_config(config, {'objective.weights.landmarks': 3.0, 'train.steps': 1})
  assert mtl_jax.train(weighted, tmp_path / 'run', overrides={'objective.name': 'gls'}).step == 1


def test_what_the_command_line_refuses_is_refused_in_the_same_words(run, tmp_path):
  with pytest.raises(mtl_jax.UserError, match=r'config.optimizer.name: .*'):
    mtl_jax.train(config_of(run), tmp_path / 'run', overrides={'optimizer.name': 'lyon'})
  with pytest.raises(mtl_jax.UserError, match='holds no run'):
    mtl_jax.load(tmp_path)
  with pytest.raises(mtl_jax.UserError, match='--tune_thresholds'):
    run.evaluate(tune_thresholds=True)
  with pytest.raises(mtl_jax.UserError, match='None is no path'):
    mtl_jax.train(config_of(run), None)
  with pytest.raises(mtl_jax.UserError, match=r"step '12'; it has .*12"):
    run.evaluate(step='12')
  with pytest.raises(mtl_jax.UserError, match='local path'):
    mtl_jax.export(run.workdir, 'gs://bucket/out')
