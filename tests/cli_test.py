"""Every wrong use of the command line is told in one line that names what is wrong, with exit code 2."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import small_runs

from mtl_jax.cli import main

CONFIG = Path(__file__).parent.parent / 'configs' / 'default.py'


@pytest.fixture
def train(store_dir, tmp_path):
  """The arguments of a tiny training run in `tmp_path/run`, with some settings changed."""

  def arguments(*more, workdir: Path = tmp_path / 'run', config: Path = CONFIG, **overrides) -> list[str]:
    settings = {**small_runs.TINY, 'data.dir': store_dir, **overrides}
    given = [f'--config.{name}={value}' for name, value in settings.items()]
    return ['train', '--config', str(config), '--workdir', str(workdir), *given, *more]

  return arguments


# Usage.


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    ([], 'VERB'),
    (['trian'], "'trian'"),
    (['train', '--workdir', 'w'], '--config'),
    (['train', '--config', CONFIG], '--workdir'),
    (['train', '--config', CONFIG, '--workdir', 'w', '--batch_size', '8'], '--batch_size'),
    (['eval', '--workdir', 'w', '--split', 'dev'], '--split'),
    (['eval', '--workdir', 'w', '--step', 'last'], '--step'),
    (['eval', '--workdir', 'w', '--config.train.steps=3'], '--config.train.steps=3: eval takes no configuration'),
    (['predict', '--workdir', 'w'], 'IMAGE'),
    (['prepare', 'celeba'], '--out'),
    (['prepare', 'celeba', '--out', 'd', '--image_size', '64'], '--image_size'),
  ],
)
def test_wrong_usage_is_told_in_one_line(refused, arguments, told):
  assert told in refused(*arguments)


@pytest.mark.parametrize('flag', ['--help', '--version'])
def test_help_and_version_go_to_stdout(capsys, flag):
  with pytest.raises(SystemExit) as left:
    main([flag])
  assert left.value.code == 0
  assert 'mtl-jax' in capsys.readouterr().out


# Configuration.


@pytest.mark.parametrize(
  ('field', 'value', 'told'),
  [
    ('train.stepz', 3, "config.train .*'stepz'.*'steps'"),
    ('data.dir', '', 'config.data.dir '),
    ('data.dir', '/no/such/set', '/no/such/set: '),
    ('data.dir', Path(__file__).parent, f'{Path(__file__).parent}.*schema.json'),
    ('tasks', 'atributes', "config.tasks: .*'atributes'"),
    ('tasks', 'attributes/Smilin', "config.tasks: .*'Smiling'"),
    ('data.attributes', 'Smilin', "config.data.attributes: .*'Smiling'"),
    ('data.attributes', 'Male,Male', "config.data.attributes: 'Male'"),
    ('objective.weights.landmark', 2, "config.objective.weights: .*'landmarks'"),
    ('train.batch_size', 12, 'config.train.batch_size is 12.* 8 '),
  ],
)
def test_a_wrong_setting_is_told_by_its_field(refused, train, field, value, told):
  assert re.search(told, refused(*train(**{field: value})))


def test_a_setting_without_a_value_does_not_swallow_the_next_flag(refused, train):
  told = 'config.train.steps has no value; write --config.train.steps=VALUE'
  assert refused('train', '--config', CONFIG, '--config.train.steps', '--workdir', 'w') == told
  assert refused(*train('--config.train.steps')) == told


def test_settings_may_be_written_with_a_space(refused, train):
  assert 'config.train.steps must be ' in refused(*train('--config.train.steps', '-1'))


def test_a_workdir_that_cannot_be_written_is_named(refused, train, tmp_path):
  (tmp_path / 'file').write_text('')
  for place in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    assert f'--workdir: cannot write into {place}' in refused(*train(workdir=place))


# Resuming.


def test_a_complete_run_is_left_alone(capsys, train, trained_dir):
  before = (trained_dir / 'metrics.jsonl').read_text()
  assert main(train(workdir=trained_dir)) == 0
  assert 'is complete at step 4' in capsys.readouterr().err
  assert (trained_dir / 'metrics.jsonl').read_text() == before


def test_resuming_with_another_configuration_is_refused_with_the_fields(refused, train, trained_dir):
  told = refused(*train(workdir=trained_dir, **{'train.steps': 8, 'optimizer.name': 'sgd'}))
  assert "config.optimizer.name: 'adamw' -> 'sgd'; config.train.steps: 4 -> 8" in told
  assert '--allow_config_change' in told
  assert json.loads((trained_dir / 'config.json').read_text())['train']['steps'] == 4


def test_a_run_that_was_refused_at_its_start_does_not_hold_its_workdir(refused, train, tmp_path):
  refused(*train(**{'train.batch_size': 12}))
  assert not (tmp_path / 'run' / 'config.json').exists()
  assert main(train()) == 0
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['train']['batch_size'] == 8


# Working directories that are none.


@pytest.mark.parametrize('verb', ['eval', 'predict', 'report'])
def test_a_workdir_without_a_run_is_named(refused, tmp_path, pictures, verb):
  (tmp_path / 'file').write_text('')
  for place in (tmp_path / 'missing', tmp_path, tmp_path / 'file'):
    assert str(place) in refused(verb, '--workdir', place, *(pictures[:1] if verb == 'predict' else []))


@pytest.mark.parametrize(
  ('file', 'content'),
  [
    ('config.json', '{'),
    ('config.json', '[]'),
    ('config.json', '{"tasks": "attributes"}'),
    ('dataset.json', '{}'),
    ('dataset.json', '{"image_size": 3, "tasks": 4, "checksum": 5}'),
    ('dataset.json', '{"image_size": [1, 1], "tasks": [{"kind": "voice"}], "checksum": ""}'),
  ],
)
def test_a_spoilt_file_of_a_run_is_named(refused, run_copy, file, content):
  (run_copy / file).write_text(content)
  told = refused('eval', '--workdir', run_copy)
  assert str(run_copy) in told
  assert file in told


def test_a_run_without_a_checkpoint_is_told_apart(refused, run_copy):
  shutil.rmtree(run_copy / 'checkpoints')
  assert str(run_copy) in refused('eval', '--workdir', run_copy)


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(refused, trained_dir):
  assert refused('eval', '--workdir', trained_dir, '--step', 3).endswith('has no checkpoint of step 3; it has 2, 4')


# Preparing and the rest.


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    (['celebb'], "prepare: no choice 'celebb'; did you mean 'celeba'?"),
    (['celeba'], 'prepare celeba needs --source DIR'),
    (['celeba', '--source', '/no/such/folder'], '/no/such/folder: no such folder'),
    (['synthetic', '--source', '.'], 'leave out --source'),
    (['synthetic', '--num', '0'], '--num=0'),
    (['synthetic', '--num', '4', '--seed', '-1'], '--seed=-1'),
    (['synthetic', '--num', '4', '--image_size', '0', '8'], 'image_size'),
  ],
)
def test_what_cannot_be_prepared_is_told(refused, tmp_path, arguments, told):
  assert told in refused('prepare', *arguments, '--out', tmp_path / 'set')
  assert not (tmp_path / 'set').exists()


def test_a_prepared_set_is_not_overwritten(refused, store_dir):
  assert 'already holds a prepared set' in refused('prepare', 'synthetic', '--num', 4, '--out', store_dir)


def test_an_error_of_the_system_is_one_line(refused, trained_dir, monkeypatch):
  def full(*_, **__):
    raise OSError(28, 'No space left on device', 'somewhere')

  monkeypatch.setattr('mtl_jax.evaluation.command.evaluate_workdir', full)
  assert refused('eval', '--workdir', trained_dir) == "[Errno 28] No space left on device: 'somewhere'"


def test_doctor_says_what_is_here(capsys):
  assert main(['doctor']) == 0
  out = capsys.readouterr().out
  assert 'training runs on     8 cpu device(s)' in out
  assert 'flax' in out


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tmp_path, monkeypatch, store_dir):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a,b [1]').symlink_to(store_dir)
  (tmp_path / 'c.py').write_text('from mtl_jax.configs.default import get_config')
  assert main(['prepare', 'synthetic', '--num=40', '--out=~/set', '--image_size', '32', '32']) == 0
  tiny = ['model.backbone=convnet', 'model.width=2', 'model.head=linear', 'train.steps=1', 'train.batch_size=8']
  flags = [f'--config.{field}' for field in (*tiny, 'data.dirs="~/set","~/a,b [1]"', 'tasks=landmarks')]
  assert main(['train', '--config=~/c.py', '--workdir=~/run', *flags]) == 0
  assert main(['eval', '--workdir=~/run', '--data=~/set', '--predictions=~/all.npz']) == 0
  assert {'set', 'run', 'all.npz'} <= {path.name for path in tmp_path.iterdir()}
  assert not (tmp_path / '~').exists()
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert written['data']['dirs'] == [str(tmp_path / 'set'), str(store_dir)]


def test_devices_that_are_not_here_are_told_in_one_line_by_doctor_and_by_training(tmp_path, store_dir):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cuda'}
  run = partial(subprocess.run, capture_output=True, text=True, env=environment, check=False)
  doctor = run([sys.executable, '-m', 'mtl_jax', 'doctor'])
  assert doctor.returncode == 0
  assert 'JAX_PLATFORMS=cuda' in doctor.stdout.splitlines()[-1]
  flags = ['--config', 'default', '--workdir', str(tmp_path / 'run'), f'--config.data.dir={store_dir}']
  train = run([sys.executable, '-m', 'mtl_jax', 'train', *flags])
  assert train.returncode == 2, train.stderr
  said = [line for line in train.stderr.splitlines() if line.startswith('mtl-jax: error: ')]
  assert len(said) == 1
  assert 'JAX_PLATFORMS=cuda' in said[0]
  assert 'Traceback' not in train.stderr + doctor.stderr
