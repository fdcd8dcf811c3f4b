"""A keyed permutation has every element once, and all orders of a few elements about equally often."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.data.input.permutation import key_of, permuted


def order(size: int, key: int) -> np.ndarray:
  return permuted(np.arange(size), sizes=np.full(size, size), keys=np.repeat(key_of(key), size))


@given(size=st.integers(1, 3000), key=st.integers(0, 2**63))
@settings(deadline=None, max_examples=60)
def test_every_element_comes_once(size, key):
  np.testing.assert_array_equal(np.sort(order(size, key)), np.arange(size))


@given(sizes=st.lists(st.integers(1, 10**12), min_size=1, max_size=20), key=st.integers(0, 2**63))
@settings(deadline=None, max_examples=60)
def test_an_element_does_not_depend_on_what_else_is_asked(sizes, key):
  sizes = np.array(sizes)
  keys = key_of(key, np.arange(len(sizes)))
  found = permuted(sizes - 1, sizes=sizes, keys=keys)
  assert (found >= 0).all()
  assert (found < sizes).all()
  for i in range(len(sizes)):
    assert permuted(sizes[i : i + 1] - 1, sizes=sizes[i : i + 1], keys=keys[i : i + 1]) == found[i]


@pytest.mark.parametrize(('size', 'largest'), [(2, 10.8), (4, 49.7), (5, 173.6), (6, 842.0)])
def test_all_orders_are_equally_frequent(size, largest):
  """Chi-square over the orders stays below its 0.999 quantile."""
  num = 60_000
  places, sizes = np.tile(np.arange(size), num), np.full(size * num, size)
  orders = permuted(places, sizes=sizes, keys=np.repeat(key_of(np.arange(num)), size)).reshape(num, size)
  _, counts = np.unique(orders, axis=0, return_counts=True)
  assert len(counts) == math.factorial(size)
  expected = num / math.factorial(size)
  assert ((counts - expected) ** 2 / expected).sum() < largest


def test_neighbours_in_a_large_permutation_are_unrelated():
  found = order(100_003, 1)
  assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.015  # Four and a half standard errors.
  assert abs(np.corrcoef(found, np.arange(len(found)))[0, 1]) < 0.015
  assert abs(np.corrcoef(found, order(100_003, 2))[0, 1]) < 0.015


def test_keys_of_different_numbers_differ():
  a, b = np.divmod(np.arange(10_000), 100)
  assert len(np.unique(key_of(a, b))) == 10_000
  assert len(np.unique(key_of(0, 3))) == len(key_of(0, 3)) == 1
