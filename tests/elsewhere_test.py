"""A run is evaluated from its folder alone, on other devices than it was trained on; other versions say what to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mtl_jax import cli
from mtl_jax import config as configs
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import CheckpointError
from mtl_jax.run import workdir
from mtl_jax.run.checkpoint import Checkpoints, TrainProgress
from mtl_jax.training import loop

# One process on one device: what was trained on eight is evaluated, and a run is trained for eight.
ON_ONE_DEVICE = """
import sys
from pathlib import Path
import jax
from mtl_jax import cli
assert jax.device_count() == 1
theirs, image, config, ours = sys.argv[1:]
assert cli.main(['eval', '--workdir', theirs]) == 0
assert cli.main(['predict', '--workdir', theirs, image]) == 0
assert cli.main(['train', '--config', config, '--workdir', ours]) == 0
assert cli.main(['eval', '--workdir', ours]) == 0
"""


def run_on_one_device(*arguments: Path) -> str:
  """What the verbs print."""
  environment = {**os.environ, 'XLA_FLAGS': ''}
  command = [sys.executable, '-c', ON_ONE_DEVICE, *map(str, arguments)]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
  assert done.returncode == 0, done.stderr
  return done.stdout


def assert_same_metrics(one: Path, other: Path) -> None:
  """The same examples and the same metrics, to rounding."""
  found, expected = (json.loads((path / 'eval' / 'test.json').read_text()) for path in (one, other))
  assert found['num_examples'] == expected['num_examples'] > 0
  for task, name in (('attributes', 'macro_ap'), ('landmarks', 'nme'), ('landmarks', 'mae')):
    np.testing.assert_allclose(found['tasks'][task][name], expected['tasks'][task][name], rtol=1e-4)


@pytest.mark.slow
def test_eight_devices_and_one_evaluate_each_others_checkpoints(tiny_config, store_dir, tmp_path, capsys):
  assert jax.device_count() == 8
  settings = tiny_config(**{'model.backbone': 'convnet', 'eval.every_steps': 0})
  loop.train(settings, tmp_path / 'of_eight')
  (tmp_path / 'config.py').write_text(
    f'from mtl_jax import config\n\ndef get_config():\n  return config.from_json({configs.to_json(settings)!r})\n'
  )
  store = open_store(store_dir)
  Image.fromarray(store.images[store.splits['test'].start]).save(tmp_path / 'face.png')
  shutil.copytree(tmp_path / 'of_eight', tmp_path / 'copy')
  paths = [tmp_path / name for name in ('copy', 'face.png', 'config.py', 'of_one')]
  printed = run_on_one_device(*paths)
  shutil.copytree(tmp_path / 'of_one', tmp_path / 'copy_of_one')
  for name in ('of_eight', 'copy_of_one'):
    assert cli.main(['eval', '--workdir', str(tmp_path / name)]) == 0
  assert_same_metrics(tmp_path / 'copy', tmp_path / 'of_eight')
  assert_same_metrics(tmp_path / 'of_one', tmp_path / 'copy_of_one')
  capsys.readouterr()
  assert cli.main(['predict', '--workdir', str(tmp_path / 'of_eight'), str(tmp_path / 'face.png')]) == 0
  (line,) = [line for line in printed.splitlines() if line.startswith('{"file"')]
  there, here = (json.loads(text)['attributes'] for text in (line, capsys.readouterr().out))
  np.testing.assert_allclose(list(there.values()), list(here.values()), atol=1e-5)


@pytest.fixture
def begun(tiny_config, store_dir, tmp_path) -> Path:
  """The folder of a run that has only begun."""
  workdir.begin(tmp_path, tiny_config(), workdir.DataFacts.of(open_store(store_dir)))
  return tmp_path


def edit(path: Path, change) -> None:
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def test_a_configuration_of_an_older_version_takes_defaults_for_newer_fields(begun, tiny_config):
  def age(config):
    del config['train']['accumulate'], config['data']['augment']['zoom'], config['study']
    config['objective']['weights'] = {'attributes': 2.0}

  edit(begun / 'config.json', age)
  config, _ = workdir.read(begun)
  assert (config.train.accumulate, config.data.augment.zoom, config.train.steps) == (1, 0.1, 4)
  assert config.study.num_seeds == 5
  assert config.objective.weights.to_dict() == {'attributes': 2.0}


def test_a_run_of_a_version_that_cannot_be_read_says_which_to_install(begun):
  edit(begun / 'config.json', lambda config: config['train'].update(telepathy=1))
  edit(begun / 'dataset.json', lambda facts: facts.update(mtl_jax='99.1'))
  with pytest.raises(CheckpointError, match=r'telepathy.*install that version: pip install mtl_jax==99\.1'):
    workdir.read(begun)


def test_a_checkpoint_of_another_format_says_what_to_do(tmp_path, monkeypatch):
  from mtl_jax.run import checkpoint

  checkpoints = Checkpoints(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'FORMAT', 99)
    checkpoints.save({'weights': np.zeros(2)}, TrainProgress(step=1))  # pyright: ignore
    checkpoints.close()
  with pytest.raises(CheckpointError, match=r'has format 99; .* use the version of mtl-jax that dataset\.json'):
    Checkpoints(tmp_path).progress()
