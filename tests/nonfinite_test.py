"""Steps that are not finite: named with their examples; the run stops, leaves them out, or goes back and around."""

import dataclasses

import numpy as np
import pytest
import small_runs

from mtl_jax.data.store import cache as sets
from mtl_jax.errors import DivergedError
from mtl_jax.training import building, loop, nonfinite, splits
from mtl_jax.training.progress import read_metrics

TOO_MANY = r'one more than config\.train\.max_nonfinite allows'
BAD_ROW = 5  # Position of a train example one of whose attributes is infinite.


@pytest.fixture
def config_of(faces, monkeypatch):
  """`config_of(on_nonfinite, ...)`; meanwhile one train label is infinite, which no reader would let through."""
  load = splits.load

  def load_with_infinity(*arguments):
    train, val, stats = load(*arguments)
    labels = {name: values.copy() for name, values in train.labels.items()}
    labels['attributes'][BAD_ROW, 0] = np.inf
    return dataclasses.replace(train, labels=labels), val, stats

  monkeypatch.setattr(splits, 'load', load_with_infinity)

  def make(on_nonfinite: str, **overrides):
    return small_runs.make_config(faces, **{'train.on_nonfinite': on_nonfinite, **overrides})

  return make


@pytest.fixture
def bad_steps(config_of) -> list[int]:
  """The steps, from 1, of the order whose batch holds the bad example."""
  run = building.build(config_of('stop'), sets.open_set(config_of('stop').data.dir))
  return [step + 1 for step in range(20) if BAD_ROW in run.sampler.indices(step)]


def examples(config, step: int) -> str:
  run = building.build(config, sets.open_set(config.data.dir))
  return ', '.join(str(run.train.example_id[position]) for position in run.sampler.indices(step - 1))


def test_stop_names_step_task_and_examples_and_saves_only_what_was_before(config_of, bad_steps, tmp_path):
  config = config_of('stop')
  first = bad_steps[0]
  wanted = (
    f'attributes/loss became (inf|nan) at step {first}, whose batch holds the examples {examples(config, first)} '
  )
  with pytest.raises(DivergedError, match=wanted) as caught:
    loop.train(config, tmp_path)
  assert caught.value.exit_code == 3
  saved = sorted(int(path.name) for path in (tmp_path / 'checkpoints').glob('[0-9]*'))
  assert all(step < first for step in saved)
  for step in saved:
    assert all(np.isfinite(leaf).all() for leaf in small_runs.leaves(tmp_path, step))


def test_skip_leaves_updates_out_and_counts_them(config_of, bad_steps, tmp_path):
  config = config_of('skip')
  inside = [step for step in bad_steps if step <= 12]
  clock = loop.train(config, tmp_path)
  assert (clock.step, clock.left_out) == (12, len(inside))
  lines = {line['step']: line for line in read_metrics(tmp_path / 'metrics.jsonl')}
  assert 'train/loss' not in lines[inside[0]]
  assert lines[12]['steps_left_out'] == len(inside)
  assert all(np.isfinite(leaf).all() for leaf in small_runs.leaves(tmp_path))


def test_rollback_ends_as_if_the_bad_batches_had_never_been(config_of, bad_steps, tmp_path, monkeypatch):
  config = config_of('rollback', **{'train.log_every_steps': 3})
  clock = loop.train(config, tmp_path / 'back')
  assert clock.step == 12
  assert clock.passed_over[0] == bad_steps[0] - 1
  lines = [line['step'] for line in read_metrics(tmp_path / 'back' / 'metrics.jsonl') if 'train/loss' in line]
  assert lines == sorted(set(lines))
  passed, read = clock.passed_over, loop.input_items
  monkeypatch.setattr(loop, 'input_items', lambda run, step, passed_over: read(run, step, passed))
  loop.train(config_of('stop', **{'train.log_every_steps': 3}), tmp_path / 'around')
  small_runs.assert_same_bits(tmp_path / 'back', tmp_path / 'around')


@pytest.mark.parametrize('way', ['skip', 'rollback'])
def test_more_bad_steps_than_allowed_stop_the_run(config_of, tmp_path, way):
  with pytest.raises(DivergedError, match=TOO_MANY):
    loop.train(config_of(way, **{'train.max_nonfinite': 0}), tmp_path)


def test_batches_in_order_without_those_passed_over():
  assert [nonfinite.batch_number(step, [5, 2, 3]) for step in range(5)] == [0, 1, 4, 6, 7]
  assert [nonfinite.batch_number(step, []) for step in range(3)] == [0, 1, 2]
