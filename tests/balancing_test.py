"""What the gradient-balancing methods promise, over random, singular, opposing and ill-scaled Gram matrices."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax import objectives
from mtl_jax.objectives.balancing.gram import GramWeighting


def weighting(name, *args, **options):
  """A method on the Gram matrix, without the gradients."""
  return objectives.OBJECTIVES[name](*args, **options).weighting


class Case(NamedTuple):
  """A method; what one task's gradient of some norm is taken times; the update's power of a scale of all gradients."""

  method: GramWeighting
  factor: Callable[[float], float] = lambda norm: 1.0
  power: float = 1


CASES = {  # Fair resource allocation: s^2 G w = w^(-1/alpha), so the power is (1 - alpha) / (1 + alpha).
  'mgda': Case(weighting('mgda')),
  'mgda l2': Case(weighting('mgda', 'l2'), lambda norm: 1 / norm, 0),
  'mgda loss': Case(weighting('mgda', 'loss'), lambda norm: 1 / 0.5),
  'mgda loss+': Case(weighting('mgda', 'loss+'), lambda norm: 1 / (0.5 * norm), 0),
  'pcgrad': Case(weighting('pcgrad')),
  'gradvac': Case(weighting('gradvac')),
  'cagrad': Case(weighting('cagrad'), lambda norm: 1.4 / 1.16),
  'cagrad c=1': Case(weighting('cagrad', 1.0)),
  'cagrad c=2': Case(weighting('cagrad', 2.0), lambda norm: 3 / 5),
  'imtl_g': Case(weighting('imtl_g')),
  'nash_mtl': Case(weighting('nash_mtl'), lambda norm: 1 / norm, 0),
  'aligned_mtl': Case(weighting('aligned_mtl')),
  'fairgrad': Case(weighting('fairgrad'), lambda norm: norm ** (-4 / 3), -1 / 3),
  'fairgrad 0.5': Case(weighting('fairgrad', 0.5), lambda norm: norm ** (-2 / 3), 1 / 3),
  'fairgrad 5': Case(weighting('fairgrad', 5.0), lambda norm: norm ** (-10 / 6), -2 / 3),
  'upgrad': Case(weighting('upgrad')),
  'pivrg': Case(weighting('pivrg'), lambda norm: norm ** (-4 / 3), -1 / 3),
  'dualproj': Case(weighting('dualproj')),
  'conflict_free': Case(weighting('conflict_free')),
  'cr_mogm': Case(weighting('cr_mogm', 'mgda')),
}
METHODS = {name: case.method for name, case in CASES.items()}
RANDOM_ORDER = ('pcgrad', 'gradvac')
# Every number of tasks is compiled anew: the options' other values are tried at two of them.
VARIANTS = tuple(name for name in METHODS if ' ' in name or name in ('pivrg', 'cr_mogm'))
SIZES = (1, 2, 7, 40)
FEW_SIZES = (1, 2, 7)
KINDS = ('independent', 'dependent', 'zero_rows', 'opposing', 'alike', 'ill_scaled', 'zero', 'duplicates')
BENIGN = ('independent', 'alike')
every = pytest.mark.parametrize('name', METHODS)
quick = settings(deadline=None, max_examples=10, derandomize=True)
draws = {'size': st.sampled_from(SIZES), 'seed': st.integers(0, 2**31)}


def sizes(name):
  return FEW_SIZES if name in VARIANTS else SIZES


def fit(size, name):
  """The largest number of tasks up to `size` that this method is tried at."""
  return max(k for k in sizes(name) if k <= size)


def jacobian(kind, size, seed):
  """Gradients [K, n], exact in float32 so that float64 can judge them."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(size, max(1, size // 2) if kind == 'dependent' else 2 * size + 4))
  if kind == 'zero_rows':
    rows[rng.random(size) < 0.4] = 0
  if kind == 'opposing' and size > 1:
    rows[1] = -rows[0]
  if kind == 'duplicates' and size > 1:
    rows[1] = rows[0]
  if kind == 'alike':
    rows += 1.5 * rng.normal(size=rows.shape[1])
  if kind == 'ill_scaled':
    rows *= 10.0 ** rng.uniform(-6, 6, size=(size, 1))
  return np.zeros_like(rows) if kind == 'zero' else rows.astype(np.float32).astype(np.float64)


@functools.cache
def compiled(name):
  method = METHODS[name]

  @jax.jit
  def call(gram, state, losses, present, key):
    return method.weights(gram, state, losses=losses, present=present, key=key)

  return call


