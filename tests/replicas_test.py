"""Replicas trained together are the runs they stand for, whatever they share a device or a program with."""

from types import SimpleNamespace

import numpy as np
import pytest

from mtl_jax.data.input import mixture
from mtl_jax.errors import DivergedError
from mtl_jax.studies import program as programs
from mtl_jax.studies import replicas
from mtl_jax.studies.replicas import Replica
from mtl_jax.training import loop
from mtl_jax.training.progress import read_metrics


@pytest.fixture(scope='module')
def program(tiny_config, tmp_path_factory):
  config = tiny_config()
  return programs.build(config, mixture.open_data(config.data), directory=tmp_path_factory.mktemp('program'))


def train(program, chunk):
  return replicas.Trainer(program).run(chunk, test=True, stop=lambda: None, advance=lambda _: None)


@pytest.fixture(scope='module')
def results(program):
  return train(program, [Replica(seed, 1e-3) for seed in range(7)] + [Replica(0, 1e30)])


def test_a_replica_equals_the_same_run_alone(results, tiny_config, tmp_path):
  loop.train(tiny_config(**{'train.seed': 3}), tmp_path / 'alone')
  alone = [line for line in read_metrics(tmp_path / 'alone' / 'metrics.jsonl') if 'val/loss' in line]
  # Alone the batch lies on eight devices, here on one: sums are rounded otherwise.
  np.testing.assert_allclose(results[3].history['val/loss'], [line['val/loss'] for line in alone], rtol=1e-5)


def test_replicas_of_other_seeds_are_other_runs(results):
  ends = [result.history['val/loss'][-1] for result in results[:7]]
  assert len(set(ends)) == len(ends)


def test_a_replica_that_diverges_is_told_and_harms_no_other(results):
  assert results[7].diverged_at
  assert not results[7].predictions
  for result in results[:7]:
    assert not result.diverged_at
    assert all(np.isfinite(values).all() for values in result.predictions.values())


def test_replicas_on_their_own_devices_exchange_nothing(program):
  trainer = replicas.Trainer(program)
  assert not any(name in trainer.compiled_steps_text(8) for name in ('all-reduce', 'all-gather', 'collective-permute'))


def test_a_replica_whose_last_update_broke_it_diverged_and_the_others_go_on(monkeypatch):
  def values(config, evaluation, val, tasks):
    if evaluation == 'broken':
      raise DivergedError('predictions are not finite')
    return -0.5, {'val/loss': 0.5}

  monkeypatch.setattr(loop, 'validation_values', values)
  noted = replicas._Scores(2)
  program = SimpleNamespace(config=None, val=None, run=SimpleNamespace(tasks=()))
  assert noted.judge(20, ['broken', 'sound'], program).tolist() == [False, True]
  assert (noted.diverged_at, noted.best, noted.best_step) == ([20, 0], [None, -0.5], [0, 20])
