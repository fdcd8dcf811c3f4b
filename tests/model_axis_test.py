"""Parameters divided over devices: the same losses as with all on each, less memory, checkpoints for any layout."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from tiny import TASKS, label_stats, make_batch

from mtl_jax.data.input.augment import Augmentation
from mtl_jax.errors import ConfigError
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.models.network import Network
from mtl_jax.models.sharing.hard import Hard
from mtl_jax.models.vit import VisionTransformer
from mtl_jax.objectives import fixed
from mtl_jax.platform import sharding
from mtl_jax.run import checkpoint, trained_model
from mtl_jax.run.checkpoint import Checkpoints, TrainProgress
from mtl_jax.run.state import init_state
from mtl_jax.training import loop
from mtl_jax.training.progress import read_metrics
from mtl_jax.training.step import train_step

SIZE = (16, 16)


@pytest.fixture(scope='module')
def parts():
  """A transformer of a layer, and its step, with SGD, so that rounding does not grow."""
  vit = VisionTransformer(width=64, depth=1, groups=1)
  model = MultiTaskModel(Hard(vit, ('attributes', 'landmarks')), tuple((t.name, t.num_outputs) for t in TASKS), 8)
  model = Network(model)
  shared = {'model': model, 'tx': optax.sgd(0.01, momentum=0.9), 'objective': fixed([1.0, 0.5]), 'ema_decay': 0.9}
  make_state = partial(init_state, 0, label_stats=label_stats(make_batch()), input_shape=(*SIZE, 3), **shared)
  step = partial(train_step, tasks=TASKS, augmentation=Augmentation(), seed=0, **shared)
  return make_state, step


def test_a_transformer_divided_over_devices_has_the_losses_of_a_whole_one(parts):
  make_state, step = parts
  losses, held = {}, {}
  for num in (1, 2):  # Devices along `model`, of eight.
    mesh = sharding.make_mesh(model=num)
    placed, rows = sharding.of_state(mesh, make_state), sharding.by_rows(mesh)
    state = jax.jit(make_state, out_shardings=placed)()
    held[num] = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert held[num] == sharding.bytes_of_state(mesh, make_state)[0]
    compiled = jax.jit(step, in_shardings=(placed, rows), out_shardings=(placed, sharding.replicated(mesh)))
    losses[num] = []
    for seed in range(3):
      batch = make_batch(rows=8, seed=seed)
      batch['image'] = np.random.default_rng(seed).integers(0, 256, (8, *SIZE, 3), dtype=np.uint8)
      state, metrics = compiled(state, jax.device_put(batch, rows))
      losses[num].append([float(metrics[name]) for name in sorted(metrics)])
  np.testing.assert_allclose(losses[2], losses[1], rtol=2e-5)
  assert held[2] < 0.75 * held[1]


def test_a_kernel_its_average_and_its_moment_lie_alike(parts):
  make_state, _ = parts
  placed = sharding.of_state(sharding.make_mesh(model=2), make_state)

  def kernels(tree):
    named = jax.tree_util.tree_leaves_with_path(tree)
    return [leaf.spec for path, leaf in named if 'mlp_in' in str(path) and 'kernel' in str(path)]

  params, average = kernels(placed.variables['params']), kernels(placed.average)
  assert params == average == kernels(placed.optimizer)
  assert set(params) == {jax.P(None, 'model')}


def test_checkpoints_restore_under_any_layout(parts, tmp_path):
  make_state, _ = parts
  state = jax.jit(make_state, out_shardings=sharding.of_state(sharding.make_mesh(model=2), make_state))()
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state, TrainProgress(step=1))
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path)
  for mesh in (sharding.make_mesh(model=4), sharding.make_mesh(jax.devices()[:1])):
    placed = sharding.of_state(mesh, make_state)
    restored = checkpoints.restore(checkpoint.abstract_state(make_state, placed))
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored[0], state)
    devices = {leaf.sharding.device_set == set(mesh.devices.flat) for leaf in jax.tree.leaves(restored[0])}
    assert devices == {True}
  checkpoints.close()


@pytest.mark.slow
def test_a_run_may_divide_its_parameters_and_go_on_with_them_whole(tiny_config, tmp_path, said):
  overrides = {'model.backbone': 'convnet', 'model.head_features': 64, 'optimizer.name': 'sgd', 'eval.every_steps': 0}
  for num in (1, 2):
    loop.train(tiny_config(**overrides, **{'train.model_devices': num, 'data.mode': 'resident'}), tmp_path / str(num))
  whole, divided = (
    [line['train/loss'] for line in read_metrics(tmp_path / name / 'metrics.jsonl') if 'train/loss' in line]
    for name in '12'
  )
  np.testing.assert_allclose(divided, whole, rtol=1e-5)
  assert 'large arrays divided over 2' in '\n'.join(said)
  assert dict(trained_model.restore(tmp_path / '2').mesh.shape) == {'data': 4, 'model': 2}
  assert loop.train(tiny_config(**overrides, **{'train.steps': 4}), tmp_path / '2').step == 4


def test_devices_that_do_not_divide_are_refused_with_the_field():
  with pytest.raises(ConfigError, match=r'train\.model_devices is 3, which does not divide the 8 devices'):
    sharding.make_mesh(model=3)
