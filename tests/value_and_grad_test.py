"""`objectives.value_and_grad` in a loop of anybody's own, what it refuses, and that objectives need little."""

import os
import subprocess
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import config as configs
from mtl_jax import objectives
from mtl_jax.configs import default
from mtl_jax.errors import ConfigError
from mtl_jax.objectives import OBJECTIVES, aggregate, options, value_and_grad
from mtl_jax.objectives.weighting.learned import Adam

NAMES = ('a', 'b', 'c')
KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
SHARED = {'w': RANDOM.normal(size=(5, 4)).astype(np.float32)}
HEADS = {name: RANDOM.normal(size=4).astype(np.float32) for name in NAMES}
BATCH = {'x': RANDOM.normal(size=(12, 5)).astype(np.float32), 'y': RANDOM.normal(size=(12, 3)).astype(np.float32)}


def represent(shared, batch):
  return jnp.tanh(batch['x'] @ shared['w'])


def errors(z, heads, batch):
  return jnp.square(jnp.stack([z @ heads[name] for name in NAMES], axis=1) - batch['y'])


def losses_of(z, heads, batch, parts=1):
  each = errors(z, heads, batch).reshape(parts, -1, 3).mean(1)
  return {name: each[:, k] if parts > 1 else each[0, k] for k, name in enumerate(NAMES)}


def direct(shared, heads, batch, parts=1):
  return losses_of(represent(shared, batch), heads, batch, parts)


def find(objective, *, losses_of=losses_of, represent=represent, present=None, **options):
  losses_of = partial(losses_of, parts=getattr(objective, 'parts', 1))
  step = value_and_grad(losses_of, objective, represent=represent, **options)
  return jax.jit(lambda: step(SHARED, HEADS, step.init(SHARED, 3), BATCH, present=present, key=KEY))()


def test_losses_may_have_names_or_lie_in_an_array_or_a_list():
  by_name = find(objectives.cagrad())
  for form in (list, tuple, jnp.stack):
    found = find(objectives.cagrad(), losses_of=lambda *a, parts, form=form: form(list(losses_of(*a).values())))
    jax.tree.map(np.testing.assert_array_equal, found.gradients, by_name.gradients)


@cache
def by_default(name):
  """A method's step with its options' own values."""
  return find(OBJECTIVES[name]())


@cache
def jacobian():
  each = jax.jit(jax.jacrev(lambda shared: jnp.stack(list(direct(shared, HEADS, BATCH).values()))))(SHARED)
  return np.asarray(each['w']).reshape(3, -1)


def assert_close(found, expected, rtol=1e-4, atol=1e-6):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_every_method_gives_what_its_rule_makes_of_the_gradients_of_the_shared_parameters(name):
  objective, found = OBJECTIVES[name](), by_default(name)
  assert list(found.losses) == list(NAMES)
  losses = jnp.stack(list(found.losses.values()))
  np.testing.assert_allclose(losses, list(direct(SHARED, HEADS, BATCH).values()), rtol=1e-5)
  if objective.needs == 'parameters' and objective.parts == 1:
    expected = aggregate(jacobian(), name, losses=losses, key=KEY)
    np.testing.assert_allclose(found.gradients[0]['w'].ravel(), expected, rtol=1e-3, atol=1e-5)
  if objective.needs == 'losses':
    slopes = jax.grad(lambda each: objective.update(each, objective.init(3), key=KEY)[0])(losses)
    np.testing.assert_allclose(found.gradients[0]['w'].ravel(), slopes @ jacobian(), rtol=1e-4, atol=1e-6)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.gradients))


@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float64'])
def test_gradients_and_states_keep_their_types_in_any_precision(name, dtype):
  objective = OBJECTIVES[name]()
  step = value_and_grad(partial(losses_of, parts=objective.parts), objective, represent=represent)

  def one_step(params, batch):
    state = step.init(params[0], 3)
    found = step(*params, state, batch, key=KEY)
    return found.gradients, state, step.after(*params, found.state, batch)

  with jax.enable_x64(dtype == 'float64'):
    params, batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), ((SHARED, HEADS), BATCH))
    gradients, state, next_state = jax.eval_shape(one_step, params, batch)
  assert jax.tree.map(lambda leaf: leaf.dtype, gradients) == jax.tree.map(lambda leaf: leaf.dtype, params)
  assert jax.tree.map(lambda leaf: leaf.dtype, next_state) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize('name', ['nash_mtl', 'sdmgrad', 'moco', 'famo'])
