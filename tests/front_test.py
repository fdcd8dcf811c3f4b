"""The front: true ones are found and their volumes known, and points beside them are told from those on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mtl_jax.objectives import OBJECTIVES
from mtl_jax.studies.scores import Scores
from mtl_jax.studies.space import Space
from mtl_jax.sweeps import front


def quadratics(weight):
  """Minus the losses |x|^2 and |x - 1|^2 where their weighted sum is least: x = 1 - w, the front in closed form."""
  return np.stack([-((1 - weight) ** 2), -(weight**2)], axis=-1)


WEIGHTS = np.linspace(0.05, 0.95, 19)


def test_two_quadratic_losses_have_the_front_of_their_closed_form():
  losses = quadratics(WEIGHTS)
  assert front.nondominated(losses).all()
  np.testing.assert_allclose(np.sqrt(-losses[:, 0]) + np.sqrt(-losses[:, 1]), 1)
  worse = losses - 0.01
  assert front.nondominated(np.concatenate([losses, worse])).sum() == len(losses)
  assert front.knee(losses) == 9  # By symmetry.


@pytest.mark.parametrize('name', ['fixed', 'mgda', 'cagrad'])
def test_training_in_a_known_conflict_ends_on_the_true_front(name):
  """The losses |x|^2 and |x - 1|^2 pull x apart; every weight of a grid, as an argument, in one compiled program."""
  grid = Space((), weights_of=('a', 'b')).grid()

  @jax.jit
  @jax.vmap
  def train(weights):
    objective = OBJECTIVES[name](**({'weights': list(weights)} if name == 'fixed' else {}))

    def step(carry, _):
      x, state = carry
      losses = jnp.stack([x**2, (x - 1) ** 2])
      if objective.needs == 'losses':
        gradient = jax.grad(lambda x: objective.update(jnp.stack([x**2, (x - 1) ** 2]), state)[0])(x)
      else:
        gradient, state = objective.update(jnp.stack([2 * x, 2 * (x - 1)]), state, losses=losses)
      return (x - 0.1 * gradient, state), None

    start = jnp.float32(1.7)
    (x, _), _ = jax.lax.scan(step, (start, objective.init(2, start)), length=300)
    return -jnp.stack([x**2, (x - 1) ** 2])

  found = np.array(train(jnp.array([list(one.values()) for one in grid])))
  np.testing.assert_allclose(np.sqrt(-found[:, 0]) + np.sqrt(-found[:, 1]), 1, atol=2e-3)
  if name == 'fixed':
    np.testing.assert_allclose(found, quadratics(np.arange(1, 10) / 10), atol=1e-3)
    assert front.nondominated(found).all()


def test_the_hypervolume_of_two_quadratics_comes_near_its_integral():
  """Above (-1, -1): the area between the axes and sqrt(a) + sqrt(b) = 1 is 1/6, so 5/6 lies below the front."""
  points = quadratics(np.linspace(0, 1, 1001))
  assert front.hypervolume(points, np.array([-1.0, -1.0])) == pytest.approx(5 / 6, abs=1e-3)


@given(points=arrays.arrays(float, (5, 3), elements=st.floats(0, 1)))
def test_hypervolume_is_the_share_of_a_lattice_that_is_dominated(points):
  points = np.round(points * 4) / 4
  cells = (np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing='ij'), -1).reshape(-1, 3) + 0.5) / 4
  inside = (cells[:, None] <= points[None]).all(-1).any(1).mean()
  assert front.hypervolume(points, np.zeros(3)) == pytest.approx(inside)


def test_a_gap_is_how_far_the_front_is_better_in_every_goal():
  line = np.array([[0.0, 2.0], [2.0, 0.0]])
  assert front.gap(np.array([-1.0, -1.0]), line, mixed=False) == pytest.approx(1)
  assert front.gap(np.array([-1.0, -1.0]), line, mixed=True) == pytest.approx(2)
  assert front.gap(np.array([0.9, 0.9]), line, mixed=True) == pytest.approx(0.1)
  assert front.gap(np.array([0.9, 0.9]), line, mixed=False) < 0
  assert front.gap(np.array([2.0, 2.0]), line, mixed=True) == pytest.approx(-1)


def test_methods_above_and_below_a_known_front_are_told_and_one_on_it_is_not():
  random = np.random.default_rng(0)
  noise = lambda *shape: random.normal(0, 0.1, (*shape, 8))  # noqa: E731
  points = 100 * quadratics(WEIGHTS)[..., None] + noise(len(WEIGHTS), 2)
  on = np.array([-25.0, -25.0])
  methods = {name: (on + away)[:, None] + noise(2) for name, away in (('better', 5), ('worse', -5), ('same', 0))}
  found = front.positions(methods, points)
  assert {name: entry['position'] for name, entry in found.items()} == {
    'better': front.ABOVE, 'worse': front.BELOW, 'same': front.ON,
  }  # fmt: skip
  assert found['worse']['gap']['mean'] == pytest.approx(5, abs=0.3)
  assert all(entry['p_adjusted'] >= entry['p_value'] for entry in found.values())


def test_points_on_the_front_are_seldom_called_off_it():
  """About 5 % of 60 studies with no difference may raise a false alarm."""
  random, alarms = np.random.default_rng(1), 0
  line = np.array([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
  for _ in range(60):
    points = line[..., None] + random.normal(0, 0.5, (5, 2, 8))
    own = np.array([2.0, 2.0])[:, None] + random.normal(0, 0.5, (2, 8))
    alarms += front.positions({'same': own}, points)['same']['position'] != front.ON
  assert alarms <= 10


def test_gains_are_shares_of_single_tasks_and_groups_are_one_goal():
  up = Scores('a/x', '', 'accuracy', True, {'single': np.array([0.5, 0.5]), 'joint': np.array([0.6, 0.5])})
  same = Scores('a/y', '', 'accuracy', True, {'single': np.array([0.5, 0.5]), 'joint': np.array([0.5, 0.5])})
  down = Scores('b', '', 'nme', True, {'single': np.array([0.1, 0.1]), 'joint': np.array([0.09, 0.1])})
  found = front.gains_by_seed([up, same, down], ['joint'], 'single')
  np.testing.assert_allclose(found, [[[10, 0], [10, 0]]], atol=1e-9)
  whole = front.summarize([up, same, down], {'joint': 'weights'}, reference='single')
  assert [goal['tasks'] for goal in whole['goals']] == [['a/x', 'a/y'], ['b']]
  assert whole['hypervolume']['fixed weights']['of_single']['mean'] == pytest.approx(1.05**2)
  assert whole['hypervolume']['fixed weights']['beyond_single']['mean'] == pytest.approx(0.05**2)


def test_the_jackknife_of_a_mean_is_the_values_themselves():
  values = np.array([1.0, 2.0, 4.0])
  np.testing.assert_allclose(front.jackknife(float, values), values)


@given(points=arrays.arrays(float, (9, 2), elements=st.floats(0, 1)), num=st.integers(2, 6))
def test_points_that_are_kept_of_a_front_hold_the_best_of_each_goal(points, num):
  kept = front.spread(points, num)
  assert len(kept) <= num
  assert {points[kept].max(0)[g] for g in range(2)} == {points.max(0)[g] for g in range(2)}
