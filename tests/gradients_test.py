"""Task-by-task gradients are the gradients, whatever the chunks, the devices, or the way the Gram matrix is had."""

import dataclasses
import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import SIZE, TASKS, binary_tasks, label_stats, make_batch, make_model

from mtl_jax.data.input.augment import Augmentation
from mtl_jax.data.input.sampler import interleaved
from mtl_jax.models.network import split
from mtl_jax.objectives import (
  Objective,
  fixed,
  graddrop,
  gradnorm,
  loss_terms,
  on_gram,
  passes,
  sdmgrad,
  task_gradients,
)
from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.platform import sharding
from mtl_jax.run.state import init_state
from mtl_jax.training import gradients
from mtl_jax.training.forward import Forward
from mtl_jax.training.gradients import Settings
from mtl_jax.training.step import train_step

KEY = jax.random.key(0)


def equal() -> GramWeighting:
  """The plain sum, as a method on the Gram matrix."""

  def weights(gram, state, *, losses, present, key, unit=1.0):
    return present.astype(jnp.float32), state

  return GramWeighting(lambda num_tasks: (), weights)


def by_norm() -> GramWeighting:
  """Every gradient brought to norm 1: the least method whose weights depend on the Gram matrix."""

  def weights(gram, state, *, losses, present, key, unit=1.0):
    norms = unit * jnp.sqrt(jnp.diagonal(gram))
    return jnp.where(present & (norms > 0), 1 / jnp.where(norms > 0, norms, 1), 0), state

  return GramWeighting(lambda num_tasks: (), weights)


@functools.cache
def setup(tasks=TASKS, *, grain_='tasks', soft=False, parts=1, rows=16):
  """A forward pass on a batch and parameters for it; tests must not write into them."""
  batch = make_batch(tasks, rows=rows)
  model = make_model(tasks, soft=soft)
  stats = label_stats(batch, tasks)
  images = jnp.asarray(batch['image'], jnp.float32) / 255
  variables = jax.jit(model.init)(KEY, images)
  forward = Forward(
    model=model,
    tasks=tasks,
    entries=loss_terms.entries(tasks, grain_),
    images=images,
    labels=batch['labels'],
    mask=batch['mask'],
    variables=variables['batch_stats'],
    label_stats=stats,
    parts=parts,
  )
  return forward, variables['params']


def find(forward, params, objective: Objective, settings: Settings = gradients.PLAIN, state=None, step=0):
  return find_with_metrics(forward, params, objective, settings, state, step)[0]


def find_with_metrics(forward, params, objective, settings=gradients.PLAIN, state=None, step=0):
  state = objective.init(len(forward.entries), split(params)[0]) if state is None else state
  found = partial(gradients.compute, forward, objective=objective, key=KEY, settings=settings)
  return jax.jit(lambda params, state, step: found(params, state=state, step=step))(params, state, step)


@functools.cache
def plain(*tasks, **setting):
  """The gradient of the sum of all losses, the losses, and what else the pass has found, of `setup`'s batch."""
  forward, params = setup(*tasks, **setting)

  def total(params):
    each, seen = forward.losses(params)
    return each.sum(), (each, seen)

  gradient, (each, seen) = jax.jit(jax.grad(total, has_aux=True))(params)
  return gradient, each, seen


def of_each(forward, params):
  """The gradient of every loss, one behind the other."""
  return jax.jit(jax.jacrev(lambda params: forward.losses(params)[0][0]))(params)


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


@pytest.mark.parametrize('soft', [False, True], ids=['one representation', 'one for each task'])
@pytest.mark.parametrize('grain_', ['tasks', 'outputs'])
@pytest.mark.parametrize('at', task_gradients.POINTS)
def test_equal_weights_give_the_gradient_of_the_sum(at, grain_, soft):
  forward, params = setup(grain_=grain_, soft=soft)
  found = find(forward, params, on_gram(equal)(at=at))
  gradient, each, seen = plain(grain_=grain_, soft=soft)
  assert_close(found.gradients, gradient)
  np.testing.assert_allclose(found.value, each.sum(), rtol=1e-6)
  assert_close(found.aux, seen)


def test_each_gradient_is_that_of_its_loss():
  forward, params = setup(binary_tasks(3))
  shared, heads = split(params)

  @jax.jit
  def both(shared, heads):
    representation, pull, _ = jax.vjp(forward.encode, shared, has_aux=True)
    found = gradients.through_heads(forward, representation, heads)
    return found.pull((jnp.ones((1, 3)), None))[1], passes.at_parameters(pull, found.points(), chunk=2)

  own, each = both(shared, heads)
  jacobian = of_each(forward, params)
  for k in range(3):
    expected = jax.tree.map(lambda leaf, k=k: leaf[k], jacobian)
    assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], each), split(expected)[0])
    name = f'head_attributes_a{k}'
    assert_close(own[name], expected[name])


