"""Replicas trained together are the runs they stand for, whatever they share a device or a program with."""

import numpy as np
import pytest

from mtl_jax.data import mixture
from mtl_jax.study import replicas
from mtl_jax.study.replicas import Replica
from mtl_jax.training import loop, sharding


@pytest.fixture(scope='module')
def program(tiny_config):
  config = tiny_config(**{'data.mode': 'resident'})
  return replicas.build(config, mixture.open_data(config.data), sharding.make_mesh())


def train(program, chunk, **options):
  return replicas.Trainer(program).run(chunk, test=True, stop=lambda: None, advance=lambda _: None, **options)


def test_a_replica_equals_the_same_run_alone(program, tiny_config, tmp_path):
  results = train(program, [Replica(seed, 1e-3) for seed in range(8)])
  lines = [r.history for r in results]
  config = tiny_config(**{'train.seed': 3})
  loop.train(config, tmp_path / 'alone')
  from mtl_jax.training.progress import read_metrics

  alone = [line for line in read_metrics(tmp_path / 'alone' / 'metrics.jsonl') if 'val/loss' in line]
  np.testing.assert_allclose(lines[3]['val/loss'], [line['val/loss'] for line in alone], rtol=1e-4)
  print(lines[3]['val/loss'], [line['val/loss'] for line in alone], lines[0]['val/loss'])
