"""A batch read in micro-batches has the big batch's losses and gradients, for every kind of objective."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import SIZE, TASKS, label_stats, make_batch, make_model

from mtl_jax import objectives
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.errors import ConfigError
from mtl_jax.objectives import loss_terms
from mtl_jax.platform import sharding
from mtl_jax.run.state import init_state
from mtl_jax.training import gradients, micro_batches
from mtl_jax.training.forward import Forward
from mtl_jax.training.step import train_step

KEY = jax.random.key(0)
# One of each cost class: of losses, linear in them or not; at the representation; at the parameters, in parts too.
OBJECTIVES = {
  'fixed': objectives.fixed([1.0, 0.5]),
  'gls': objectives.gls(),
  'graddrop': objectives.graddrop(),
  'cagrad': objectives.cagrad(),
  'sdmgrad': objectives.sdmgrad(),
}


def make_forward(objective, *, norm: bool = False, soft: bool = False) -> tuple[Forward, dict]:
  """A batch whose labels lie unequally: micro-batch 0 of two has few attributes, and landmarks of one image."""
  batch, model = make_batch(rows=16), make_model(norm=norm, soft=soft)
  batch['mask']['landmarks'][2::2] = False
  batch['mask']['attributes'][4::2] = False
  images = jnp.asarray(batch['image'], jnp.float32) / 255
  variables = model.init(KEY, images)
  forward = Forward(
    model=model,
    tasks=TASKS,
    entries=loss_terms.entries(TASKS, 'tasks'),
    images=images,
    labels=batch['labels'],
    mask=batch['mask'],
    variables=variables,
    label_stats=label_stats(batch),
    parts=objective.parts,
    key=KEY,
  )
  return forward, variables['params']


# Elsewhere than on a CPU micro-batches are read in a loop.
@pytest.mark.parametrize(('name', 'backend'), [*((name, 'cpu') for name in OBJECTIVES), ('fixed', 'gpu')])
def test_micro_batches_give_the_big_batchs_gradient(name, backend, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  objective = OBJECTIVES[name]
  forward, params = make_forward(objective)

  @partial(jax.jit, static_argnames='accumulate')
  def found(params, *, accumulate):
    state = objective.init(len(TASKS), params['shared'])
    result, _ = gradients.compute(
      dataclasses.replace(forward, accumulate=accumulate), params,
      objective=objective, state=state, step=jnp.int32(0), key=KEY, settings=gradients.PLAIN,
    )  # fmt: skip
    return result.value, result.gradients, result.aux.task_losses

  big, small = (found(params, accumulate=num) for num in (1, 2))
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(big[1]['shared'])) > 1e-3
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), small, big)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_batch_norm_takes_its_statistics_from_each_micro_batch_in_turn(backend, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  forward, params = make_forward(OBJECTIVES['fixed'], norm=True)
  moved = dataclasses.replace(forward, accumulate=2).encode(params)[1]
  variables = forward.variables
  part = loss_terms.batch_parts(np.zeros(len(forward.images), int), 2)
  for number in (0, 1):
    one = dataclasses.replace(forward, images=forward.images[part == number], variables=variables)
    variables = {**variables, **one.encode(params)[1]}
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), moved['batch_stats'], variables['batch_stats']
  )


def test_eight_devices_with_micro_batches_match_one_without():
  batch, model = make_batch(rows=16), make_model(norm=False)
  shared = {'model': model, 'tx': optax.sgd(0.1), 'objective': OBJECTIVES['fixed'], 'ema_decay': 0.0}
  make_state = partial(init_state, 0, label_stats=label_stats(batch), input_shape=(*SIZE, 3), **shared)
  augmentation = Augmentation(flip=True, shift=0.1)
  losses = {}
  for count, accumulate in ((1, 1), (8, 2)):
    mesh = sharding.make_mesh(jax.devices()[:count])
    whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    step = partial(train_step, tasks=TASKS, augmentation=augmentation, seed=0, accumulate=accumulate, **shared)
    compiled = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)
    state, losses[count] = jax.jit(make_state, out_shardings=whole)(), []
    for seed in range(3):
      state, metrics = compiled(state, jax.device_put(make_batch(rows=16, seed=seed), rows))
      losses[count].append([float(metrics[name]) for name in sorted(metrics)])
  np.testing.assert_allclose(losses[8], losses[1], rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(tiny_config):
  micro_batches.check(tiny_config(**{'train.batch_size': 32, 'train.accumulate': 4}))
  with pytest.raises(ConfigError, match='a batch of 24 has no 2 micro-batches that 8 devices'):
    micro_batches.check(tiny_config(**{'train.batch_size': 24, 'train.accumulate': 2}))
  with pytest.raises(ConfigError, match=r'config\.model\.norm_rows: 3 does not divide the 32 rows'):
    micro_batches.check(tiny_config(**{'train.batch_size': 32, 'model.norm_rows': 3}))
  with pytest.raises(ConfigError, match=r'config\.model\.norm_rows: 32 does not divide the 16 rows'):
    micro_batches.check(tiny_config(**{'train.batch_size': 32, 'train.accumulate': 2, 'model.norm_rows': 32}))