def test_a_representation_and_chunks_do_not_change_the_update(name):
  expected = by_default(name)
  for found in (
    find(OBJECTIVES[name](), chunk=2),
    find(OBJECTIVES[name](), losses_of=direct, represent=None),
    find(OBJECTIVES[name](), losses_of=direct, represent=None, chunk=2),
  ):
    assert_close(found.gradients, expected.gradients)
    assert_close(found.state, expected.state)


@pytest.mark.parametrize('name', ['nash_mtl', 'mgda_ub', 'fixed', 'sdmgrad'])
def test_losses_with_heads_of_their_own_take_one_pass_through_the_heads(name):
  def by_group(copies, heads, batch, parts=1):
    each = {name: errors(copies[name], heads, batch)[:, k] for k, name in enumerate(NAMES)}
    return {name: e.reshape(parts, -1).mean(1) if parts > 1 else e.mean() for name, e in each.items()}

  expected = by_default(name)
  found = find(OBJECTIVES[name](), losses_of=by_group, groups=NAMES)
  assert_close(found.gradients, expected.gradients)


def test_heads_get_the_plain_gradient_or_the_weighted_one():
  losses = lambda heads: jnp.stack(list(losses_of(represent(SHARED, BATCH), heads, BATCH).values()))  # noqa: E731
  plain = jax.grad(lambda heads: losses(heads).sum())(HEADS)
  found = by_default('nash_mtl')
  assert_close(found.gradients[1], plain)
  weighted = find(objectives.nash_mtl(), heads='weighted')
  assert_close(weighted.gradients[0], found.gradients[0])
  assert np.ptp(found.state.weights) > 0.1
  for k, name in enumerate(NAMES):
    np.testing.assert_allclose(weighted.gradients[1][name], found.state.weights[k] * plain[name], rtol=1e-4, atol=1e-6)


def test_db_mtls_heads_get_the_weighted_gradient_of_the_logarithms():
  found = find(objectives.db_mtl(beta=0.0), heads='weighted')
  losses, lengths = np.array(list(found.losses.values())), np.linalg.norm(jacobian(), axis=1)
  factors = (lengths / losses).max() / lengths  # 1 / L_k times the longest gradient of a logarithm over its own.
  np.testing.assert_allclose(found.gradients[0]['w'].ravel(), factors @ jacobian(), rtol=1e-4)
  plain = by_default('fixed').gradients[1]
  for k, name in enumerate(NAMES):
    np.testing.assert_allclose(found.gradients[1][name], factors[k] * plain[name], rtol=1e-4)


def test_imtls_heads_descend_the_scaled_losses():
  objective = objectives.imtl(learning_rate=0.5)
  step = value_and_grad(losses_of, objective, represent=represent)
  state = step(SHARED, HEADS, step.init(SHARED, 3), BATCH).state
  found = step(SHARED, HEADS, state, BATCH)
  plain = by_default('fixed').gradients[1]
  for k, name in enumerate(NAMES):
    np.testing.assert_allclose(found.gradients[1][name], np.exp(state.inner.values[k]) * plain[name], rtol=1e-4)


@pytest.mark.parametrize('name', ['nash_mtl', 'mgda_ub', 'fixed', 'sdmgrad'])
def test_what_is_extra_is_added_and_not_balanced(name):
  objective = OBJECTIVES[name]()

  def with_size(z, heads, batch):
    return losses_of(z, heads, batch, objective.parts), jnp.square(z).sum() + jnp.square(heads['b']).sum()

  def penalty(shared, heads):
    return 0.1 * with_size(represent(shared, BATCH), heads, BATCH)[1]

  step = value_and_grad(
    with_size,
    objective,
    represent=lambda shared, batch: (represent(shared, batch), len(batch)),
    has_aux=True,
    extra=lambda aux: 0.1 * aux,
  )
  found = jax.jit(lambda: step(SHARED, HEADS, step.init(SHARED, 3), BATCH, key=KEY))()
  expected = by_default(name)
  more = jax.grad(penalty, argnums=(0, 1))(SHARED, HEADS)
  assert_close(found.gradients, jax.tree.map(jnp.add, expected.gradients, more))
  np.testing.assert_allclose(found.value, expected.value + penalty(SHARED, HEADS), rtol=1e-5)
  assert found.moved == len(BATCH)