@pytest.mark.parametrize('rows', [0, 8], ids=['whole batch', 'Gram matrix of some rows'])
def test_weighted_heads_get_their_gradients_times_the_methods_weights(rows):
  forward, params = setup(binary_tasks(3))
  found = find(forward, params, on_gram(by_norm)(), Settings(heads='weighted', gram_rows=rows))
  gradient = plain(binary_tasks(3))[0]
  assert np.ptp(found.state.weights) > 0.01
  for k, weight in enumerate(found.state.weights):
    name = f'head_attributes_a{k}'
    expected = jax.tree.map(lambda leaf, weight=weight: weight * leaf, gradient[name])
    assert_close(found.gradients[name], expected, rtol=1e-4)


def test_chunks_do_not_change_the_gradient():
  forward, params = setup(binary_tasks(5))
  one, *others = (find(forward, params, on_gram(by_norm)(), Settings(chunk=chunk)) for chunk in (1, 2, 5))
  for other in others:
    assert_close(other.gradients, one.gradients)


def test_automatic_chunks_fit_the_memory_and_are_about_equal(monkeypatch):
  pull = [jnp.zeros(1000, jnp.float32)]
  assert gradients.chunk_size(pull, 40, asked=0, memory=10**9) == 1  # On eight devices.
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  assert gradients.chunk_size(pull, 40, asked=0, memory=10**9) == 1  # On a CPU.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  sizes = {memory: gradients.chunk_size(pull, 40, asked=0, memory=memory) for memory in (0, 16_000, 3 * 16_000, 10**9)}
  assert sizes == {0: 1, 16_000: 1, 3 * 16_000: 3, 10**9: 40}
  assert gradients.chunk_size(pull, 40, asked=0, memory=30 * 16_000) == 20
  assert gradients.chunk_size(pull, 40, asked=7, memory=0) == 7
  assert gradients.chunk_size(pull, 2, asked=7, memory=0) == 2


def test_gradients_that_cannot_be_kept_give_the_same_update_by_their_gram_matrix():
  forward, params = setup(binary_tasks(3))
  shared = split(params)[0]
  kept, alone = Settings(memory=10**12), Settings(memory=4 * 3 * sum(leaf.size for leaf in jax.tree.leaves(shared)))
  assert not gradients.gram_alone(on_gram(by_norm)(), shared, num=3, settings=kept)
  assert gradients.gram_alone(on_gram(by_norm)(), shared, num=3, settings=alone)
  objective = on_gram(by_norm)()
  found, expected = find(forward, params, objective, alone), find(forward, params, objective, kept)
  assert_close(found.gradients, expected.gradients)
  assert_close(found.state, expected.state)


def test_between_gram_matrices_the_last_weights_hold():
  forward, params = setup()
  objective, settings = on_gram(by_norm)(), Settings(gram_every_steps=3)
  fresh = find(forward, params, objective, settings, step=0)
  assert_close(fresh.gradients, find(forward, params, objective).gradients)
  doubled = fresh.state._replace(weights=2 * fresh.state.weights)
  for step, factor in ((3, 1), (4, 2), (5, 2), (6, 1)):
    found = find(forward, params, objective, settings, state=doubled, step=step)
    expected = jax.tree.map(lambda leaf, factor=factor: factor * leaf, fresh.gradients['shared'])
    assert_close(found.gradients['shared'], expected)


def test_a_gram_matrix_of_some_rows_is_theirs_and_the_update_is_the_whole_batchs():
  forward, params = setup(rows=16)
  objective = on_gram(by_norm)()
  found = find(forward, params, objective, Settings(gram_rows=8))
  weights = find(forward.rows(8), params, objective).state.weights
  np.testing.assert_allclose(found.state.weights, weights, rtol=1e-5)
  assert len(forward.rows(8).images) == 8
  total = jax.tree.map(partial(jnp.tensordot, weights, axes=1), of_each(forward, params))
  assert_close(found.gradients['shared'], total['shared'])


