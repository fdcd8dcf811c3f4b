"""Results of replicas are kept with the recipe they were made by, and taken for no other."""

import numpy as np
import pytest

from mtl_jax.config import with_fields
from mtl_jax.configs import default
from mtl_jax.errors import CheckpointError
from mtl_jax.studies.replicas import Replica, Result
from mtl_jax.studies.result_store import ResultStore, recipe

CONFIG = default.get_config().lock()
RESULT = Result(Replica(3, 1e-3), -0.5, 20, {'step': [10.0, 20.0]}, {'landmarks': np.eye(3)}, 2.5, 0)


@pytest.mark.parametrize(
  'fields', [{'train__steps': 7}, {'model__width': 3}, {'data__keep_labels': 'disjoint'}, {'tasks': 'landmarks'}]
)
def test_what_changes_a_replica_changes_its_recipe(fields):
  assert recipe(with_fields(CONFIG, **fields), 'a') != recipe(CONFIG, 'a')
  assert recipe(CONFIG, 'b') != recipe(CONFIG, 'a')


@pytest.mark.parametrize(
  'fields',
  [
    {'train__seed': 7, 'optimizer__learning_rate': 1.0},  # A replica's own.
    {'study__arms': ('joint', 'single'), 'study__num_seeds': 9, 'affinity__every_steps': 3},
    {'data__dir': '/elsewhere', 'data__mode': 'streamed', 'train__watchdog_secs': 5.0},
  ],
)
def test_what_does_not_change_a_replica_leaves_its_recipe(fields):
  assert recipe(with_fields(CONFIG, **fields), 'a') == recipe(CONFIG, 'a')


def test_a_result_comes_back_and_is_done_for_its_own_recipe_alone(tmp_path):
  results = ResultStore(tmp_path)
  results.put('attributes/Male', RESULT, made_by='one')
  found = results.get('attributes/Male', RESULT.replica)
  np.testing.assert_array_equal(found.predictions.pop('landmarks'), np.eye(3))
  assert (found.score, found.best_step, found.history, found.seconds) == (-0.5, 20, RESULT.history, 2.5)
  assert results.has('attributes/Male', RESULT.replica)
  assert results.has('attributes/Male', RESULT.replica, 'one')
  assert not results.has('attributes/Male', RESULT.replica, 'another')
  assert not results.has('attributes/Male', Replica(4, 1e-3), 'one')


def test_a_result_that_was_cut_short_says_what_to_do(tmp_path):
  results = ResultStore(tmp_path)
  results.put('joint', RESULT, made_by='one')
  path = results.path('joint', RESULT.replica)
  path.write_bytes(path.read_bytes()[:200])
  for ask in (lambda: results.get('joint', RESULT.replica), lambda: results.has('joint', RESULT.replica, 'one')):
    with pytest.raises(CheckpointError, match='remove it, and it is run again'):
      ask()