@cache
def aggregated_alone():
  return aggregate(jacobian()[[0, 2]], 'upgrad')


@pytest.mark.parametrize('present', [{'a': True, 'b': False, 'c': True}, [True, False, True], np.array([1, 0, 1])])
def test_an_absent_loss_takes_no_part_whether_told_by_name_or_by_place(present):
  found = find(objectives.upgrad(), present=present)
  alone = aggregated_alone()
  np.testing.assert_allclose(found.gradients[0]['w'].ravel(), alone, rtol=1e-3, atol=1e-5)
  np.testing.assert_array_equal(found.gradients[1]['b'], 0)
  if not isinstance(present, dict):
    np.testing.assert_allclose(aggregate(jacobian(), 'upgrad', present=present), alone, rtol=1e-4, atol=1e-6)


def test_the_second_look_sees_what_the_step_did():
  step = value_and_grad(losses_of, objectives.famo(), represent=represent)
  found = step(SHARED, HEADS, step.init(SHARED, 3), BATCH)
  same = step.after(SHARED, HEADS, found.state, BATCH)
  np.testing.assert_allclose(same.logits.values, 0, atol=1e-6)  # No loss fell.
  moved = jax.tree.map(lambda p, g: p - 0.1 * g, (SHARED, HEADS), found.gradients)
  assert np.abs(step.after(*moved, found.state, BATCH).logits.values).max() > 0.01
  plain = value_and_grad(losses_of, objectives.fixed(), represent=represent)
  assert plain.after(*moved, (), BATCH) == ()


@pytest.mark.parametrize('name', ['excess_mtl', 'db_mtl', 'moco'])
def test_a_state_made_without_the_parameters_takes_their_shape_at_the_first_update(name):
  objective = OBJECTIVES[name]()
  late, early = objective.init(3), objective.init(3, SHARED)
  for _ in range(3):
    rows = {'w': RANDOM.normal(size=(3, 5, 4)).astype(np.float32)}
    found, late = objective.update(rows, late, losses=jnp.ones(3))
    expected, early = objective.update(rows, early, losses=jnp.ones(3))
    assert_close((found, late), (expected, early), rtol=0, atol=0)


def test_a_loss_that_a_part_of_the_batch_lacks_is_averaged_over_the_others():
  present = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0]], bool)
  found = find(objectives.sdmgrad(), present=present)
  each = errors(represent(SHARED, BATCH), HEADS, BATCH).reshape(3, -1, 3).mean(1)
  expected = [each[::2, 0].mean(), each[:, 1].mean(), 0]
  np.testing.assert_allclose([found.losses[name] for name in NAMES], expected, rtol=1e-5)


def update(name, gradients, state, *misplaced, **arguments):
  objective = OBJECTIVES[name]()
  return objective.update(gradients, objective.init(*state), *misplaced, **arguments)


def ragged(z, heads, batch, parts):
  each = errors(z, heads, batch)
  return {'a': each[:, 0].mean(), 'b': each[:, 1]}


def of_copy(copies, heads, batch, parts):
  return losses_of(copies['a'], heads, batch, parts)


def own(rule):
  """An objective at the parameters, with a state of a number for each loss."""
  return objectives.Objective(
    lambda num, like=None: jnp.zeros(num), lambda gradients, state, **_: rule(gradients, state), needs='parameters'
  )


def summed(gradients):
  return jax.tree.map(lambda leaf: leaf.sum(0), gradients)


ROWS, THREE = jnp.ones((3, 5)), jnp.ones(3)


