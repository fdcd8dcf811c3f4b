"""Coupled tasks in the training step: completed labels, losses beside those of the tasks, devices, objectives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mtl_jax import objectives
from mtl_jax.data.input.augment import Augmentation, network_input
from mtl_jax.objectives import loss_terms
from mtl_jax.objectives.matching import Coupling, Related, Settings
from mtl_jax.objectives.matching.variables import Categorical, YesNo
from mtl_jax.platform import sharding
from mtl_jax.run.state import init_state
from mtl_jax.tasks import BinaryTask, CategoricalTask
from mtl_jax.training import gradients
from mtl_jax.training.step import train_step

TASKS = (CategoricalTask('mood', ('mood',), classes=('calm', 'glad')), BinaryTask('units', ('a', 'b')))
NO_AUGMENTATION = Augmentation(flip=False, shift=0.0, zoom=0.0, brightness=0.0, contrast=0.0)
TABLE = (np.array([[1.0, 0.0], [0.1, 0.9]], np.float32), np.array([[0.5, 0.5], [0.2, 0.8]], np.float32))
RELATED = Related(
  source=Categorical('mood', TASKS[0].classes, 'mood'),
  targets=tuple(YesNo(name, ('no', 'yes'), 'units', column) for column, name in enumerate('ab')),
  tables=TABLE,
  prior=np.array([0.5, 0.5], np.float32),
  relevance=(0.6, 0.1),
)
ALL = Settings(distribution=0.7, soft_co_annotation=0.3, co_annotation=0.5, direction='both', score='posterior')


def labels_of(rows=16, *, seed=0):
  """Disjoint labels: even rows have the mood, odd ones the units; NaN where there is none."""
  random = np.random.default_rng(seed)
  mood, units = random.integers(0, 2, (rows, 1)), random.integers(0, 2, (rows, 2))
  even = np.arange(rows)[:, None] % 2 == 0
  mask = {'mood': even, 'units': np.broadcast_to(~even, (rows, 2))}
  labels = {'mood': np.where(even, mood, np.nan), 'units': np.where(even, np.nan, units)}
  return {name: np.float32(values) for name, values in labels.items()}, mask


@pytest.fixture(scope='module')
def batch():
  labels, mask = labels_of()
  return tiny.make_batch(TASKS) | {'labels': labels, 'mask': mask}


def step_of(coupling, batch, name='fixed', **settings):
  """The jitted step with one objective, and the state before it."""
  model, tx, objective = tiny.make_model(TASKS), optax.sgd(0.1), objectives.OBJECTIVES[name](**(
    {'weights': [1.0, 1.0]} if name == 'fixed' else {}
  ))  # fmt: skip
  stats = {task.name: task.empty_stats() for task in TASKS}
  ones = {name: dataclasses.replace(one, std=np.ones_like(one.std)) for name, one in stats.items()}
  common = {'model': model, 'tx': tx, 'objective': objective, 'ema_decay': 0.0}
  state = jax.jit(lambda: init_state(0, label_stats=ones, input_shape=(*tiny.SIZE, 3), **common))()

  def step(state, batch):
    return train_step(
      state, batch, tasks=TASKS, augmentation=NO_AUGMENTATION, seed=0, coupling=coupling,
      settings=gradients.Settings(**settings), **common
    )  # fmt: skip

  return step, state


def coupling_of(**fields):
  return Coupling((RELATED,), dataclasses.replace(ALL, **fields))


def test_implied_labels_are_put_in_where_there_is_none_and_true_ones_stay():
  labels = {'mood': np.float32([[1], [0], [np.nan], [np.nan], [1]]),
            'units': np.float32([[np.nan] * 2, [np.nan] * 2, [1, 1], [1, 0], [0, np.nan]])}  # fmt: skip
  mask = {name: ~np.isnan(values) for name, values in labels.items()}
  done, there, weights = coupling_of().complete(labels, mask)
  assert there['units'].tolist() == [[True, True], [False, False], [True, True], [True, True], [True, True]]
  np.testing.assert_allclose(weights['units'], [[0.45, 0.4], [0, 0], [1, 1], [1, 1], [1, 0.4]], rtol=1e-6)
  np.testing.assert_allclose(done['units'][there['units']], [1, 1, 1, 1, 1, 0, 0, 1])
  assert there['mood'][:, 0].tolist() == [True, True, True, False, True]  # All of glad's units are in row 2 alone.
  assert (done['mood'][2, 0], weights['mood'][2, 0]) == (1, 0.5)
  assert coupling_of(co_annotation=0.0).complete(labels, mask)[2] is None


def test_losses_with_weights_are_weighted_means():
  values = np.float32([[1.0, 5.0], [3.0, np.nan]])
  mask, weights = np.array([[True, True], [True, False]]), np.float32([[1.0, 0.5], [0.25, 0.0]])
  (entry,) = loss_terms.entries((TASKS[1],))
  found, present = loss_terms.reduce({'units': values}, {'units': mask}, entries=[entry], weights={'units': weights})
  assert float(found[0, 0]) == pytest.approx((1 + 2.5 + 0.75) / 1.75)
  assert present.all()


def outputs_of(rows):
  random = np.random.default_rng(2)
  return {name: random.normal(size=(rows, 2)).astype(np.float32) for name in ('mood', 'units')}


def by_formula(labels, outputs, *, unlabelled=False, confidence=0.0):
  """In float64: matching of targets, matching of the source, and soft co-annotation by the posterior."""
  e, rows = np.exp(outputs['mood'].astype(float)), len(outputs['mood'])
  mood, yes = e / e.sum(1, keepdims=True), 1 / (1 + np.exp(-outputs['units'].astype(float)))
  clipped = [np.clip(table.astype(float), 1e-3, 1 - 1e-3) for table in TABLE]
  targets = source = soft = num = 0.0
  for row in range(rows):
    likelihood = np.array([0.5, 0.5])
    for i, table in enumerate(clipped):
      p = np.array([1 - yes[row, i], yes[row, i]])
      q = np.clip(mood[row] @ TABLE[i].astype(float), 1e-3, 1 - 1e-3)
      likelihood *= np.prod(table**p, axis=1)
      if mood[row].max() >= confidence and not (unlabelled and np.isfinite(labels['units'][row, i])):
        targets += (p * np.log(p / q)).sum() / rows / 2
    q = np.clip(likelihood / likelihood.sum(), 1e-3, 1 - 1e-3)
    free = not (unlabelled and np.isfinite(labels['mood'][row, 0]))
    source += (mood[row] * np.log(mood[row] / q)).sum() / rows if q.max() >= confidence and free else 0
    if np.isfinite(labels['units'][row]).all() and free:
      likelihood = np.prod([table[:, int(labels['units'][row, i])] for i, table in enumerate(clipped)], axis=0)
      soft, num = soft - (likelihood / likelihood.sum() * np.log(mood[row])).sum(), num + 1
  return targets, source, soft / max(num, 1)


@pytest.mark.parametrize('how', [{}, {'rows': 'unlabelled'}, {'confidence': 0.7}])
def test_auxiliary_losses_are_the_formulas_and_do_not_read_what_is_masked(how):
  labels, mask = labels_of(8)
  labels['mood'][1], mask['mood'] = 1, mask['mood'].copy()
  mask['mood'][1] = True  # One row with both.
  outputs = outputs_of(8)
  expected = by_formula(
    labels, outputs, unlabelled=how.get('rows') == 'unlabelled', confidence=how.get('confidence', 0.0)
  )
  plain = by_formula(labels, outputs)
  assert not how or expected[0] < 0.9 * plain[0]
  for direction, matched in (('targets', expected[0]), ('sources', expected[1]), ('both', sum(expected[:2]))):
    found = coupling_of(direction=direction, **how).auxiliary(labels, mask, label_stats={}, step=0)(outputs)
    assert float(found['distribution_matching']) == pytest.approx(0.7 * matched, rel=1e-4)
    assert float(found['soft_co_annotation']) == pytest.approx(0.3 * expected[2], rel=1e-4)


@pytest.mark.parametrize(
  ('how', 'shares'),
  [
    ({'ramp_steps': 10}, [0, 0.5, 1, 1]),
    ({'anneal_steps': 20}, [1, 0.75, 0.5, 0]),
    ({'ramp_steps': 10, 'anneal_steps': 20}, [0, 0.375, 0.5, 0]),
  ],
)
def test_weights_grow_over_the_ramp_and_fall_to_0_by_the_end_of_the_annealing(how, shares):
  labels, mask = labels_of(4)
  outputs = {'mood': jnp.ones((4, 2)), 'units': jnp.ones((4, 2))}
  whole = coupling_of().auxiliary(labels, mask, label_stats={}, step=0)(outputs)
  at = [coupling_of(**how).auxiliary(labels, mask, label_stats={}, step=s)(outputs) for s in (0, 5, 10, 99)]
  for name, value in whole.items():
    np.testing.assert_allclose([float(one[name]) for one in at], np.array(shares) * float(value), rtol=1e-6)


def test_numbers_of_a_coupling_may_be_traced():
  labels, mask = labels_of(8)
  numbers = {
    'distribution': 0.4,
    'soft_co_annotation': 0.2,
    'clip': 0.01,
    'confidence': 0.6,
    'ramp_steps': 4,
    'anneal_steps': 9,
  }

  def found(numbers):
    return coupling_of(**numbers).auxiliary(labels, mask, label_stats={}, step=2)(outputs_of(8))

  for traced, plain in zip(*(jax.tree.leaves(one(numbers)) for one in (jax.jit(found), found)), strict=True):
    assert float(traced) == pytest.approx(float(plain), rel=1e-5)


def test_a_target_without_relevance_is_not_matched():
  flat = dataclasses.replace(RELATED, relevance=(0.0, 0.0))
  outputs = {'mood': jnp.ones((4, 2)), 'units': jnp.ones((4, 2))}
  settings = Settings(distribution=1.0, relevance=True)
  found = Coupling((flat,), settings).auxiliary(*labels_of(4), label_stats={}, step=0)(outputs)
  assert float(found['distribution_matching']) == 0


@pytest.fixture(scope='module')
def stepped(batch):
  """What a step with everything on gives: the state, and its metrics."""
  step, state = step_of(coupling_of(), batch)
  return jax.jit(step)(state, batch)


def test_the_step_reports_what_it_adds_to_the_losses(stepped):
  _, metrics = stepped
  parts = ('mood', 'units', 'distribution_matching', 'soft_co_annotation')
  assert {f'{part}/loss' for part in parts} < set(metrics)
  assert all(np.isfinite(value) for value in metrics.values())


def test_without_completion_the_total_is_the_sum_of_its_parts(batch):
  step, state = step_of(coupling_of(co_annotation=0.0), batch)
  _, metrics = jax.jit(step)(state, batch)
  parts = ('mood', 'units', 'distribution_matching', 'soft_co_annotation')
  assert float(metrics['loss']) == pytest.approx(sum(float(metrics[f'{part}/loss']) for part in parts), rel=1e-5)


def test_coupling_moves_a_head_that_no_label_of_the_batch_teaches(batch):
  alone = batch | {'mask': batch['mask'] | {'units': np.zeros((16, 2), bool)}}
  for coupling, moves in ((None, False), (coupling_of(), True)):
    step, state = step_of(coupling, alone)
    after, _ = jax.jit(step)(state, alone)
    key = next(name for name in state.variables['params'] if name != 'shared' and 'units' in name)
    before, now = (jax.tree.leaves(one.variables['params'][key]) for one in (state, after))
    assert any(np.abs(a - b).max() > 0 for a, b in zip(before, now, strict=True)) == moves


def test_eight_devices_match_one(batch, stepped):
  mesh = sharding.make_mesh()
  step, state = step_of(coupling_of(), batch)
  rows, whole = sharding.by_rows(mesh), sharding.replicated(mesh)
  after, metrics = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)(state, batch)
  for name, value in metrics.items():
    np.testing.assert_allclose(value, stepped[1][name], rtol=2e-5, err_msg=name)
  for one, other in zip(jax.tree.leaves(after.variables), jax.tree.leaves(stepped[0].variables), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_methods_that_balance_gradients_balance_those_of_tasks_and_add_the_coupling(batch):
  results = {}
  for coupling in (None, coupling_of(co_annotation=0.0)):
    step, state = step_of(coupling, batch, 'mgda_ub')
    results[coupling is None] = jax.jit(step)(state, batch)[0].variables['params'], state.variables['params']
  (coupled, start), (plain, _) = results[False], results[True]

  def auxiliary(params):
    labels, mask = batch['labels'], batch['mask']
    outputs = tiny.make_model(TASKS).module.apply(
      state.variables | {'params': params}, network_input(batch['image']), train=True, mutable=['batch_stats']
    )[0]
    return sum(coupling_of().auxiliary(labels, mask, label_stats=state.label_stats, step=0)(outputs).values())

  expected = jax.jit(jax.grad(auxiliary))(start)
  for a, b, g in zip(*map(jax.tree.leaves, (coupled, plain, expected)), strict=True):
    np.testing.assert_allclose(b - a, 0.1 * g, rtol=2e-3, atol=2e-6)