def weigh(name, gram, *, losses=None, present=None, seed=0):
  size = len(gram)
  losses = np.linspace(0.5, 2.0, size) if losses is None else losses
  present = np.ones(size, bool) if present is None else present
  found, _ = compiled(name)(
    jnp.asarray(gram, jnp.float32),
    METHODS[name].init(size),
    jnp.asarray(losses, jnp.float32),
    jnp.asarray(present),
    jax.random.key(seed),
  )
  return np.asarray(found, np.float64)


def off(found, expected, rows):
  """How far apart two updates are, as a share of the lengths that were added up to make the expected one."""
  return np.linalg.norm((found - expected) @ rows) / (np.abs(expected) @ np.linalg.norm(rows, axis=1) + 1e-300)


def conflict(weights, rows):
  """The most that the update works against a task, as a share of its gradient and of the lengths added up."""
  lengths = np.linalg.norm(rows, axis=1)
  gains = rows @ (weights @ rows) / np.where(lengths > 0, lengths, 1)
  return -gains.min() / (np.abs(weights) @ lengths + 1e-300)


@every
@given(kind=st.sampled_from(KINDS), scale=st.sampled_from([1e-15, 1e-6, 1.0, 1e6, 1e15]), **draws)
@quick
def test_weights_are_finite_from_nothing_to_1e15(name, kind, scale, size, seed):
  size = fit(size, name)
  rows = jacobian(kind, size, seed)
  rows = rows * scale / max(np.abs(rows).max(), 1e-30)
  assert np.isfinite(weigh(name, rows @ rows.T, losses=np.full(size, scale))).all()


@every
@given(size=st.sampled_from(SIZES[1:]), seed=st.integers(0, 2**31), kind=st.sampled_from(BENIGN))
@quick
def test_an_absent_task_changes_nobody_elses_weight(name, size, seed, kind):
  size = fit(size, name)
  rng = np.random.default_rng(seed)
  # Random orders are other ones for another number of tasks, and immaterial among two.
  fewer = [k for k in sizes(name) if k < size and (k <= 2 or name not in RANDOM_ORDER)]
  present = np.arange(size) < rng.choice(fewer)
  rng.shuffle(present)
  rows, losses = jacobian(kind, size, seed), rng.uniform(0.1, 3, size)
  gram = rows @ rows.T
  gram[~present], gram[:, ~present] = np.nan, np.nan
  found = weigh(name, gram, losses=np.where(present, losses, np.nan), present=present)
  np.testing.assert_array_equal(found[~present], 0)
  left = rows[present]
  assert off(found[present], weigh(name, left @ left.T, losses=losses[present]), left) < 2e-5


@pytest.mark.parametrize('name', [name for name in METHODS if name not in RANDOM_ORDER])
@given(kind=st.sampled_from(('independent', 'alike', 'zero_rows', 'duplicates')), **draws)
@quick
def test_permuting_tasks_permutes_weights(name, kind, size, seed):
  size = fit(size, name)
  rows = jacobian(kind, size, seed)
  order = np.random.default_rng(seed).permutation(size)
  losses = np.linspace(0.5, 2.0, size)
  found = weigh(name, rows @ rows.T, losses=losses)
  permuted = weigh(name, (rows @ rows.T)[order][:, order], losses=losses[order])
  assert off(permuted, found[order], rows[order]) < 2e-5


@pytest.mark.parametrize('name', RANDOM_ORDER)
def test_permuting_tasks_permutes_weights_in_distribution(name):
  rows = np.array([[1.0, 0.2], [-0.8, 0.9], [-0.3, -1.0]])
  order, keys = np.array([2, 0, 1]), jax.random.split(jax.random.key(3), 4000)
  method = METHODS[name]

  def mean(gram):
    def one(key):
      return method.weights(gram, method.init(3), losses=jnp.ones(3), present=jnp.ones(3, bool), key=key)[0]

    found = np.asarray(jax.jit(jax.vmap(one))(keys))
    return found.mean(axis=0), found.std(axis=0) / np.sqrt(len(found))

  gram = jnp.asarray(rows @ rows.T, jnp.float32)
  (expected, error), (found, _) = mean(gram), mean(gram[order][:, order])
  assert error.max() > 0  # The order matters here.
  assert (np.abs(found - expected[order]) < 5 * error[order] + 1e-6).all()


