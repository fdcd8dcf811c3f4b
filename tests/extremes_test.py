"""Objectives at the ends: options out of range, gradients of 1e20 and 1e-20, losses of 1e38, tasks learned exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax.errors import ConfigError
from mtl_jax.objectives import OBJECTIVES, aggregate, options
from mtl_jax.objectives.declared import declared, with_ranges
from mtl_jax.objectives.task_gradients import gram, norms
from mtl_jax.objectives.weighting.learned import FARTHEST

ROWS = np.float32(np.random.default_rng(0).normal(size=(3, 3, 7)))  # Three parts of a batch, three tasks.
WITH_A_RANGE = [(name, option) for name, make in OBJECTIVES.items() for option in make.options]


def refused(kind):
  """Values just outside of a kind's range, and some that are no numbers."""
  least, most = kind.bounds or (-np.inf, np.inf)
  outside = [least - 1] * (least > -np.inf) + [most + 1] * (most < np.inf)
  return [*outside, float('nan'), float('inf'), True, 'lots', (float('nan'),) * 3, ((1.0, 'a', 2.0))]


@pytest.mark.parametrize(('name', 'option'), WITH_A_RANGE)
def test_a_value_out_of_its_range_is_refused_by_option_in_the_library_and_in_a_config(name, option):
  kind = OBJECTIVES[name].options[option]
  tried = [value for value in refused(kind) if not kind.allows(value)]
  assert len(tried) > 3
  for value in tried:
    with pytest.raises(ConfigError, match=f'{name}: {option}'):
      OBJECTIVES[name](**{option: value})
    config = configs.get_config()
    config.objective.name = name
    with config.objective.options.unlocked():
      config.objective.options[option] = value
    with pytest.raises(ConfigError, match=r'^config\.objective\.options.*' + option):
      options.from_config(config.objective, ['a', 'b', 'c'])


def test_only_these_numbers_may_be_any():
  open_ended = {(n, o) for n, o in WITH_A_RANGE if OBJECTIVES[n].options[o].allows(-1e30)}
  assert open_ended == {('famo', 'least_loss'), ('pbi', 'reference'), ('pivrg', 'scores')}


def test_an_objective_with_an_option_without_a_range_cannot_be_built_in():
  def careless(rate: float = 1.0):
    return rate

  with pytest.raises(TypeError, match='careless is not declared'):
    with_ranges(careless)
  with pytest.raises(TypeError, match='careless: rate has no range'):
    with_ranges(declared(careless))


@pytest.mark.parametrize(
  'name', [name for name, make in OBJECTIVES.items() if any(k.bounds for k in make.options.values())]
)
@pytest.mark.parametrize('end', [0, 1])
def test_updates_are_finite_at_the_ends_of_the_options_ranges(name, end):
  kinds = {option: kind for option, kind in OBJECTIVES[name].options.items() if kind.bounds}
  ends = {option: kind.convert(float(np.clip(kind.bounds[end], -1e3, 1e3))) for option, kind in kinds.items()}
  assert np.isfinite(aggregate(ROWS[0], name, losses=jnp.float32([0.1, 1.0, 3.0]), **ends)).all()


@functools.cache
def compiled(name):
  """A method's second update of three tasks, from the gradients of the first, and its state."""
  objective = OBJECTIVES[name](**({'solver_rate': 0.5} if name == 'sdmgrad' else {}))

  @jax.jit
  def update(rows, losses):
    state, key = objective.init(3, rows[0, 0]), jax.random.key(0)
    for _ in range(2):
      if objective.needs == 'losses':
        (_, state), slopes = jax.value_and_grad(objective.update, has_aux=True)(losses, state, key=key)
        found = slopes @ rows[0]
      else:
        found, state = objective.update(rows if objective.parts > 1 else rows[0], state, losses=losses, key=key)
    return found, state

  return update


def projected(values):
  """The nearest point of the simplex, in float64."""
  ordered = np.sort(values - values.max())[::-1]
  shifts = (np.cumsum(ordered) - 1) / np.arange(1, len(values) + 1)
  return np.maximum(values - values.max() - shifts[(ordered > shifts).nonzero()[0][-1]], 0)


def modo(rows, gamma=1e-3, rho=0.1):
  product, w = rows[0] @ rows[1].T, np.full(3, 1 / 3)
  for _ in range(2):
    w = projected(w - gamma * (product @ w + rho * w))
  return w @ rows[2]


