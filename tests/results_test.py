"""Results of replicas are kept with the recipe they were made by, and taken for no other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.config import with_fields
from mtl_jax.configs import default
from mtl_jax.errors import CheckpointError
from mtl_jax.platform import npz
from mtl_jax.studies.arms import RATE, Replica
from mtl_jax.studies.results import Result, ResultStore, recipe

CONFIG = default.get_config().lock()
REPLICA, OTHER = Replica.of(3, {RATE: 1e-3}), Replica.of(4, {RATE: 1e-3})
RESULT = Result(-0.5, 20, {'step': [10.0, 20.0], 'val/loss': [float('inf'), 1.0]}, 2.5, made_by='one')
SHAPES = {'landmarks': (3, 3)}


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


@pytest.fixture
def store(tmp_path):
  results = ResultStore(tmp_path / 'replicas')
  results.put('attributes/Male', REPLICA, RESULT, {'landmarks': np.eye(3)})
  return results


def test_a_result_comes_back_and_is_done_for_its_own_recipe_alone(store):
  found = store.get('attributes/Male', REPLICA)
  assert (found.score, found.best_step, found.seconds) == (-0.5, 20, 2.5)
  assert found.history == {'step': [10, 20], 'val/loss': [None, 1]}  # What is not finite is unknown.
  np.testing.assert_array_equal(store.predictions('attributes/Male', REPLICA, SHAPES)['landmarks'], np.eye(3))
  assert store.has('attributes/Male', REPLICA, 'one')
  assert not store.has('attributes/Male', REPLICA, 'another')
  assert not store.has('attributes/Male', OTHER, 'one')


def test_each_replica_has_a_file_of_its_own(store):
  fields = [{}, {RATE: 1e-3}, {RATE: 1e-3, 'objective.weights.pose': 2.0}, {'objective.weights.pose': 2.0}]
  assert len({store.path('joint', Replica.of(seed, one)) for one in fields for seed in (1, 2)}) == 8


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_in_a_results_place_give_one_line_that_names_it(data, tmp_path_factory):
  results = ResultStore(tmp_path_factory.mktemp('study') / 'replicas')
  results.put('joint', REPLICA, RESULT, {'landmarks': np.eye(3)})
  path = results.path('joint', REPLICA)
  whole = path.read_bytes()
  place = data.draw(st.integers(0, len(whole) - 1))
  other = data.draw(st.binary(max_size=8))
  path.write_bytes(
    data.draw(st.sampled_from([whole[:place], whole[:place] + other + whole[place + len(other) :], other]))
  )
  for read in (lambda: results.has('joint', REPLICA, 'one'), lambda: results.predictions('joint', REPLICA, SHAPES)):
    said = refusal(read) or f'{path}: run again'  # Or what was changed has no meaning.
    assert str(path) in said
    assert said.endswith('run again')
    assert '\n' not in said


def refusal(read):
  """The message of a file that is refused."""
  try:
    read()
  except CheckpointError as error:
    return str(error)


@pytest.mark.parametrize(
  'facts', ['[]', '{"score": "high"}', '{"history": {"step": 3}}', '{"best_step": 1.5}', '{"score": NaN}', '{' * 10_000]
)
def test_facts_of_another_schema_name_the_file(store, facts):
  path = store.path('joint', REPLICA)
  npz.write(path, {'facts': np.array(facts)}, root=store.directory)
  with pytest.raises(CheckpointError, match=r'seed3\.npz.*run again'):
    store.get('joint', REPLICA)


def test_damaged_results_are_not_there_and_each_is_warned_of(store, said):
  for seed in (1, 2):
    path = store.path('joint', Replica.of(seed, {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'PK')
    assert not store.has('joint', Replica.of(seed, {}), 'one')
  assert [f'seed{seed}.npz' in line and 'run again' in line for seed, line in zip((1, 2), said, strict=True)] == [
    True
  ] * 2


@pytest.mark.parametrize('values', [np.eye(4), np.array(['a'] * 9).reshape(3, 3)], ids=['shape', 'type'])
def test_predictions_of_another_shape_or_type_name_the_file(store, values):
  store.put('joint', REPLICA, RESULT, {'landmarks': values})
  with pytest.raises(CheckpointError, match=r'seed3\.npz.*landmarks.*run again'):
    store.predictions('joint', REPLICA, SHAPES)


def test_a_link_in_a_results_place_is_replaced_and_what_it_leads_to_is_left_alone(store, tmp_path):
  own = tmp_path / 'own.txt'
  own.write_text('mine')
  path = store.path('joint', REPLICA)
  path.parent.mkdir()
  path.symlink_to(own)
  store.put('joint', REPLICA, RESULT, {})
  assert own.read_text() == 'mine'
  assert store.get('joint', REPLICA).score == -0.5