@every
@given(size=st.sampled_from(SIZES), seed=st.integers(0, 2**31), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@quick
def test_equal_tasks_give_the_means_direction(name, size, seed, scale):
  size = fit(size, name)
  gradient = np.random.default_rng(seed).normal(size=5) * scale
  found = weigh(name, np.full((size, size), gradient @ gradient), losses=np.ones(size))
  assert found.sum() > 0
  if name in ('mgda', 'imtl_g', 'upgrad', 'dualproj', 'cr_mogm'):  # Means.
    assert found.sum() == pytest.approx(1, rel=1e-3)
  if name in ('pcgrad', 'gradvac', 'aligned_mtl', 'conflict_free'):  # Sums.
    np.testing.assert_allclose(found, 1, rtol=1e-3)


@every
@pytest.mark.parametrize('norm', [1e-6, 1.0, 3e5])
def test_one_task_alone_gets_its_own_gradient_times_the_rules_factor(name, norm):
  assert weigh(name, np.array([[norm**2]]))[0] == pytest.approx(CASES[name].factor(norm), rel=1e-5)


@pytest.mark.parametrize('name', ['mgda', 'mgda l2', 'mgda loss', 'mgda loss+', 'cagrad c=1', 'cagrad c=2'])
@given(kind=st.sampled_from(KINDS), **draws)
@settings(quick, max_examples=25)
def test_no_task_is_worked_against(name, kind, size, seed):
  size = fit(size, name)
  rows = jacobian(kind, size, seed)
  # Where the best update is 0, or nearly, float32's 1e-7 in its square leaves 1e-3 of its length.
  assert conflict(weigh(name, rows @ rows.T), rows) < (1e-5 if kind in BENIGN else 3e-3)


@pytest.mark.parametrize('name', ['upgrad', 'dualproj'])
@given(kind=st.sampled_from(KINDS), **draws)
@settings(quick, max_examples=25)
def test_projections_work_against_a_task_by_no_more_than_their_regularization(name, kind, size, seed):
  rows = jacobian(kind, size, seed)
  weights = weigh(name, rows @ rows.T)
  lengths = np.linalg.norm(rows, axis=1)
  gains = rows @ (weights @ rows)
  assert (gains >= -1e-4 * (lengths @ lengths) * weights - 2e-6 * lengths * (weights @ lengths)).all()


@given(kind=st.sampled_from(('independent', 'alike', 'ill_scaled', 'duplicates')), **draws)
@settings(quick, max_examples=25)
def test_every_task_gains_from_nash_mtl_in_inverse_proportion_to_its_weight(kind, size, seed):
  rows = jacobian(kind, size, seed)
  weights = weigh('nash_mtl', rows @ rows.T)
  np.testing.assert_allclose((rows @ (weights @ rows)) * weights, 1, atol=1e-4)


@pytest.mark.parametrize(
  'name', ['nash_mtl', 'fairgrad', 'pivrg', 'mgda', 'cagrad c=1', 'cagrad c=2', 'upgrad', 'dualproj', 'conflict_free']
)
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_opposing_gradients_give_an_update_near_zero(name, scale):
  rows = scale * np.array([[1.0, -2.0], [-1.0, 2.0]])
  weights = weigh(name, rows @ rows.T)
  assert np.isfinite(weights).all()
  assert np.linalg.norm(weights @ rows) <= 1e-3 * (weights @ np.linalg.norm(rows, axis=1))


def test_imtl_g_gives_up_on_opposing_gradients():
  np.testing.assert_array_equal(weigh('imtl_g', np.array([[4.0, -4.0], [-4.0, 4.0]])), 0)


@every
@given(size=st.sampled_from(SIZES), seed=st.integers(0, 2**31), scale=st.sampled_from([1e-5, 0.37, 2.0, 1e5]))
@quick
def test_scaling_the_gradients_scales_the_update_as_the_rule_says(name, size, seed, scale):
  size = fit(size, name)
  rows = jacobian('independent', size, seed)
  before = weigh(name, rows @ rows.T)
  after = weigh(name, scale**2 * (rows @ rows.T)) * scale / scale ** CASES[name].power
  assert off(after, before, rows) < 2e-5


@pytest.mark.parametrize(
  ('name', 'alpha'), [('nash_mtl', 1), ('fairgrad', 2), ('fairgrad 0.5', 0.5), ('fairgrad 5', 5)]
)
@given(kind=st.sampled_from(('independent', 'alike', 'duplicates')), **draws)
@quick
def test_fairgrad_solves_its_equation(name, alpha, kind, size, seed):
  rows = jacobian(kind, fit(size, name), seed)
  weights = weigh(name, rows @ rows.T)
  np.testing.assert_allclose((rows @ (weights @ rows)) * weights ** (1 / alpha), 1, atol=1e-4)


@given(kind=st.sampled_from(('independent', 'alike', 'ill_scaled', 'duplicates')), **draws)
@quick
def test_imtl_g_projects_equally_on_all_gradients(kind, size, seed):
  rows = jacobian(kind, size, seed)
  units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  weights = weigh('imtl_g', rows @ rows.T)
  projections = units @ (weights @ rows)
  spread = np.abs(weights) @ np.linalg.norm(rows, axis=1)
  if kind != 'duplicates':  # Dependent gradients of unlike lengths are left to the pseudo-inverse in float32.
    assert np.ptp(projections) < 2e-5 * spread
  assert weights.sum() == pytest.approx(1, abs=1e-4 * np.abs(weights).sum())


@given(kind=st.sampled_from(KINDS), **draws)
@quick
def test_pcgrad_without_conflict_is_the_sum(kind, size, seed):
  gram = np.abs(jacobian(kind, size, seed) @ jacobian(kind, size, seed).T)
  np.testing.assert_allclose(weigh('pcgrad', gram), 1, rtol=1e-6)


def test_pcgrad_of_two_takes_off_the_part_against_the_other():
  rows = np.array([[1.0, 0.0], [-1.0, 1.0]])
  expected = (rows[0] + 0.5 * rows[1]) + (rows[1] + 1.0 * rows[0])
  np.testing.assert_allclose(weigh('pcgrad', rows @ rows.T) @ rows, expected, rtol=1e-6)


def test_gradvac_turns_a_gradient_to_its_target():
  rows = np.array([[1.0, 0.0], [0.0, 2.0]])
  target = jnp.array([[0.0, 0.6], [-1.0, 0.0]])
  weights, state = compiled('gradvac')(
    jnp.asarray(rows @ rows.T, jnp.float32), target, jnp.ones(2), jnp.ones(2, bool), jax.random.key(0)
  )
  turned = np.asarray(weights) @ rows - rows[1]
  assert turned @ rows[1] / np.linalg.norm(turned) / 2 == pytest.approx(0.6, abs=1e-6)
  np.testing.assert_allclose(state, [[0, 0.3], [-0.5, 0]], atol=1e-7)


def test_gradvac_keeps_the_targets_of_absent_tasks():
  rows = jacobian('independent', 3, 0)
  target = jnp.full((3, 3), 0.25)
  present = jnp.array([True, False, True])
  _, state = compiled('gradvac')(
    jnp.asarray(rows @ rows.T, jnp.float32), target, jnp.ones(3), present, jax.random.key(0)
  )
  moved = np.asarray(state) != 0.25
  np.testing.assert_array_equal(moved, [[False, False, True], [False] * 3, [True, False, False]])


def test_nash_mtl_solves_every_few_steps_and_when_a_task_joins():
  method = weighting('nash_mtl', every_steps=3)
  call = jax.jit(functools.partial(method.weights, losses=jnp.ones(3), key=jax.random.key(0)))
  grams = [jnp.asarray(rows @ rows.T, jnp.float32) for rows in (jacobian('independent', 3, seed) for seed in range(5))]
  present = [jnp.array([True, True, False])] * 2 + [jnp.ones(3, bool)] * 3
  state, kept, fresh = method.init(3), [], []
  for gram, there in zip(grams, present, strict=True):
    found, state = call(gram, state, present=there)
    kept.append(np.asarray(found))
    fresh.append(weigh('nash_mtl', gram, present=there))
  np.testing.assert_allclose(kept[0], fresh[0], rtol=1e-6)
  np.testing.assert_array_equal(kept[1], kept[0])
  np.testing.assert_allclose(kept[2], fresh[2], rtol=1e-6)  # The third task joins.
  np.testing.assert_array_equal(kept[3], kept[2])


@given(kind=st.sampled_from(('independent', 'alike', 'ill_scaled')), **draws)
@quick
def test_conflict_free_has_one_cosine_with_all_gradients_and_their_projections_length(kind, size, seed):
  rows = jacobian(kind, size, seed)
  found = weigh('conflict_free', rows @ rows.T) @ rows
  gains = rows @ found / np.linalg.norm(rows, axis=1)
  np.testing.assert_allclose(gains, gains.mean(), rtol=2e-4)
  np.testing.assert_allclose(np.linalg.norm(found), (rows @ found).sum() / np.linalg.norm(found), rtol=1e-4)


@given(size=st.sampled_from(SIZES[1:]), seed=st.integers(0, 2**31))
@settings(quick, max_examples=4)
def test_pivrg_solves_its_equation_and_asks_more_for_tasks_behind(size, seed):
  rows = jacobian('independent', size, seed)
  scores = np.random.default_rng(seed).normal(size=size) * 30
  method = weighting('pivrg', bound=2.0, scores=tuple(scores))
  state, known = method.init(size), {'losses': jnp.ones(size), 'present': jnp.ones(size, bool), 'key': None}
  weights = np.asarray(jax.jit(lambda g: method.weights(g, state, **known)[0])(jnp.float32(rows @ rows.T)), np.float64)
  temperature = max(np.ptp(scores) / np.log(2), 10)
  priorities = np.exp(scores / temperature)
  priorities = priorities / priorities.mean()
  assert priorities.max() / priorities.min() <= 2.0001
  np.testing.assert_allclose((rows @ (weights @ rows)) * np.sqrt(weights / priorities), 1, atol=1e-4)


def test_cr_mogm_averages_the_methods_weights():
  method = weighting('cr_mogm', 'mgda', alpha=0.75)
  state, expected = method.init(3), None
  for seed in range(4):
    rows = jacobian('independent', 3, seed)
    present = jnp.array([True, True, seed != 2])
    found, state = method.weights(
      jnp.float32(rows @ rows.T), state, losses=jnp.ones(3), present=present, key=jax.random.key(0)
    )
    new = weigh('mgda', rows @ rows.T, present=np.asarray(present))
    expected = new if expected is None else np.where(present, 0.75 * expected + 0.25 * new, expected)
    np.testing.assert_allclose(found, np.where(present, expected, 0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('name', ['upgrad', 'dualproj', 'aligned_mtl', 'conflict_free'])
def test_a_preference_of_equal_numbers_changes_nothing_and_another_leans_to_its_task(name):
  rows = jacobian('independent', 3, 0)
  gram, known = jnp.float32(rows @ rows.T), {'losses': jnp.ones(3), 'present': jnp.ones(3, bool), 'key': None}
  weights = {}
  for preference in (None, (2.0, 2.0, 2.0), (8.0, 1.0, 1.0)):
    weights[preference] = weighting(name, preference=preference).weights(gram, (), **known)[0] @ rows
  np.testing.assert_allclose(weights[2.0, 2.0, 2.0], weights[None], rtol=1e-5)
  cosines = {p: rows[0] @ d / np.linalg.norm(d) for p, d in weights.items()}
  assert cosines[8.0, 1.0, 1.0] > cosines[None] + 0.1


@pytest.mark.parametrize('name', ['mgda', 'gradvac', 'nash_mtl', 'upgrad'])
def test_weights_map_over_a_batch_of_gram_matrices(name):
  grams = jnp.asarray([rows @ rows.T for rows in (jacobian('independent', 3, seed) for seed in range(3))], jnp.float32)
  state, losses, key = METHODS[name].init(3), jnp.linspace(0.5, 2, 3), jax.random.key(0)
  call = compiled(name)
  mapped = jax.vmap(lambda gram: call(gram, state, losses, jnp.ones(3, bool), key)[0])(grams)
  single = [call(gram, state, losses, jnp.ones(3, bool), key)[0] for gram in grams]
  np.testing.assert_allclose(mapped, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['excess_mtl', 'moco', 'sdmgrad'])
def test_a_task_that_is_there_in_every_second_batch_keeps_its_weight(name):
  objective = objectives.OBJECTIVES[name]()
  gradients = {'w': jnp.array(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)}
  state = objective.init(2, {'w': jnp.zeros(5)})
  update = jax.jit(functools.partial(objective.update, losses=jnp.ones(2), key=jax.random.key(0)))
  if objective.parts > 1:
    gradients = {'w': jnp.stack([gradients['w']] * objective.parts)}
  for step in range(100):
    _, state = update(gradients, state, present=jnp.array([True, step % 2 == 1]))
    weights = getattr(state, 'simplex', state.weights)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-4)
  always = objective.init(2, {'w': jnp.zeros(5)})
  for _ in range(100):
    _, always = update(gradients, always, present=jnp.ones(2, bool))
  assert weights[1] >= 0.5 * getattr(always, 'simplex', always.weights)[1]
