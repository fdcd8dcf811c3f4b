"""What each normalisation takes its statistics over, and what the compiled program then waits for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import ConfigError
from mtl_jax.models import multitask, normalization, resnet
from mtl_jax.platform import sharding

X = np.random.default_rng(0).normal(1, 2, size=(8, 3, 2, 4)).astype(np.float32)


def apply(kind, *, rows=0, train=True, x=X, dtype=jnp.float32):
  """Outputs and the next state, from scales and biases that are not the first ones."""
  module = normalization.make(kind, rows=rows, train=train, dtype=dtype)()
  variables = dict(module.init(jax.random.key(0), jnp.array(x)))
  variables['params'] = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size), variables['params'])
  return module.apply(variables, jnp.array(x), mutable=['batch_stats'])


def test_batch_norm_over_rows_is_batch_norm_of_each_part():
  found, state = apply('batch', rows=2)
  parts = [apply('batch', x=X[i : i + 2]) for i in range(0, 8, 2)]
  np.testing.assert_allclose(found, np.concatenate([y for y, _ in parts]), rtol=1e-4, atol=1e-5)
  mean_of_parts = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *[s['batch_stats'] for _, s in parts])
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), dict(state['batch_stats']), mean_of_parts)


def test_batch_norm_over_all_rows_at_a_time_is_that_of_the_batch():
  for found, expected in zip(jax.tree.leaves(apply('batch', rows=8)), jax.tree.leaves(apply('batch')), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_parts_and_the_whole_evaluate_alike():
  made = [normalization.make('batch', rows=rows, train=True, dtype=jnp.float32)() for rows in (0, 2)]
  variables = [module.init(jax.random.key(0), jnp.asarray(X)) for module in made]
  assert jax.tree.structure(variables[0]) == jax.tree.structure(variables[1])
  np.testing.assert_array_equal(*(apply('batch', rows=r, train=False)[0] for r in (0, 2)))


def test_group_norm_and_no_norm_treat_each_image_by_itself():
  for kind in ('group', 'none'):
    alone = np.concatenate([apply(kind, x=X[i : i + 1])[0] for i in range(8)])
    np.testing.assert_allclose(apply(kind)[0], alone, rtol=1e-4, atol=1e-5)
    assert 'batch_stats' not in apply(kind)[1]


def small_resnet(**kwargs):
  return resnet.ResNet(stage_sizes=(1,), block=resnet.BasicBlock, width=4, **kwargs)


def compiled_for_eight_devices(rows: int) -> str:
  """The program that makes a sharded batch's features, with the gradient of each of its rows."""
  mesh = sharding.make_mesh()
  by_rows, whole = sharding.by_rows(mesh), sharding.replicated(mesh)
  model = small_resnet(norm_rows=rows)
  images = jnp.zeros((16, 16, 16, 3))
  variables = model.init(jax.random.key(0), images, train=False)

  def features_and_gradients(variables, images):
    features = lambda x: model.apply(variables, x, train=True, mutable=['batch_stats'])[0]  # noqa: E731
    out, pull = jax.vjp(features, images)
    return out, pull(jnp.ones_like(out))

  return jax.jit(features_and_gradients, in_shardings=(whole, by_rows), out_shardings=by_rows).lower(
    variables, images
  ).compile().as_text()  # fmt: skip


def test_with_a_devices_rows_at_a_time_devices_do_not_wait_for_each_others_statistics():
  assert jax.device_count() == 8
  assert 'all-reduce' in compiled_for_eight_devices(rows=0)
  for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute'):
    assert word not in compiled_for_eight_devices(rows=2)


def test_without_a_norm_residual_branches_begin_at_zero():
  model = small_resnet(norm='none')
  params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)['params']
  assert not params['layer1_0']['bn2']['scale'].any()
  assert params['layer1_0']['bn1']['scale'].all()


def test_recomputing_blocks_changes_nothing_but_what_is_kept():
  images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
  variables = small_resnet().init(jax.random.key(0), images, train=False)

  def gradient_and_state(remat):
    def loss(params):
      model = small_resnet(remat=remat)
      y, state = model.apply({**variables, 'params': params}, images, train=True, mutable=['batch_stats'])
      return (y**2).sum(), state

    return jax.grad(loss, has_aux=True), variables['params']

  (kept, params), (recomputed, _) = gradient_and_state(False), gradient_and_state(True)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), recomputed(params), kept(params))
  assert 'remat' in str(jax.make_jaxpr(recomputed)(params))
  assert 'remat' not in str(jax.make_jaxpr(kept)(params))


@pytest.mark.parametrize(
  ('backbone', 'option', 'value'),
  [
    ('vit_s16', 'stem', 'small'),
    ('vit_s16', 'norm', 'batch'),
    ('convnext_tiny', 'norm', 'group'),
    ('vit_b16', 'norm_rows', 4),
    ('convnet', 'remat', True),
  ],
)
def test_an_option_that_a_backbone_does_not_have_is_refused(tiny_config, backbone, option, value):
  config = tiny_config(**{'model.backbone': backbone, 'model.width': 0, f'model.{option}': value})
  with pytest.raises(ConfigError, match=f'config.model.{option}: {backbone} has no such option'):
    multitask.backbone_from_config(config.model)


def test_rows_without_batch_norm_are_refused(tiny_config):
  with pytest.raises(ConfigError, match='only batch norm'):
    multitask.backbone_from_config(tiny_config(**{'model.norm_rows': 4, 'model.norm': 'group'}).model)
