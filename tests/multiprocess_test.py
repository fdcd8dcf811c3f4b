"""Several real processes over loopback train, evaluate and resume as one does, and end together.

A pair of processes takes seconds to start and to compile, so one pair serves many tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_runs

from mtl_jax import config as configs
from mtl_jax.config import with_fields
from mtl_jax.data.store import reader as store
from mtl_jax.evaluation.command import evaluate_workdir
from mtl_jax.training import loop
from mtl_jax.training.progress import read_metrics

ROOT = Path(__file__).parent.parent
WORKER = ROOT / 'tests' / 'multiprocess_worker.py'
# Of the loss: sums over two devices and over eight are rounded in another order, and so are those of the library.
TOLERANCE = 2e-5
TIMEOUT_SECS = 400  # A pair takes 15 s by itself; the machine may be shared.


def launch(num: int, *arguments: object, command: str, devices: int = 1):
  """`launch/local.sh -n num`; processes with so many devices each."""
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ.get('XLA_FLAGS', ''))
  flags = f'{flags} --xla_force_host_platform_device_count={devices}'
  environment = os.environ | {'MTL_JAX': command, 'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}
  line = [ROOT / 'launch' / 'local.sh', '-n', str(num), *map(str, arguments)]
  process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  try:
    output, errors = process.communicate(timeout=TIMEOUT_SECS)
  except subprocess.TimeoutExpired:
    process.terminate()  # And not kill, so that it ends its processes.
    pytest.fail(f'took more than {TIMEOUT_SECS} s: {process.communicate(timeout=60)}')
  return subprocess.CompletedProcess(line, process.returncode, output, errors)


def story(num: int, name: str, place: Path, **settings):
  return launch(num, name, place, command=f'{sys.executable} {WORKER}', **settings)


def damage(store: Path, out: Path, *, row: int) -> None:
  """A copy of a prepared set with one record that is not what was written, as a disk may spoil it."""
  shutil.copytree(store, out)
  content = np.load(out / 'images.npy', mmap_mode='r+')
  content[row] = 255 - content[row]
  content.flush()


def assert_close(ours, theirs, *, path: str = '') -> None:
  """JSON values that are alike, numbers to float tolerance."""
  if isinstance(ours, dict):
    assert ours.keys() == theirs.keys(), path
    for key, value in ours.items():
      assert_close(value, theirs[key], path=f'{path}/{key}')
  elif isinstance(ours, list):
    assert len(ours) == len(theirs), path
    for i, value in enumerate(ours):
      assert_close(value, theirs[i], path=f'{path}/{i}')
  elif isinstance(ours, float):
    assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=1e-6), path
  else:
    assert ours == theirs, path


@pytest.fixture(scope='module')
def config(tiny_config):
  """Six steps of SGD: Adam would make much of what rounding leaves of a small gradient."""
  return tiny_config(
    **{
      'model.backbone': 'convnet',
      'train.steps': 6,
      'optimizer.name': 'sgd',
      **{f'data.augment.{name}': 0.0 for name in ('shift', 'zoom', 'brightness', 'contrast')},  # Compiles in less time.
      'data.corrupt_share': 0.1,
      'study.num_seeds': 2,
      'study.num_resamples': 100,
    }
  )


@pytest.fixture(scope='module')
def alone(config, tmp_path_factory) -> Path:
  """The run that is to be equalled: of this one process."""
  directory = tmp_path_factory.mktemp('alone')
  loop.train(config, directory)
  return directory


@pytest.fixture(scope='module')
def pair(config, store_dir, tmp_path_factory) -> Path:
  """What two processes, of one device each, have written."""
  place = tmp_path_factory.mktemp('pair')
  (place / 'config.json').write_text(json.dumps(configs.to_json(config)))
  damage(store_dir, place / 'damaged', row=11)  # Batches hold 16 rows: the second process reads this one.
  for name, code in (('train', 75), ('go_on', 0)):
    ended = story(2, name, place)
    assert ended.returncode == code, ended.stderr
    (place / f'{name}.stdout').write_text(ended.stdout)
    (place / f'{name}.stderr').write_text(ended.stderr)
  return place


def said(place: Path, process: int) -> dict:
  return json.loads((place / f'said-{process}.json').read_text())


def test_two_processes_log_the_losses_and_metrics_of_one(alone, pair):
  ours, theirs = read_metrics(pair / 'run' / 'metrics.jsonl'), read_metrics(alone / 'metrics.jsonl')
  assert len(ours) == len(theirs) == 6
  for here, there in zip(ours, theirs, strict=True):
    del here['images_per_sec'], there['images_per_sec']
    assert_close(here, there)


def test_a_signal_to_one_process_stops_all_at_one_step_and_the_run_goes_on(pair):
  stopped = re.findall(r'error: interrupted and saved at step (\d); the same', (pair / 'train.stderr').read_text())
  assert len(stopped) == 1  # The other process says nothing of its own.
  assert 1 <= int(stopped[0]) < 6
  assert f'resuming at step {stopped[0]}' in (pair / 'go_on.stderr').read_text()
  assert said(pair, 0)['steps'] == said(pair, 1)['steps'] == 6
  assert said(pair, 0)['preempted'] is False  # Orbax asks JAX's preemption service, which is off.


@pytest.mark.parametrize('split', ['test', 'train'])
def test_splits_that_cannot_be_shared_equally_are_evaluated_whole(pair, split):
  """8 and 47 examples in batches of 16: the second process has no row of the last, or none of the only one."""
  whole = evaluate_workdir(pair / 'run', split=split, predictions=pair / f'alone-{split}.npz')
  assert_close(said(pair, 0)[split], whole['tasks'])
  assert_close(said(pair, 1)[split], whole['tasks'])
  ours, theirs = np.load(pair / f'{split}.npz'), np.load(pair / f'alone-{split}.npz')
  assert sorted(ours.files) == sorted(theirs.files)
  assert len(ours['example_id']) == whole['num_examples']
  for name in ours.files:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_a_label_whose_image_another_process_found_corrupt_counts_nowhere(pair, monkeypatch):
  monkeypatch.setattr(store, 'check_files', lambda *_: None)
  whole = evaluate_workdir(pair / 'run', split='train', data=pair / 'damaged')
  assert_close(said(pair, 0)['damaged'], whole['tasks'])
  assert said(pair, 0)['damaged'] != said(pair, 0)['train']


def test_only_the_first_process_writes(pair):
  for name in ('train', 'go_on'):
    assert (pair / f'{name}.stdout').read_text() == ''  # Not what libraries print, either.
    assert (pair / f'{name}.stderr').read_text().count('parameters:') == 1
  assert len(list((pair / 'run').glob('events.*'))) == 2  # One a start.


@pytest.mark.parametrize('victim', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_save_that_fails_in_one_process_ends_all_with_its_line(config, tmp_path, victim):
  settings = with_fields(config, train__steps=40, checkpoint__every_steps=2, eval__every_steps=0)
  (tmp_path / 'config.json').write_text(json.dumps(configs.to_json(settings)))
  ended = story(2, f'full-{victim}', tmp_path)
  seconds = time.time() - float((tmp_path / 'failed_at').read_text())
  assert ended.returncode == 2, ended.stderr
  assert re.search(rf'process {victim}: .*cannot be (saved|written): .*File too large', ended.stderr)
  assert re.search(rf'process {1 - victim} ends: process {victim} has ended: .*File too large', ended.stderr)
  assert seconds < 60


@pytest.mark.slow
def test_a_process_that_hangs_is_noticed_by_those_who_wait_for_it_in_a_collective(config, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(configs.to_json(with_fields(config, train__watchdog_secs=5.0))))
  ended = story(2, 'hang', tmp_path)
  assert ended.returncode == 4, ended.stderr
  assert 'nothing was completed for 5 s (config.train.watchdog_secs) after ' in ended.stderr
  assert 'in train_from' in ended.stderr


def test_a_coordinator_that_is_not_there_is_one_line_and_exit_code_2(tmp_path):
  address = f'127.0.0.1:{small_runs.free_port()}'
  flags = ['--coordinator', address, '--num_processes', '2', '--process_id', '1', '--coordinator_timeout', '0.5']
  line = [sys.executable, '-m', 'mtl_jax', 'eval', '--workdir', str(tmp_path), *flags]
  ended = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=ROOT)
  assert ended.returncode == 2
  assert re.fullmatch(rf'mtl-jax: error: process 1 cannot reach process 0 of 2 at {address} \(.*\n', ended.stderr)


@pytest.mark.slow
def test_four_processes_train_and_evaluate_from_the_command_line(alone, config, tmp_path):
  (tmp_path / 'config.py').write_text(
    f'from mtl_jax import config\n\ndef get_config():\n  return config.from_json({configs.to_json(config)!r})\n'
  )
  command, run = f'{sys.executable} -m mtl_jax', tmp_path / 'run'
  ended = launch(4, 'train', '--config', tmp_path / 'config.py', '--workdir', run, command=command)
  assert ended.returncode == 0, ended.stderr
  assert ended.stdout == ''
  ours, theirs = read_metrics(run / 'metrics.jsonl'), read_metrics(alone / 'metrics.jsonl')
  for here, there in zip(ours, theirs, strict=True):
    del here['images_per_sec'], there['images_per_sec']
    assert_close(here, there)
  ended = launch(4, 'eval', '--workdir', run, '--split', 'val', '--json', command=command)
  assert ended.returncode == 0, ended.stderr
  found = json.loads(ended.stdout)
  assert found == json.loads((run / 'eval' / 'val.json').read_text())
  assert found['num_examples'] == 5
  assert_close(found['tasks'], evaluate_workdir(run, split='val')['tasks'])


@pytest.mark.slow
def test_two_processes_divide_the_replicas_of_a_study_and_the_trials_of_a_sweep_and_go_on_when_one_was_killed(
  config, tmp_path
):
  from mtl_jax.studies import study
  from mtl_jax.sweeps import sweep

  searched = {'sweep.space.optimizer.learning_rate': 'log(1e-3,1e-2)', 'sweep.trials': 3, 'sweep.confirm_seeds': 2}
  config = configs.load(config, searched)
  (tmp_path / 'config.json').write_text(json.dumps(configs.to_json(config)))
  ended = story(2, 'killed_study', tmp_path)
  assert ended.returncode == 137, ended.stderr
  assert 'process 0 ends: process 1 is gone: it was killed' in ended.stderr
  kept = len(list((tmp_path / 'study' / 'replicas').rglob('*.npz')))
  ended = story(2, 'study', tmp_path)
  assert ended.returncode == 0, ended.stderr
  assert 0 < kept < len(list((tmp_path / 'study' / 'replicas').rglob('*.npz')))
  assert said(tmp_path, 1) == {'study': {}, 'sweep': {}}
  ours, whole = said(tmp_path, 0), study.run(config, tmp_path / 'alone')
  for task, metrics in whole['tasks'].items():
    for metric, found in metrics.items():
      for arm in ('single', 'joint'):
        assert_close(ours['study']['tasks'][task][metric][arm]['values'], found[arm]['values'])
  alone = sweep.run(config, tmp_path / 'sweep_alone')
  assert len(alone['trials']) == 3
  for trial, theirs in zip(ours['sweep']['trials'], alone['trials'], strict=True):
    assert_close({**trial, 'seconds': 0}, {**theirs, 'seconds': 0})
  assert ours['sweep']['best']['values'] == alone['best']['values']