def sdmgrad(rows, lam=0.3, rate=0.5, momentum=0.5):
  product, w = rows[0] @ rows[1].T, np.full(3, 1 / 3)
  product = product / (np.sqrt(np.maximum(np.diagonal(product), 0)).mean() ** 2 + 1e-8)
  velocity = np.zeros(3)
  for step in range(40):  # Of two updates.
    velocity = momentum * velocity * (step % 20 > 0) + product @ (w + lam / 3)
    w = projected(w - rate * velocity)
  return (w + lam / 3) / (1 + lam) @ rows[2]


def gradnorm(rows, rate=0.025, epsilon=1e-8):
  lengths = np.linalg.norm(rows[0], axis=1)
  pull = np.sign(lengths - lengths.mean()) * lengths  # In the weights, all 1 at first.
  slope = (np.eye(3) - np.full((3, 3), 1 / 3)) @ pull
  logits = -rate * slope / (np.abs(slope) + epsilon)
  return 3 * np.exp(logits) / np.exp(logits).sum() @ rows[0]


POWERS = {'nash_mtl': 0, 'moco': 0, 'fairgrad': -1 / 3, 'pivrg': -1 / 3}  # All others: 1.
NOT_TO_SCALE = {
  'modo': modo,
  'sdmgrad': sdmgrad,
  'gradnorm': gradnorm,
}  # Their rules have numbers that gradients are compared with.


@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize('scale', [1e20, 1e-20])
def test_gradients_of_any_size_give_the_update_that_the_rule_gives_in_float64(name, scale):
  update, losses = compiled(name), jnp.float32([0.5, 1.0, 2.0])
  rows = np.float32(ROWS * np.float32(scale))
  found, state = update(rows, losses)
  assert np.isfinite(getattr(state, 'weights', 0)).all()
  power = POWERS.get(name, 1)
  if name in NOT_TO_SCALE:
    expected = NOT_TO_SCALE[name](rows.astype(np.float64))
  else:
    expected = np.float64(update(ROWS, losses)[0]) * scale**power
  assert np.linalg.norm(np.float64(found) - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_losses_of_1e38_give_finite_updates(name):
  found, _ = compiled(name)(ROWS, jnp.float32([1e38, 3e37, 1.0]))
  assert np.isfinite(found).all()


@pytest.mark.parametrize('keep', [True, False])
@pytest.mark.parametrize('scales', [(1e20, 1e20), (1e-20, 1e-20), (1.0, 1.0), (1e20, 1.0)])
def test_a_gram_matrix_is_the_products_whatever_the_sizes_and_what_is_absent_is_not_read(scales, keep):
  tree = {'a': ROWS[0, :, :3] * np.float32(scales[0]), 'b': ROWS[0, :, 3:] * np.float32(scales[1])}
  tree = {name: leaf.at[1].set(jnp.nan) for name, leaf in jax.tree.map(jnp.asarray, tree).items()}
  present = jnp.array([True, False, True])
  matrix, unit = jax.jit(functools.partial(gram, keep=keep))(tree, present=present)
  rows = np.concatenate([np.float64(tree['a']), np.float64(tree['b'])], axis=1)[[0, 2]]
  np.testing.assert_allclose(np.float64(matrix)[::2, ::2] * np.float64(unit) ** 2, rows @ rows.T, rtol=1e-5)
  np.testing.assert_array_equal(matrix[1], 0)
  np.testing.assert_allclose(np.float64(norms(tree))[[0, 2]], np.linalg.norm(rows, axis=1), rtol=1e-6)


@pytest.mark.parametrize('name', ['uncertainty', 'imtl_l', 'ldc_mtl', 'famo', 'gradnorm', 'imtl'])
def test_a_task_that_is_learned_exactly_leaves_everything_finite(name):
  """An attribute that all faces share has a loss of 0: the weight that it asks for has no end."""
  objective = OBJECTIVES[name](learning_rate=0.1)
  rows = jnp.float32([[0.0, 0.0], [1.0, 2.0]])

  def update(state, losses):
    if objective.needs == 'losses':
      _, state = objective.update(losses, state)
      state = state if objective.after is None else objective.after(losses / 2, state, present=jnp.ones(2, bool))
      return state, jax.grad(lambda each: objective.update(each, state)[0])(losses)
    found, state = objective.update(rows, state, losses=losses)
    return state, found

  losses = jnp.zeros((1500, 2)).at[:, 1].set(1.0).at[-1].set(5.0)
  state, found = jax.jit(lambda losses: jax.lax.scan(update, objective.init(2, rows[0]), losses))(losses)
  assert np.isfinite(found).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  if name in ('uncertainty', 'imtl_l', 'imtl'):
    learned = state.values if name != 'imtl' else state.inner.values
    np.testing.assert_allclose(np.abs(learned[0]), FARTHEST, atol=2)
    assert abs(learned[1]) < 1