@pytest.mark.parametrize(('rows', 'num'), [(16, 2), (64, 4), (64, 3), (18, 3), (40, 1)])
def test_rows_of_the_first_part_are_one_of_every_few(rows, num):
  part = loss_terms.batch_parts(np.zeros(rows, int), num)
  found = np.asarray(loss_terms.rows_of_first_part(np.arange(rows), part, num))
  np.testing.assert_array_equal(found, np.flatnonzero(part[: rows // num * num] == 0))


def test_no_image_changes_its_device_for_a_gram_matrix_of_some_rows():
  batch, objective, tx = make_batch(rows=32), on_gram(by_norm)(), optax.sgd(0.1)
  common = {'model': make_model(), 'tx': tx, 'objective': objective, 'ema_decay': 0.0}
  make_state = partial(init_state, 0, label_stats=label_stats(batch), input_shape=(*SIZE, 3), **common)
  settings = Settings(gram_rows=16)
  step = partial(train_step, tasks=TASKS, augmentation=Augmentation(), seed=0, settings=settings, **common)
  mesh = sharding.make_mesh()
  whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
  compiled = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)
  text = compiled.lower(jax.eval_shape(make_state), batch).compile().as_text()
  collectives = re.findall(r'= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(', text)
  assert any('f32[6,64]' in shapes for shapes in collectives)  # Gradients meet.
  assert not [shapes for shapes in collectives if '8,8,3]' in shapes]


def test_a_loss_without_labels_in_the_rows_of_the_gram_matrix_keeps_its_last_weight():
  forward, params = setup(rows=16)
  mask = {**forward.mask, 'landmarks': np.tile(loss_terms.batch_parts(np.zeros(16, int), 2)[:, None] == 1, 4)}
  forward = dataclasses.replace(forward, mask=mask)
  found = find(forward, params, on_gram(by_norm)(), Settings(gram_rows=8))
  np.testing.assert_allclose(found.state.weights[1], 0.5)
  assert np.abs(jax.tree.leaves(found.gradients['head_landmarks'])[0]).max() > 0


def test_heads_get_their_own_plain_gradient_and_a_methods_factors():
  forward, params = setup()
  expected = split(plain()[0])[1]
  assert_close(split(find(forward, params, on_gram(by_norm)()).gradients)[1], expected)
  halved = dataclasses.replace(on_gram(by_norm)(), head_scale=lambda losses, state: jnp.array([0.5, 2.0]))
  found = find(forward, params, halved).gradients
  for name, factor in (('head_attributes', 0.5), ('head_landmarks', 2.0)):
    assert_close(found[name], jax.tree.map(lambda leaf, factor=factor: factor * leaf, expected[name]))


@pytest.mark.parametrize('rows', [(16, 16), (32, 16, 16), (40, 16, 8), (61, 3)])
@pytest.mark.parametrize('num', [2, 3, 4])
def test_every_part_of_a_batch_has_its_share_of_every_set_and_device(rows, num):
  total, sets = sum(rows), interleaved(rows)
  part = loss_terms.batch_parts(sets, num)
  for devices in (1, 2, 8):
    if total // devices % num == 0:  # Else they cannot have equally many.
      for own in part.reshape(devices, -1):
        assert (np.bincount(own, minlength=num) == total // devices // num).all()
  for one in range(num):
    assert abs(np.count_nonzero(part == one) - total / num) < 1
    own = np.bincount(sets[part == one], minlength=len(rows))
    np.testing.assert_allclose(own, np.array(rows) / num, atol=2)
    assert own.all() or min(rows) < num


def test_rows_at_even_distances_do_not_stay_together():
  part = loss_terms.batch_parts(np.zeros(240, int), 3)
  for distance in (2, 3, 4, 6, 12):
    for first in range(distance):
      assert np.bincount(part[first::distance], minlength=3).min() > 240 / distance / 3 / 2.5


def test_parts_of_a_batch_are_disjoint_and_make_up_the_whole():
  forward, params = setup(parts=3, rows=18)
  seen = []

  def update(gradients, state, *, losses, present, key, at=None):
    seen.append(jax.tree.map(jnp.shape, gradients))
    return jax.tree.map(lambda leaf: leaf.mean(0).sum(0), gradients), state

  find(forward, params, Objective(lambda num, like: (), update, needs='parameters', parts=3))
  assert seen[0]['shared']['dense']['bias'] == (3, 2, 6)
  losses = jax.jit(lambda mask, parts: dataclasses.replace(forward, parts=parts, mask=mask).losses(params)[0],
                   static_argnums=1)  # fmt: skip
  each = losses(forward.mask, 3)
  for part in range(3):
    mask = {
      name: m & (loss_terms.batch_parts(np.zeros(18, int), 3)[:, None] == part) for name, m in forward.mask.items()
    }
    np.testing.assert_allclose(each[part], losses(mask, 1)[0], rtol=1e-5)


@pytest.mark.parametrize(
  ('make', 'norm', 'settings', 'accumulate'),
  [
    (on_gram(by_norm), False, Settings(log=True), 1),
    (gradnorm, False, Settings(log=True), 1),
    (sdmgrad, True, Settings(log=True), 1),
    (on_gram(by_norm), True, Settings(gram_rows=12), 1),
    (fixed, True, Settings(), 3),
  ],
  ids=['parameters', 'representation', 'parts', 'rows of the Gram matrix', 'micro-batches and batch norm'],
)
def test_eight_devices_give_one_devices_update(make, norm, settings, accumulate, monkeypatch):
  batch, objective = make_batch(rows=48, labelled=0.6), make()
  common = {'model': make_model(norm=norm), 'tx': optax.sgd(0.1), 'objective': objective, 'ema_decay': 0.0}
  make_state = partial(init_state, 0, label_stats=label_stats(batch), input_shape=(*SIZE, 3), **common)
  static = {'tasks': TASKS, 'augmentation': Augmentation(), 'seed': 0, 'settings': settings, 'accumulate': accumulate}
  step, results = partial(train_step, sets=interleaved((36, 12)), **static, **common), {}
  first = jax.device_get(jax.jit(make_state)())
  for devices in (jax.devices()[:1], jax.devices()[:8]):
    monkeypatch.setattr(jax, 'device_count', lambda devices=devices: len(devices))
    mesh = sharding.make_mesh(devices)
    whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    state = jax.device_put(first, whole)
    compiled = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)
    for _ in range(2):
      state, metrics = compiled(state, jax.device_put(batch, rows))
    results[len(devices)] = jax.device_get((state.variables, state.objective, metrics))
  assert_close(results[8], results[1], rtol=1e-4, atol=1e-5)


def test_logged_metrics_say_what_the_gradients_are():
  forward, params = setup()
  _, metrics = find_with_metrics(forward, params, on_gram(by_norm)(), Settings(log=True))
  each = jax.tree.leaves(split(of_each(forward, params))[0])
  flat = np.concatenate([np.reshape(leaf, (2, -1)) for leaf in each], axis=1)
  norms = np.linalg.norm(flat, axis=1)
  cosine = flat[0] @ flat[1] / norms.prod()
  metrics = {name: float(value) for name, value in metrics.items()}
  expected = {
    'gradient_norm/attributes': norms[0],
    'gradient_norm/landmarks': norms[1],
    'cosine/attributes~landmarks': cosine,
    'least_cosine': cosine,
    'conflicting_pairs': float(cosine < 0),
    'weight/attributes': 1 / norms[0],
    'weight/landmarks': 1 / norms[1],
  }
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_weights_of_loss_weightings_are_logged_too():
  forward, params = setup()
  _, metrics = find_with_metrics(forward, params, fixed([2.0, 0.5]), Settings(log=True))
  np.testing.assert_allclose([metrics['weight/attributes'], metrics['weight/landmarks']], [2.0, 0.5])
  assert metrics['gradient_norm/landmarks'] > 0


def test_an_absent_task_counts_in_no_logged_pair():
  forward, params = setup()
  forward = dataclasses.replace(forward, mask={**forward.mask, 'landmarks': np.zeros((16, 4), bool)})
  _, metrics = find_with_metrics(forward, params, on_gram(by_norm)(), Settings(log=True))
  found = {name: float(value) for name, value in metrics.items() if 'landmarks' in name or '/' not in name}
  assert found == {
    'gradient_norm/landmarks': 0, 'cosine/attributes~landmarks': 0, 'weight/landmarks': 0,
    'least_cosine': 1, 'conflicting_pairs': 0,
  }  # fmt: skip


def test_the_grain_of_outputs_is_one_loss_for_each_attribute():
  batch = make_batch()
  entries = loss_terms.entries(TASKS, 'outputs')
  assert [e.name for e in entries] == ['attributes/Smiling', 'attributes/Male', 'attributes/Young', 'landmarks']
  values = {name: np.where(mask, batch['labels'][name], np.nan) for name, mask in batch['mask'].items()}
  found, present = loss_terms.reduce(values, batch['mask'], entries=entries)
  expected = [*np.nanmean(values['attributes'], axis=0), np.nanmean(values['landmarks'])]
  np.testing.assert_allclose(found[0], expected, rtol=1e-6)
  assert present.all()


def test_sign_dropout_sees_the_representation():
  """With a leak of 1 nothing is dropped; with none, the update differs from the sum."""
  forward, params = setup()
  assert_close(find(forward, params, graddrop(leak=1.0)).gradients, plain()[0])
  dropped = find(forward, params, graddrop()).gradients['shared']['dense']['kernel']
  assert np.abs(dropped - plain()[0]['shared']['dense']['kernel']).max() > 1e-4
