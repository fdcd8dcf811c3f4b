"""Replicas trained together are the runs they stand for, whatever they share a device or a program with."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mtl_jax.config import with_fields
from mtl_jax.data.input import mixture
from mtl_jax.errors import DivergedError
from mtl_jax.studies import program as programs
from mtl_jax.studies import replicas
from mtl_jax.studies.arms import RATE, Replica
from mtl_jax.studies.results import Result
from mtl_jax.training import loop
from mtl_jax.training.progress import read_metrics

OWN = {'optimizer.weight_decay': 0.3, 'optimizer.clip_norm': 0.5, 'optimizer.ema_decay': 0.5}
OWN |= {'objective.weights.landmarks': 3.0, 'objective.weights.attributes': 0.5}


@pytest.fixture(scope='module')
def program(tiny_config, tmp_path_factory):
  config = tiny_config()
  return programs.build(config, mixture.open_data(config.data), directory=tmp_path_factory.mktemp('program'))


@pytest.fixture(scope='module')
def trained(program):
  """Results and predictions of seven replicas on eight devices, and the steps that were counted.

  Their clock counts what is compiled, in place of seconds.
  """
  counted, compiled = [], []

  def listen(event, duration, **_):
    compiled.extend([1] * event.endswith('compile_duration'))

  sound = [Replica.of(seed, OWN | {RATE: 2.5e-4 * (1 + seed)}) for seed in range(6)]
  chunk = [*sound, Replica.of(0, OWN | {RATE: 1e30})]
  jax.monitoring.register_event_duration_secs_listener(listen)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(replicas.time, 'monotonic', lambda: len(compiled))
    found = replicas.Trainer(program, [RATE, *OWN]).run(chunk, test=True, stop=lambda: None, advance=counted.append)
  jax.monitoring.unregister_event_duration_listener(listen)
  assert compiled
  return found, sum(counted)


@pytest.fixture(scope='module')
def results(trained):
  return [result for result, _ in trained[0]]


def test_a_replica_equals_the_same_run_alone(results, tiny_config, tmp_path):
  loop.train(tiny_config(**OWN, **{'train.seed': 3, RATE: 1e-3}), tmp_path / 'alone')
  alone = [line for line in read_metrics(tmp_path / 'alone' / 'metrics.jsonl') if 'val/loss' in line]
  # Alone the batch lies on eight devices, here on one: sums are rounded otherwise.
  np.testing.assert_allclose(results[3].history['val/loss'], [line['val/loss'] for line in alone], rtol=1e-5)


def test_compilation_counts_as_no_second_of_a_replica(results):
  assert [result.seconds for result in results] == [0] * 7


def test_replicas_of_other_seeds_are_other_runs(results):
  ends = [result.history['val/loss'][-1] for result in results[:6]]
  assert len(set(ends)) == len(ends)


def test_those_that_only_fill_the_devices_are_not_counted_and_leave_no_result(trained, program):
  found, counted = trained
  assert len(found) == 7
  assert counted == 7 * program.config.train.steps


def test_a_replica_that_diverges_is_told_and_harms_no_other(trained):
  *sound, (result, predictions) = trained[0]
  assert result.diverged_at
  assert not predictions
  for one, values in sound:
    assert not one.diverged_at
    assert all(np.isfinite(each).all() for each in values.values())


def test_replicas_on_their_own_devices_exchange_nothing(program):
  trainer = replicas.Trainer(program, [RATE])
  numbers = replicas.numbers_of([Replica.of(seed, {RATE: 1.0}) for seed in range(8)], [RATE])
  state = jax.eval_shape(trainer._init, numbers, program.weights)
  positions = np.zeros((8, 1, program.config.train.batch_size), np.int32)
  text = trainer.steps.lower(state, numbers, positions, trainer._source).compile().as_text()
  assert not any(name in text for name in ('all-reduce', 'all-gather', 'collective-permute'))


@pytest.mark.parametrize(
  ('count', 'asked', 'sizes'), [(3, 0, [3]), (11, 0, [8, 3]), (11, 9, [8, 3]), (11, 16, [11]), (40, 16, [16, 16, 8])]
)
def test_chunks_are_of_one_size_that_the_devices_divide(program, count, asked, sizes):
  config = with_fields(program.config, study__replicas_at_once=asked)
  own = dataclasses.replace(program, run=dataclasses.replace(program.run, config=config))
  wanted = [Replica(seed) for seed in range(count)]
  found = replicas.chunks(own, wanted)
  assert [one for chunk in found for one in chunk] == wanted
  assert [len(chunk) for chunk in found] == sizes


def test_a_replica_whose_last_update_broke_it_diverged_and_the_others_go_on(monkeypatch):
  def values(config, evaluation, val, tasks):
    if evaluation == 'broken':
      raise DivergedError('predictions are not finite')
    return -0.5, {'val/loss': 0.5}

  monkeypatch.setattr(loop, 'validation_values', values)
  noted = [Result(), Result()]
  program = SimpleNamespace(config=None, val=None, run=SimpleNamespace(tasks=()))
  assert replicas.validate_replicas(noted, 20, ['broken', 'sound'], program, [None, None]).tolist() == [False, True]
  assert [(one.diverged_at, one.score, one.best_step) for one in noted] == [(20, None, 0), (0, -0.5, 20)]
