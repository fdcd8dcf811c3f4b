"""Which rows a batch holds is a function of seed and step: each row once a pass, by set, in stripes, in balance."""

import contextlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.data.input import sampler
from mtl_jax.data.input.sampler import interleaved, make_sampler, num_stripes, rows_a_batch
from mtl_jax.errors import ConfigError

quick = settings(deadline=None, max_examples=60)
ORDER = {  # Of `test_the_order_stays_what_it_was`.
  'small': [8, 4, 7, 2],
  'striped': [4609, 43, 3985, 1622, 1441, 3811, 24, 2506],
  'sets': [2441, 779, 3032, 2, 281, 1042, 3042, 2002],
  'balanced': [182, 73, 101, 206, 247, 228],
}


def plain(step: int, *, seed: int, num_examples: int, batch_size: int) -> np.ndarray:
  return make_sampler(seed, sizes=(num_examples,), rows=(batch_size,)).indices(step)


def stream(first: int, last: int, **kwargs) -> np.ndarray:
  """The positions of steps `first` to `last`, one after another."""
  return np.concatenate([plain(step, **kwargs) for step in range(first, last)])


@contextlib.contextmanager
def stripes_of(least: int):
  """Lets stripes have so few rows."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sampler, 'LEAST_STRIPE', least)
    yield


# A small set.


@given(num_examples=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**31 - 1))
@quick
def test_each_epoch_is_a_permutation_and_runs_on_into_the_next(num_examples, batch_size, seed):
  epochs = 3
  steps = -(-epochs * num_examples // batch_size)
  seen = stream(0, steps, num_examples=num_examples, batch_size=batch_size, seed=seed)
  assert len(seen) == steps * batch_size
  for epoch in seen[: epochs * num_examples].reshape(epochs, num_examples):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))


@given(
  step=st.one_of(st.integers(0, 100), st.integers(2**31 - 100, 2**31 + 100), st.integers(2**40, 2**41)),
  batch_size=st.integers(1, 300),
  num_examples=st.integers(1, 200),
)
@quick
def test_positions_do_not_depend_on_the_batch_size_at_any_step(step, batch_size, num_examples):
  """The stream of examples is one; batches of b at step s are examples s*b to s*b+b of it, even past 2^31."""
  found = plain(step, seed=3, num_examples=num_examples, batch_size=batch_size)
  assert found.shape == (batch_size,)
  assert 0 <= found.min() <= found.max() < num_examples
  for place in (0, batch_size // 2, batch_size - 1):
    one = plain(step * batch_size + place, seed=3, num_examples=num_examples, batch_size=1)
    assert found[place] == one[0]


@given(num_examples=st.integers(8, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 1000))
@quick
def test_an_epoch_is_a_permutation_beyond_two_to_the_31_too(num_examples, batch_size, seed):
  epoch = 2**33 // num_examples
  first = epoch * num_examples // batch_size
  steps = -(-2 * num_examples // batch_size) + 1
  seen = stream(first, first + steps, num_examples=num_examples, batch_size=batch_size, seed=seed)
  begin = epoch * num_examples - first * batch_size
  np.testing.assert_array_equal(np.sort(seen[begin : begin + num_examples]), np.arange(num_examples))


def test_epochs_and_seeds_differ():
  kwargs = {'num_examples': 100, 'batch_size': 100}
  orders = [tuple(plain(step, seed=seed, **kwargs)) for step in range(3) for seed in range(3)]
  assert len(set(orders)) == 9


# A large set, in stripes.


def test_a_large_set_is_cut_for_as_many_devices_as_are_likely_and_a_small_one_is_not():
  assert num_stripes(162_770, 256) == 128
  assert num_stripes(162_770, 64) == 64
  assert num_stripes(162_770, 227) == 128
  assert num_stripes(162_770, 1) == num_stripes(2047, 256) == num_stripes(1, 256) == 1
  assert num_stripes(2048, 256) == 2


def test_stripes_of_celeba_are_alike_and_devices_share_them():
  celeba = make_sampler(0, sizes=(162_770,), rows=(256,))
  shares = [celeba.reach(slice(32 * device, 32 * device + 32)) for device in range(8)]
  assert {len(share) for share in shares} <= {20_346, 20_347}  # 162,770 / 8, to the row.
  np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(162_770))
  assert celeba.draws[0].streams.sizes.min() == 1271  # No row comes more often than another by more than 0.1 %.
  assert celeba.draws[0].streams.sizes.max() == 1272


@given(
  sizes=st.lists(st.integers(1, 200), min_size=1, max_size=3),
  extra=st.integers(0, 20),
  devices=st.sampled_from([1, 2, 3, 4, 8]),
  seed=st.integers(0, 2**31 - 1),
)
@quick
def test_a_place_of_a_batch_has_only_rows_in_its_reach_and_all_reach_is_all_rows(sizes, extra, devices, seed):
  batch_size = devices * (len(sizes) + extra)
  with stripes_of(4):
    made = make_sampler(seed, sizes=sizes, rows=rows_a_batch(tuple(sizes), batch_size))
  seen = np.stack([made.indices(step) for step in range(20)])
  share = batch_size // devices
  slices = [slice(share * device, share * (device + 1)) for device in range(devices)]
  for places in slices:
    assert np.isin(seen[:, places], made.reach(places)).all()
    assert (np.diff(made.reach(places)) > 0).all()
  np.testing.assert_array_equal(np.unique(np.concatenate([made.reach(p) for p in slices])), np.arange(sum(sizes)))


@given(log_batch=st.integers(3, 6), size=st.integers(64, 400), seed=st.integers(0, 1000))
@quick
def test_devices_divide_a_set_without_overlap_where_both_are_powers_of_two(log_batch, size, seed):
  batch_size = 2**log_batch
  with stripes_of(8):
    made = make_sampler(seed, sizes=(size,), rows=(batch_size,))
  for devices in (1, 2, 4, 8):
    share = batch_size // devices
    reach = [made.reach(slice(share * i, share * (i + 1))) for i in range(devices)]
    assert sum(map(len, reach)) == size
    assert max(map(len, reach)) - min(map(len, reach)) <= batch_size


@given(size=st.integers(8, 300), batch_size=st.integers(2, 30), seed=st.integers(0, 1000), step=st.integers(0, 2**34))
@quick
def test_each_row_comes_once_in_each_pass_of_its_stripe(size, batch_size, seed, step):
  with stripes_of(4):
    made = make_sampler(seed, sizes=(size,), rows=(batch_size,))
  draw = made.draws[0]
  for stripe, length in enumerate(draw.streams.sizes):
    places = np.flatnonzero(draw.stripes == stripe)
    first = step * len(places) // length * length + length  # The stream's next pass begins at this draw.
    steps = range(first // len(places), (first + length) // len(places) + 1)
    drawn = np.concatenate([made.indices(s)[places] for s in steps])[first - steps[0] * len(places) :][:length]
    np.testing.assert_array_equal(np.sort(drawn), np.sort(made.reach(slice(places[0], places[-1] + 1))))


def test_stripes_are_cut_at_random_by_the_seed():
  with stripes_of(16):
    reach = [make_sampler(seed, sizes=(256,), rows=(16,)).reach(slice(0, 8)) for seed in (0, 1)]
  for rows in reach:
    assert len(rows) == 128
    assert 40 < np.count_nonzero(np.diff(rows) == 1) < 88  # Neither a run of rows nor every second one.
    assert 40 < np.count_nonzero(rows < 128) < 88
  assert (reach[0] != reach[1]).any()


# Balance.


@st.composite
def labelled(draw) -> tuple[np.ndarray, int]:
  """The groups of the rows of a set, some in none, and a batch size."""
  num = draw(st.integers(1, 40))
  groups = draw(st.lists(st.integers(-1, num), min_size=1, max_size=120).filter(lambda found: max(found) >= 0))
  return np.array(groups), draw(st.integers(1, 25))


def draw_balanced(groups: np.ndarray, batch_size: int, steps: Sequence[int], *, seed: int = 0) -> np.ndarray:
  made = make_sampler(seed, sizes=(len(groups),), rows=(batch_size,), groups=groups)
  return np.stack([made.indices(step) for step in steps])


@given(case=labelled(), seed=st.integers(0, 1000), first=st.sampled_from([0, 1, 2**34]))
@quick
def test_every_batch_is_balanced_to_within_one_row(case, seed, first):
  groups, batch_size = case
  names = np.unique(groups[groups >= 0])
  for positions in draw_balanced(groups, batch_size, range(first, first + 30), seed=seed):
    counts = [np.count_nonzero(groups[positions] == name) for name in names]
    assert sum(counts) == batch_size  # Rows in no group are left out.
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize('num_groups', [7, 8, 9, 12, 15, 16, 17, 40])
def test_no_batch_of_eight_has_a_group_twice_more_than_another_where_passes_meet(num_groups):
  groups = np.arange(2 * num_groups) % num_groups
  for positions in draw_balanced(groups, 8, range(200)):
    counts = np.bincount(groups[positions], minlength=num_groups)
    assert counts.max() - counts.min() <= 1


@given(case=labelled(), seed=st.integers(0, 1000))
@quick
def test_all_groups_come_equally_often_in_the_long_run(case, seed):
  groups, batch_size = case
  names = np.unique(groups[groups >= 0])
  seen = draw_balanced(groups, batch_size, range(len(names)), seed=seed)
  assert {np.count_nonzero(groups[seen] == name) for name in names} == {batch_size}


@given(case=labelled(), seed=st.integers(0, 1000))
@quick
def test_every_row_of_a_group_comes_once_in_each_pass_of_the_group(case, seed):
  groups, batch_size = case
  names, sizes = np.unique(groups[groups >= 0], return_counts=True)
  steps = -(-2 * sizes.max() * len(names) // batch_size) + 1
  seen = draw_balanced(groups, batch_size, range(steps), seed=seed).ravel()
  for name, size in zip(names, sizes, strict=True):
    own = seen[groups[seen] == name]
    for group_pass in own[: 2 * size].reshape(2, size):
      np.testing.assert_array_equal(np.sort(group_pass), np.flatnonzero(groups == name))


def test_passes_over_many_groups_and_over_a_group_are_in_other_orders():
  groups = np.arange(400) % 40
  seen = draw_balanced(groups, 8, range(100))
  turns = groups[seen].reshape(20, 40)
  assert len({tuple(turn) for turn in turns}) == 20
  for name in range(40):
    own = seen[groups[seen] == name].reshape(2, 10)
    assert (own[0] != own[1]).any()
  assert (draw_balanced(groups, 8, range(100), seed=1) != seen).any()


def test_a_balanced_batch_is_a_function_of_the_step():
  groups = np.arange(300) % 7
  seen = draw_balanced(groups, 16, range(50))
  np.testing.assert_array_equal(draw_balanced(groups, 16, range(49, -1, -1))[::-1], seen)


def test_rows_without_a_group_are_out_of_reach():
  groups = np.array([0, -1, 1, 1, -1, 0])
  made = make_sampler(0, sizes=(6,), rows=(4,), groups=groups)
  np.testing.assert_array_equal(made.reach(slice(0, 2)), [0, 2, 3, 5])


def test_a_set_in_which_no_row_has_a_group_is_drawn_as_without_balance():
  groups = np.concatenate([np.arange(10) % 2, np.full(7, -1)])
  balanced = make_sampler(0, sizes=(10, 7), rows=(6, 3), groups=groups)
  free = make_sampler(0, sizes=(10, 7), rows=(6, 3))
  second = balanced.sets == 1
  for step in range(9):
    ours, theirs = balanced.indices(step), free.indices(step)
    np.testing.assert_array_equal(ours[second], theirs[second])
    assert np.bincount(groups[ours[~second]]).tolist() == [3, 3]


# Several sets.


@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), extra=st.integers(0, 200))
@quick
def test_every_row_of_a_batch_is_of_a_set_and_every_set_has_about_its_share(weights, extra):
  size = len(weights) + extra
  rows = rows_a_batch(tuple(weights), size)
  assert sum(rows) == size
  assert min(rows) >= 1
  if all(size * weight / sum(weights) >= 1 for weight in weights):
    for count, weight in zip(rows, weights, strict=True):
      assert abs(count - size * weight / sum(weights)) < 1 + 1e-9


def test_shares_are_rounded_by_largest_remainders():
  assert rows_a_batch((1, 1, 1), 8) == (3, 3, 2)
  assert rows_a_batch((0.5, 0.3, 0.2), 10) == (5, 3, 2)
  assert rows_a_batch((5, 3, 2), 8) == (4, 2, 2)
  assert rows_a_batch((1000, 1, 1), 8) == (6, 1, 1)
  with pytest.raises(ConfigError, match=r'train\.batch_size is 2, too few for a row of each of 3 sets'):
    rows_a_batch((1, 1, 1), 2)


@given(rows=st.lists(st.integers(1, 60), min_size=1, max_size=4), devices=st.sampled_from([2, 4, 8]))
@quick
def test_every_slice_of_a_batch_holds_each_set_about_evenly(rows, devices):
  rows[0] += -sum(rows) % devices
  sets = interleaved(tuple(rows))
  slices = sets.reshape(devices, -1)
  for number, count in enumerate(rows):
    assert np.count_nonzero(sets == number) == count
    in_slices = np.count_nonzero(slices == number, axis=1)
    assert np.abs(in_slices - count / devices).max() <= 1 + len(rows) / 2


@given(
  sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), step=st.integers(0, 2**40), seed=st.integers(0, 2**31 - 1)
)
@quick
def test_every_batch_holds_exactly_its_rows_of_each_set(sizes, step, seed):
  rows = rows_a_batch(tuple(sizes), 16)
  positions = make_sampler(seed, sizes=sizes, rows=rows).indices(step)
  bounds = np.cumsum([0, *sizes])
  assert tuple(np.histogram(positions, bounds - 0.5)[0]) == rows
  np.testing.assert_array_equal(np.searchsorted(bounds, positions, side='right') - 1, interleaved(rows))
  np.testing.assert_array_equal(make_sampler(seed, sizes=sizes, rows=rows).indices(step), positions)


def test_each_set_is_permuted_epoch_by_epoch():
  sizes, rows = (12, 12, 7), (3, 3, 2)
  seen = np.stack([make_sampler(4, sizes=sizes, rows=rows).indices(step) for step in range(28)])
  streams = [seen[:, interleaved(rows) == number].ravel() for number in range(3)]
  for stream, first, size in zip(streams, (0, 12, 24), sizes, strict=True):
    for epoch in stream[: len(stream) // size * size].reshape(-1, size):
      np.testing.assert_array_equal(np.sort(epoch), first + np.arange(size))
  assert (streams[0] != streams[1] - 12).any()  # Sets of one size have orders of their own.
  assert (seen != np.stack([make_sampler(5, sizes=sizes, rows=rows).indices(step) for step in range(28)])).any()


def test_the_first_set_comes_as_it_would_alone():
  both, alone = (make_sampler(3, sizes=sizes, rows=rows) for sizes, rows in (((20, 9), (8, 4)), ((20,), (8,))))
  for step in range(5):
    np.testing.assert_array_equal(both.indices(step)[both.sets == 0], alone.indices(step))


def test_the_order_stays_what_it_was():
  """Runs of today resume tomorrow: the positions of some batches, plain, of several sets, and balanced."""
  groups = np.arange(300) * 7 % 10 - 1
  found = {
    'small': make_sampler(7, sizes=(10,), rows=(4,)).indices(12345),
    'striped': make_sampler(7, sizes=(5000,), rows=(8,)).indices(1000),
    'sets': make_sampler(7, sizes=(3000, 70), rows=(6, 2)).indices(99),
    'balanced': make_sampler(7, sizes=(300,), rows=(6,), groups=groups).indices(99),
  }
  assert {name: rows.tolist() for name, rows in found.items()} == ORDER