@pytest.mark.parametrize(
  ('call', 'error', 'told'),
  [
    (lambda: update('cagrad', ROWS, [3], THREE), TypeError, 'are given by name'),
    (lambda: update('cagrad', ROWS, [3]), TypeError, 'needs the losses [K] too'),
    (lambda: update('cagrad', ROWS, [2], losses=THREE), ValueError, 'make it by init(3, parameters)'),
    (lambda: update('moco', ROWS, [3, jnp.ones(4)], losses=THREE), ValueError, 'the state is not one of 3 losses'),
    (lambda: update('cagrad', ROWS[:2], [3], losses=THREE), ValueError, 'must have first axes [3], not shape [2, 5]'),
    (lambda: update('sdmgrad', ROWS, [3], losses=THREE), ValueError, 'may be K gradients of the whole batch'),
    (lambda: update('famo', THREE, [2]), ValueError, 'the state is not one of 3 losses'),
    (lambda: update('famo', jnp.ones(()), [1]), ValueError, 'losses must be one array [K], not []'),
    (lambda: update('fixed', [1.0], [1]), ValueError, 'losses must be one array [K], not list'),
    (lambda: update('fixed', THREE, [3], present=jnp.ones(2, bool)), ValueError, 'present has shape [2] for 3 losses'),
    (lambda: objectives.fixed([1.0, 2.0]).update(THREE, ()), ValueError, 'weights has 2 numbers for 3 losses'),
    (lambda: find(objectives.famo(least_loss=[0.0])), ValueError, 'least_loss has 1 numbers for 3 losses'),
    (lambda: find(objectives.sdmgrad(), losses_of=lambda *a, parts: losses_of(*a)), ValueError, 'must be a [3], but'),
    (lambda: find(objectives.fixed(), losses_of=lambda *a, parts: errors(*a)), ValueError, 'together they are [12, 3]'),
    (lambda: find(objectives.mgda_ub(), represent=None, losses_of=direct), ValueError, 'give represent=...'),
    (lambda: find(objectives.fixed(), heads='heavy'), ValueError, 'choose from plain, weighted'),
    (lambda: find(objectives.graddrop(), heads='weighted'), ValueError, 'this one has none'),
    (lambda: find(objectives.fixed(), present={'a': True, 'z': True}), ValueError, "['a', 'z'], but the losses are"),
    (lambda: find('cagrad'), TypeError, "such as objectives.cagrad(), not 'cagrad'"),
    (lambda: find(objectives.fixed(), losses_of=ragged), ValueError, "of one shape, not {'a': [], 'b': [12]}"),
    (lambda: find(objectives.fixed(), losses_of=of_copy, groups='ab'), ValueError, 'groups has 2 names for 3 losses'),
    (lambda: find(objectives.fixed(), losses_of=of_copy, groups='aba'), ValueError, 'must lie side by side'),
    (lambda: aggregate(jnp.ones(3), 'mgda'), ValueError, 'must be [K, n], not [3]'),
    (lambda: aggregate(ROWS, 'upgrade'), ConfigError, "method: no choice 'upgrade'; did you mean 'upgrad'?"),
    (lambda: objectives.cagrad(cc=1), ConfigError, "options of 'cagrad': no choice 'cc'; did you mean 'c'?"),
    (lambda: objectives.gls(c=1), ConfigError, "options.c: 'gls' has no options"),
    (lambda: objectives.fixed(weights={'a': 1.0}), ConfigError, 'one number for each loss, in their order, each a'),
    (lambda: objectives.uncertainty().init(['a', 'b']), TypeError, 'the number of losses'),
    (lambda: find(objectives.fixed(), losses_of=lambda *a, parts: None), ValueError, 'not None'),
    (lambda: find(objectives.fixed(), losses_of=lambda *a, parts: errors(*a).sum()), ValueError, 'not one number'),
    (lambda: objectives.of_losses(lambda losses: losses.sum()), TypeError, 'rule(losses, present)'),
    (lambda: find(objectives.of_losses(lambda losses, present: losses)), ValueError, 'scalar, the total: shape []'),
    (lambda: find(objectives.of_losses(lambda losses, present: None)), ValueError, 'scalar, the total: shape []'),
    (lambda: find(own(lambda gradients, state: (gradients, state))), ValueError, 'without the first axis K'),
    (lambda: find(own(lambda gradients, state: gradients)), TypeError, 'a pair, (update, next state)'),
    (lambda: find(own(lambda gradients, state: (summed(gradients), ()))), ValueError, 'a next state that is not one'),
    (lambda: aggregate(ROWS, 'graddrop', leak=(0.1, 0.2)), ValueError, 'leak has 2 numbers for 3 losses'),
    (lambda: update('rlw', THREE, [3]), TypeError, 'give key=jax.random.key(...)'),
    (lambda: update('pcgrad', ROWS, [3], losses=THREE), TypeError, 'give key=jax.random.key(...)'),
    (lambda: update('graddrop', ROWS, [3], losses=THREE), TypeError, 'give key=jax.random.key(...)'),
    (lambda: update('sdmgrad', jnp.ones((2, 3, 5)), [3], losses=THREE), ValueError, 'must have first axes [3, 3]'),
    (lambda: update('cagrad', ROWS[:0], [0], losses=THREE[:0]), ValueError, 'an objective is of 1 loss or more'),
    (lambda: objectives.cr_mogm('upgrade'), ConfigError, "cr_mogm: method: no choice 'upgrade'"),
  ],
)
def test_mistakes_are_named(call, error, told):
  with pytest.raises(error) as caught:
    call()
  assert told in str(caught.value)


