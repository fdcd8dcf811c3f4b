"""Groups are the best there are, noise is told from signal at the rate that is said."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mtl_jax.affinities import grouping, noise


def test_divisions_are_all_there_are_each_once():
  assert [len(grouping.divisions(num, num)) for num in range(1, 8)] == [1, 2, 5, 15, 52, 203, 877]  # Bell's numbers.
  assert len(grouping.divisions(6, 3)) == 1 + 31 + 90  # Stirling's.
  ways = {tuple(grouping.numbered(way)) for way in grouping.divisions(6, 3)}
  assert len(ways) == 122


def test_a_task_gains_what_the_others_of_its_group_do_to_it_on_average():
  affinity = np.array([[9, 1, 2], [4, 9, 8], [6, 3, 9.0]])
  assert grouping.gains(affinity, np.array([0, 0, 0])).tolist() == [5, 2, 5]
  assert grouping.gains(affinity, np.array([0, 1, 0])).tolist() == [6, 0, 2]
  assert grouping.best(affinity, networks=2).gain == pytest.approx(4)  # All in one: more than any pair.


@pytest.mark.parametrize('networks', [1, 2, 3, 6])
def test_the_best_of_few_tasks_is_that_of_a_plain_search(networks):
  affinity = np.random.default_rng(networks).normal(size=(6, 6))
  ways = (np.array(labels) for labels in itertools.product(range(networks), repeat=6))
  wanted = max(grouping.gains(affinity, labels).mean() for labels in ways)
  found = grouping.best(affinity, networks=networks)
  assert found.exact
  assert found.gain == pytest.approx(wanted)
  assert grouping.gains(affinity, found.labels).mean() == pytest.approx(wanted)


def test_the_search_for_many_tasks_reaches_the_best_of_few(monkeypatch):
  random = np.random.default_rng(0)
  for networks in (2, 3, 4):
    affinity = random.normal(size=(9, 9))
    exact = grouping.best(affinity, networks=networks)
    monkeypatch.setattr(grouping, 'MAX_EXHAUSTIVE', 2)
    found = grouping.best(affinity, networks=networks)
    monkeypatch.undo()
    assert exact.exact
    assert not found.exact
    assert found.gain == pytest.approx(exact.gain)


def test_no_move_or_swap_betters_what_the_search_of_forty_tasks_finds():
  affinity = np.random.default_rng(1).normal(size=(40, 40))
  found = grouping.best(affinity, networks=4, starts=3)
  assert found.gain == pytest.approx(grouping.gains(affinity, found.labels).mean())
  for task, label in itertools.product(range(40), range(4)):
    moved = np.where(np.arange(40) == task, label, found.labels)
    assert grouping.gains(affinity, moved).mean() <= found.gain + 1e-9
  for a, b in itertools.combinations(range(40), 2):
    swapped = found.labels.copy()
    swapped[[a, b]] = swapped[[b, a]]
    assert grouping.gains(affinity, swapped).mean() <= found.gain + 1e-9


def test_hidden_groups_of_forty_tasks_are_found_in_any_order():
  random = np.random.default_rng(2)
  truth = random.permutation(np.arange(40) % 4)
  affinity = np.where(truth[:, None] == truth, 1.0, -0.2) + random.normal(0, 0.5, (40, 40))
  found = grouping.best(affinity, networks=4)
  assert found.labels.tolist() == grouping.numbered(truth).tolist()
  leaves = truth[grouping.order(affinity)]
  assert (np.diff(leaves) != 0).sum() == 3


def test_more_networks_never_gain_less_and_tasks_that_only_hurt_are_left_alone():
  affinity = np.random.default_rng(3).normal(size=(7, 7))
  gains = [grouping.best(affinity, networks=networks).gain for networks in range(1, 8)]
  assert gains == sorted(gains)
  alone = grouping.best(-np.abs(affinity), networks=7)
  assert alone.labels.tolist() == list(range(7))
  assert alone.gain == 0


# --- noise ------------------------------------------------------------------------------------------------------------


def test_pure_noise_is_seldom_above_noise():
  random = np.random.default_rng(0)
  alarms = 0
  for _ in range(400):
    values = random.normal(size=(60, 4, 4))
    above = noise.above(noise.mean(values), noise.standard_error(values)[0], degrees=59)
    alarms += bool(above[~np.eye(4, dtype=bool)].any())
  assert 0.02 < alarms / 400 < 0.08  # Where nothing is there, the false discovery rate is that of any alarm: 0.05.


@pytest.mark.parametrize('num_looks', [4, 6, 10])
def test_entries_of_few_looks_are_seldom_above_noise_either(num_looks):
  values = np.random.default_rng(0).normal(size=(num_looks, 60, 60))
  stderr, degrees = noise.standard_error(values)
  p_values = 2 * stats.t.sf(np.abs(noise.mean(values) / stderr), degrees)
  assert 0.03 < (p_values < 0.05).mean() < 0.08


def test_a_drift_does_not_pass_for_noise():
  random = np.random.default_rng(0)
  values = random.normal(0, 0.1, (200, 2, 2))
  drifts = (0, np.linspace(-5, 5, 200)[:, None, None])
  steady, drifting = (noise.standard_error(values + drift)[0] for drift in drifts)
  assert values.std() / np.sqrt(200) == pytest.approx(steady.mean(), rel=0.1)
  np.testing.assert_allclose(drifting, steady, rtol=0.1)


def test_entries_that_are_missing_count_nowhere():
  values = np.random.default_rng(0).normal(1, 0.1, (10, 2, 2))
  values[::2, 0, 1] = np.nan
  values[:, 1, 0] = np.nan
  mean, (stderr, found) = noise.mean(values), noise.standard_error(values)
  degrees = {n: 2 * (n - 1) ** 2 / (3 * n - 4) for n in (10, 5)}
  np.testing.assert_allclose(found, [[degrees[10], degrees[5]], [2, degrees[10]]])
  assert mean[0, 1] == pytest.approx(values[1::2, 0, 1].mean())
  assert np.isnan([mean[1, 0], stderr[1, 0]]).all()
  assert noise.above(mean, stderr, degrees=9).tolist() == [[True, True], [False, True]]


def test_halves_agree_where_there_is_signal_and_not_where_there_is_none():
  random = np.random.default_rng(0)
  signal = random.normal(size=(12, 12))
  assert noise.split_half(signal + random.normal(0, 1, (100, 12, 12))) > 0.95
  assert noise.split_half(random.normal(size=(100, 12, 12))) < 0.4
  assert noise.split_half(random.normal(size=(100, 2, 2))) is None  # Two entries always correlate.
