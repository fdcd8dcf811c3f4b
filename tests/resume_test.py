"""A run that was stopped ends in the same bits as one that was not; checkpoints hold all there is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_runs

from mtl_jax import config as configs
from mtl_jax.errors import CheckpointError, DivergedError, Interrupted
from mtl_jax.run import lock, trained_model, workdir
from mtl_jax.run.checkpoint import TrainProgress
from mtl_jax.training import loop
from mtl_jax.training.interrupt import Interruption
from mtl_jax.training.progress import read_metrics


def assert_same_bits(one: Path, other: Path) -> None:
  ours, theirs = small_runs.leaves(one), small_runs.leaves(other)
  assert len(ours) == len(theirs) > 100
  for a, b in zip(ours, theirs, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.fixture
def resume_config(tiny_config):
  overrides = {
    'train.steps': 12,
    'train.log_every_steps': 2,
    'eval.every_steps': 6,
    'checkpoint.every_steps': 3,
    'optimizer.ema_decay': 0.9,
  }
  return tiny_config(**overrides)


def stop_after(monkeypatch, steps: int) -> None:
  """Makes the loop believe that a signal came during the given step."""
  asked = []

  def requested(self: Interruption) -> bool:
    asked.append(True)
    return len(asked) == steps

  monkeypatch.setattr(Interruption, 'requested', requested)


def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(resume_config, tmp_path, monkeypatch):
  loop.train(resume_config, tmp_path / 'whole')
  for steps in (5, 4):  # Stops at step 5, a step that nothing else falls on, and again at step 9.
    with monkeypatch.context() as patch:
      stop_after(patch, steps)
      with pytest.raises(Interrupted, match='same command'):
        loop.train(resume_config, tmp_path / 'parts')
  progress = loop.train(resume_config, tmp_path / 'parts')
  assert progress.step == 12
  assert_same_bits(tmp_path / 'whole', tmp_path / 'parts')


def test_metrics_have_each_step_once_after_a_resume(resume_config, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    stop_after(patch, 5)
    with pytest.raises(Interrupted):
      loop.train(resume_config, tmp_path)
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text() + json.dumps({'step': 6, 'train/loss': 1e9}) + '\n{"step": 7, "tra')
  loop.train(resume_config, tmp_path)
  lines = read_metrics(path)
  steps = [line['step'] for line in lines if 'train/loss' in line]
  assert steps == sorted(set(steps))
  assert {1, 2, 12} <= set(steps)
  assert max(line.get('train/loss', 0) for line in lines) < 1e9
  assert [line['step'] for line in lines if 'val/loss' in line] == [6, 12]


@pytest.mark.parametrize('kill', [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_killed_process_goes_on_to_the_same_bits(tiny_config, tmp_path, kill):
  overrides = {'train.steps': 120, 'checkpoint.every_steps': 20, 'eval.every_steps': 60}
  config = tiny_config(**overrides)
  (tmp_path / 'config.py').write_text(
    f'from mtl_jax import config\n\ndef get_config():\n  return config.from_json({configs.to_json(config)!r})\n'
  )
  command = [sys.executable, '-m', 'mtl_jax', 'train', '--config', str(tmp_path / 'config.py'), '--workdir']
  subprocess.run([*command, str(tmp_path / 'whole')], check=True, capture_output=True)
  parts = tmp_path / 'parts'
  process = subprocess.Popen([*command, str(parts)], stderr=subprocess.PIPE)
  while not read_metrics(parts / 'metrics.jsonl') or read_metrics(parts / 'metrics.jsonl')[-1]['step'] < 25:
    assert process.poll() is None, process.stderr.read() if process.stderr else ''
    time.sleep(0.02)
  time.sleep(np.random.default_rng(os.getpid()).uniform(0, 0.5))
  process.send_signal(kill)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == (75 if kill == signal.SIGTERM else -signal.SIGKILL), errors.decode()
  assert read_metrics(parts / 'metrics.jsonl')[-1]['step'] < 120
  subprocess.run([*command, str(parts)], check=True, capture_output=True)
  assert_same_bits(tmp_path / 'whole', parts)


def test_the_best_checkpoint_is_kept_and_restored_for_evaluation(tiny_config, tmp_path, monkeypatch):
  scores = iter([1.0, 5.0, 2.0, 3.0, 4.0])
  monkeypatch.setattr(loop, 'validate', lambda *_, **__: (next(scores), {}))
  progress = loop.train(
    tiny_config(**{'train.steps': 10, 'eval.every_steps': 2, 'checkpoint.every_steps': 1}), tmp_path
  )
  assert (progress.best_step, progress.best_score) == (4, 5.0)
  kept = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit())
  assert kept == [4, 9, 10]
  assert trained_model.restore(tmp_path).step == 4
  assert trained_model.restore(tmp_path, step=10).step == 10
  with pytest.raises(CheckpointError, match='it has 4, 9, 10'):
    trained_model.restore(tmp_path, step=3)


def test_early_stopping_ends_the_run_and_stays_ended(tiny_config, tmp_path, monkeypatch):
  scores = iter([2.0, 1.0, 1.0])
  monkeypatch.setattr(loop, 'validate', lambda *_, **__: (next(scores), {}))
  config = tiny_config(**{'train.steps': 50, 'eval.every_steps': 2, 'eval.patience': 2})
  progress = loop.train(config, tmp_path)
  assert (progress.step, progress.best_step, progress.stopped_early) == (6, 2, True)
  assert loop.train(config, tmp_path) == progress


def test_a_clock_counts_evaluations_since_the_best():
  progress = TrainProgress()
  history = []
  for step, score in enumerate([-3.0, -2.0, -2.0, -5.0, -1.0], 1):
    progress.step = step
    history.append((progress.update_best(score), progress.evaluations_since_best))
  assert history == [(True, 0), (True, 0), (False, 1), (False, 2), (True, 0)]


def test_another_configuration_is_refused_field_by_field_unless_allowed(tiny_config, tmp_path):
  loop.train(tiny_config(), tmp_path)
  changed = tiny_config(**{'train.steps': 6, 'optimizer.learning_rate': 0.5})
  with pytest.raises(CheckpointError, match=r'learning_rate: .* -> 0.5; config.train.steps: \d+ -> 6'):
    loop.train(changed, tmp_path)
  assert loop.train(changed, tmp_path, allow_config_change=True).step == 6


def test_a_second_run_in_the_same_directory_is_refused(tiny_config, tmp_path):
  with lock.hold(tmp_path), pytest.raises(CheckpointError, match='another run'):
    loop.train(tiny_config(), tmp_path)


def test_a_log_gives_its_good_lines_whatever_lies_between_them(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1, "loss": 2.0}\n5\n{"ste\xff\n{"loss": 1.0}\n{"step": 2}\n{"step": 3, "lo')
  assert read_metrics(path) == [{'step': 1, 'loss': 2.0}, {'step': 2}]


@pytest.mark.parametrize(('folder', 'verb'), [('replicas', 'study'), ('looks', 'affinity')])
def test_what_another_verb_has_made_is_left_alone(tiny_config, tmp_path, folder, verb):
  (tmp_path / folder).mkdir()
  (tmp_path / folder / 'one.npz').touch()
  with pytest.raises(CheckpointError, match=f'holds what `mtl-jax {verb}` has made; take another'):
    loop.train(tiny_config(), tmp_path)
  with pytest.raises(CheckpointError, match=f'holds what `mtl-jax {verb}` has made; take another'):
    workdir.check_kind(tmp_path, 'checkpoints')
  assert {path.name for path in tmp_path.iterdir()} <= {folder, lock.LOCK}


def test_divergence_names_the_step_and_saves_nothing(tiny_config, tmp_path):
  config = tiny_config(
    **{
      'optimizer.name': 'sgd',
      'optimizer.learning_rate': 1e20,
      'optimizer.clip_norm': 0.0,
      'train.steps': 20,
      'eval.every_steps': 10,
      'checkpoint.every_steps': 10,
    }
  )
  with pytest.raises(DivergedError, match=r'became (nan|inf) at step \d+'):
    loop.train(config, tmp_path)
  assert not list((tmp_path / 'checkpoints').glob('[0-9]*'))
