"""A run whose `train.steps` was raised goes on where its schedule lets it, to the bits of the longer run."""

import shutil
from pathlib import Path

import pytest
import small_runs

from mtl_jax.errors import CheckpointError
from mtl_jax.training import loop

SHORT, LONG = 10, 15


def config_of(faces: Path, schedule: str, steps: int, **overrides):
  return small_runs.make_config(
    faces,
    **{
      'optimizer.schedule': schedule,
      'optimizer.warmup_steps': 2,
      'optimizer.ema_decay': 0.9,
      'train.steps': steps,
      'checkpoint.every_steps': 20,
      'eval.every_steps': 20,
      **overrides,
    },
  )


@pytest.fixture(scope='module')
def finished(faces, tmp_path_factory):
  """Given a schedule and a place, puts a complete run of 10 steps there; of `warmup_stable_decay` the last 2 fall."""
  root = tmp_path_factory.mktemp('finished')

  def copy(schedule: str, place: Path) -> Path:
    if not (root / schedule).exists():
      loop.train(config_of(faces, schedule, SHORT), root / schedule)
    return Path(shutil.copytree(root / schedule, place))

  return copy


def steps_in(directory: Path) -> list[int]:
  return sorted(int(path.name) for path in (directory / 'checkpoints').iterdir())


@pytest.mark.parametrize(('schedule', 'begins'), [('constant', 10), ('warmup_stable_decay', 8)])
def test_a_run_that_goes_on_equals_the_longer_run_bit_for_bit(faces, finished, tmp_path, said, schedule, begins):
  finished(schedule, tmp_path / 'parts')
  assert steps_in(tmp_path / 'parts') == sorted({begins, SHORT})
  assert loop.train(config_of(faces, schedule, LONG), tmp_path / 'parts').step == LONG
  assert any(f'config.train.steps: {SHORT} -> {LONG}: on from step {begins}' in line for line in said)
  loop.train(config_of(faces, schedule, LONG), tmp_path / 'whole')
  small_runs.assert_same_bits(tmp_path / 'whole', tmp_path / 'parts')


@pytest.mark.parametrize(
  ('schedule', 'steps', 'overrides', 'named'),
  [
    ('cosine', LONG, {}, 'train.steps'),  # The rate would rise again.
    ('constant', 5, {}, 'train.steps'),
    ('constant', LONG, {'optimizer.learning_rate': 0.5}, 'optimizer.learning_rate'),
    ('constant', LONG, {'optimizer.schedule': 'cosine'}, 'optimizer.schedule'),
  ],
)
def test_what_a_longer_run_would_not_share_needs_the_flag(faces, finished, tmp_path, schedule, steps, overrides, named):
  run = finished(schedule, tmp_path / 'run')
  with pytest.raises(CheckpointError, match=rf'config\.{named}: .*--allow_config_change'):
    loop.train(config_of(faces, schedule, steps, **overrides), run)
  assert steps_in(run) == [SHORT]


def test_with_the_flag_a_run_goes_on_from_its_end_though_its_rate_has_fallen(faces, finished, tmp_path, said):
  run = finished('warmup_stable_decay', tmp_path / 'run')
  assert loop.train(config_of(faces, 'warmup_stable_decay', 12), run, allow_config_change=True).step == 12
  assert any('resuming at step 10' in line for line in said)


def test_without_a_checkpoint_from_before_the_fall_the_run_is_not_gone_on_with(faces, finished, tmp_path):
  run = finished('warmup_stable_decay', tmp_path / 'run')
  shutil.rmtree(run / 'checkpoints' / '8')
  with pytest.raises(CheckpointError, match='from before step 9'):
    loop.train(config_of(faces, 'warmup_stable_decay', LONG), run)
  assert steps_in(run) == [SHORT]


def test_a_field_that_may_differ_is_named_where_it_does(faces, tmp_path, said):
  loop.train(config_of(faces, 'constant', 3), tmp_path)
  loop.train(config_of(faces, 'constant', 4, **{'data.mode': 'streamed'}), tmp_path)
  assert [line for line in said if line.startswith('resuming with')] == [
    "resuming with config.data.mode: 'auto' -> 'streamed'",
    'resuming with config.train.steps: 3 -> 4',
  ]
