"""A split is read as it was prepared; nothing is dropped, repeated or reordered on the way."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax import tasks as task_values
from mtl_jax.data.input.mixture import load_split
from mtl_jax.data.input.pipeline import padded_positions, prefetch
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import DataError

quick = settings(deadline=None, max_examples=60)


@given(num_examples=st.integers(1, 200), batch_size=st.integers(1, 64))
@quick
def test_padded_positions_hold_every_example_once_in_order(num_examples, batch_size):
  batches = list(padded_positions(num_examples, batch_size))
  assert {len(batch) for batch in batches} == {batch_size}
  whole = np.concatenate(batches)
  np.testing.assert_array_equal(whole[:num_examples], np.arange(num_examples))
  assert (whole[num_examples:] == -1).all()
  assert len(whole) - num_examples < batch_size


# Reading.


@given(count=st.integers(0, 30), depth=st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_prefetch_keeps_the_order(count, depth):
  assert list(prefetch(lambda item: item * item, range(count), depth=depth)) == [i * i for i in range(count)]


def test_prefetch_hands_on_an_exception_at_its_place():
  def make(item: int) -> int:
    if item == 3:
      raise DataError('row 3 is bad')
    return item

  results = prefetch(make, range(10))
  assert [next(results) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(DataError, match='row 3 is bad'):
    next(results)


@pytest.mark.parametrize('depth', [1, 2, 4])
def test_prefetch_does_not_run_away_ahead(depth):
  made: list[int] = []
  results = prefetch(lambda item: made.append(item), range(100), depth=depth)
  for taken in range(1, 6):
    next(results)
    time.sleep(0.05)  # Were it to run on, it would have time to.
    assert len(made) <= taken + depth


def test_prefetch_stops_when_its_reader_does():
  made: list[int] = []
  results = prefetch(lambda item: made.append(item), range(1000))
  next(results)
  results.close()
  assert len(made) <= 4
  assert not [thread for thread in threading.enumerate() if thread.name.startswith('input')]


def test_load_split_takes_the_columns_of_an_attribute_subset(store_dir):
  store = open_store(store_dir)
  every = next(task for task in store.tasks if task.name == 'attributes')
  wanted = ('Young', 'Bald', 'Smiling')
  chosen = task_values.select(store.tasks, 'attributes,landmarks', attributes=wanted)
  split = load_split(store, 'train', chosen)
  rows = store.split('train')
  for column, name in enumerate(wanted):
    original = store.labels['attributes'][rows.start : rows.stop, every.labels.index(name)]
    np.testing.assert_array_equal(split.labels['attributes'][:, column], original)
  np.testing.assert_array_equal(split.labels['landmarks'], store.labels['landmarks'][rows.start : rows.stop])
  assert len({tuple(column) for column in split.labels['attributes'].T}) == 3  # The three can be told apart.


def test_a_label_as_a_task_of_its_own_has_its_column(store_dir):
  store = open_store(store_dir)
  whole = load_split(store, 'val', task_values.select(store.tasks, 'attributes'))
  single = load_split(store, 'val', task_values.select(store.tasks, 'attributes/*'))
  for column, (name, values) in enumerate(single.labels.items()):
    assert name == f'attributes/{store.tasks[0].labels[column]}'
    np.testing.assert_array_equal(values[:, 0], whole.labels['attributes'][:, column])


def test_splits_hold_every_row_of_the_store_once(store_dir):
  store = open_store(store_dir)
  splits = [load_split(store, name, store.tasks) for name in ('train', 'val', 'test')]
  np.testing.assert_array_equal(np.concatenate([split.example_id for split in splits]), np.arange(len(store.images)))
  np.testing.assert_array_equal(np.concatenate([split.images for split in splits]), store.images)
  np.testing.assert_array_equal(np.concatenate([split.source_size for split in splits]), store.source_size)


def test_a_padded_row_is_masked_throughout_and_has_no_id(store_dir):
  store = open_store(store_dir)
  split = load_split(store, 'test', store.tasks)
  batch = split.read(np.array([1, -1, 0]))
  first = store.split('test').start
  np.testing.assert_array_equal(batch['example_id'], [first + 1, -1, first])
  assert batch['example_id'].dtype == np.int32
  np.testing.assert_array_equal(batch['image'][[0, 2]], split.images[[1, 0]])
  for name, mask in batch['mask'].items():
    assert not mask[1].any()
    np.testing.assert_array_equal(mask[[0, 2]], split.mask[name][[1, 0]])
    np.testing.assert_array_equal(batch['labels'][name][[0, 2]], split.labels[name][[1, 0]])


def test_a_task_the_set_does_not_know_is_refused_or_masked(store_dir):
  store = open_store(store_dir)
  age = task_values.RegressionTask('age', ('years',))
  with pytest.raises(DataError, match="'years' of task 'age'"):
    load_split(store, 'test', [age])
  split = load_split(store, 'test', [age], missing_ok=True)
  assert split.labels['age'].shape == (len(split), 1)
  assert not split.mask['age'].any()
