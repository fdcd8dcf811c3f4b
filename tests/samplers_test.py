"""Samplers propose the same again from the same seed and news; those that learn find what is best; pruners are fair."""

import numpy as np
import pytest

from mtl_jax.sweeps import samplers

KINDS = ['random', 'sobol', 'halton', 'tpe', 'nsga2']


def asked(kind, *, goals, batches=3, size=4, sizes=(0, 3)):
  """The points that a sampler proposes while it is told what `goals` make of them."""
  pytest.importorskip('optuna')
  sampler = samplers.make(kind, sizes, seed=1, population=size, num_goals=2 if kind == 'nsga2' else 1)
  found = []
  for _ in range(batches):
    points = sampler.ask(size)
    sampler.tell([goals(point) for point in points])
    found.append(points)
  return np.concatenate(found)


@pytest.mark.filterwarnings('error:The balance')  # SciPy's, of numbers that are no power of 2.
@pytest.mark.parametrize('kind', KINDS)
def test_the_same_seed_and_news_give_the_same_points_within_the_cube(kind):
  def goals(point):
    return None if point[0] > 0.8 else (-point[0], point[1])[: 2 if kind == 'nsga2' else 1]

  one, other = (asked(kind, goals=goals, size=3) for _ in range(2))
  np.testing.assert_array_equal(one, other)
  assert ((one >= 0) & (one <= 1)).all()
  assert len(np.unique(one[:, 0])) > len(one) / 2


def test_tpe_gathers_where_the_goal_is_great():
  points = asked('tpe', goals=lambda point: (-abs(point[0] - 0.3),), batches=15, sizes=(0,))
  assert abs(points[-20:, 0] - 0.3).mean() < abs(points[:20, 0] - 0.3).mean() / 2


@pytest.mark.parametrize('kind', ['median', 'halving'])
def test_a_pruner_gives_up_what_is_worse_than_earlier_batches_and_not_the_first(kind):
  pytest.importorskip('optuna')
  pruner = samplers.Pruner(kind)
  assert not pruner.should_prune([0.0])
  pruner.tell([[float(i), float(i)] for i in range(8)])
  assert pruner.should_prune([0.5])
  assert not pruner.should_prune([9.0])
  assert not pruner.should_prune([8.5])  # Trials of one batch do not see each other.


def test_a_sampler_of_a_library_that_is_not_there_says_what_to_install(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'optuna', None)
  with pytest.raises(samplers.ConfigError, match=r'config\.sweep\.sampler=tpe needs Optuna; pip install'):
    samplers.make('tpe', [0], seed=0, population=2, num_goals=1)
