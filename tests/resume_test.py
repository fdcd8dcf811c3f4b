"""A run that was stopped ends in the same bits as one that was not; checkpoints hold all there is."""

import json

import pytest
import small_runs

from mtl_jax.errors import CheckpointError, Interrupted
from mtl_jax.run import lock, trained_model, workdir
from mtl_jax.run.checkpoint import TrainProgress
from mtl_jax.training import loop
from mtl_jax.training.progress import read_metrics


@pytest.fixture
def resume_config(tiny_config):
  overrides = {
    'train.steps': 12,
    'train.log_every_steps': 2,
    'eval.every_steps': 6,
    'checkpoint.every_steps': 3,
    'model.norm': 'batch',
    'optimizer.ema_decay': 0.9,
  }
  return tiny_config(**overrides)


def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(resume_config, tmp_path, monkeypatch):
  loop.train(resume_config, tmp_path / 'whole')
  for steps in (5, 4):  # Stops at step 5, a step that nothing else falls on, and again at step 9.
    with monkeypatch.context() as patch:
      small_runs.at_step(patch, steps)
      with pytest.raises(Interrupted, match='same command'):
        loop.train(resume_config, tmp_path / 'parts')
  progress = loop.train(resume_config, tmp_path / 'parts')
  assert progress.step == 12
  small_runs.assert_same_bits(tmp_path / 'whole', tmp_path / 'parts')


def test_metrics_have_each_step_once_after_a_resume(resume_config, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 5)
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


def test_a_clock_counts_evaluations_since_the_best_which_is_never_one_that_is_not_finite():
  progress, history = TrainProgress(), []
  for step, score in enumerate([float('nan'), -3.0, -2.0, float('inf'), -2.0, -5.0, -1.0], 1):
    progress.step = step
    history.append((progress.update_best(score), progress.best_step, progress.evaluations_since_best))
  assert [(better, step) for better, step, _ in history] == [
    (False, 0), (True, 2), (True, 3), (False, 3), (False, 3), (False, 3), (True, 7)
  ]  # fmt: skip
  assert [since for *_, since in history[1:]] == [0, 0, 1, 2, 3, 0]


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