def test_numbers_for_each_loss_come_from_the_config():
  config = default.get_config()
  configs.apply_override(config, 'objective.name=famo')
  configs.apply_override(config, 'objective.options.least_loss=0.1,0.2')
  objective = options.from_config(config.objective, ['a', 'b'])
  _, state = objective.update(jnp.array([1.1, 1.2]), objective.init(2))
  np.testing.assert_allclose(state.log_losses, 0, atol=1e-6)
  with pytest.raises(ConfigError, match='least_loss has 2 numbers for 3 losses: a, b, c'):
    options.from_config(config.objective, ['a', 'b', 'c'])
  configs.apply_override(config, 'objective.options.least_loss=low')
  with pytest.raises(ConfigError, match=r'config\.objective\.options\.least_loss must be '):
    options.from_config(config.objective, ['a', 'b'])


def test_adam_is_optaxs():
  values = theirs = jnp.asarray(RANDOM.normal(size=7), jnp.float32)
  tx, adam = optax.chain(optax.add_decayed_weights(0.01), optax.adam(0.025)), Adam(0.025, decay=0.01)
  state, ours = tx.init(values), adam.begin(7)._replace(values=values)
  assert jax.tree.map(jnp.shape, jax.tree.leaves(state)) == jax.tree.map(jnp.shape, jax.tree.leaves(ours.optimizer))
  for t in range(5):
    gradient = jnp.asarray(np.random.default_rng(t).normal(size=7), jnp.float32)
    ours = jax.jit(adam.step)(ours, gradient, present=jnp.ones(7, bool))
    updates, state = jax.jit(tx.update)(gradient, state, theirs)
    theirs = jax.jit(optax.apply_updates)(theirs, updates)
  np.testing.assert_allclose(ours.values, theirs, rtol=2e-7)


def test_objectives_need_jax_and_numpy_alone():
  """All methods make an update with all that is installed out of reach, but for what JAX itself requires."""
  script = """
import importlib.metadata
import re
import sys

def known(name):
  return re.match('[A-Za-z0-9_.-]+', name)[0].lower().replace('_', '-')

needed = {known(each) for each in ('jax', 'mtl-jax', *importlib.metadata.requires('jax')) if 'extra' not in each}
blocked = {module for module, owners in importlib.metadata.packages_distributions().items()
           if module not in sys.stdlib_module_names and not needed & set(map(known, owners))}
assert {'optax', 'flax', 'jaxtyping', 'ml_collections', 'tensorflow_datasets'} <= blocked

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in blocked:
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import jax
import jax.numpy as jnp
from mtl_jax import objectives
for name in objectives.OBJECTIVES:
  assert jax.eval_shape(lambda gradients: objectives.aggregate(gradients, name), jnp.eye(2)).shape == (2,)
step = objectives.value_and_grad(lambda shared, heads: {'a': shared**2, 'b': -shared * heads}, objectives.cagrad())
print(step(jnp.float32(1), jnp.float32(2), step.init(jnp.float32(1), 2)).gradients)
"""
  environment = os.environ | {'XLA_FLAGS': ''}
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, env=environment)
  assert done.returncode == 0, done.stderr
