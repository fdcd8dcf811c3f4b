"""Models have the published shapes and sizes, and our convolution and pooling are the usual ones."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mtl_jax.errors import ConfigError
from mtl_jax.models import convolution, multitask, resnet, vit
from mtl_jax.models.sharing.hard import Hard
from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, RegressionTask

TASKS = (
  BinaryTask('attributes', tuple(f'a{i}' for i in range(40))),
  LandmarkTask('landmarks', tuple(f'p{i}_{axis}' for i in range(5) for axis in 'xy')),
  RegressionTask('age', ('years',)),
  CategoricalTask('pose', ('pose',), classes=('left', 'front', 'right')),
)
OUTPUTS = {'attributes': 40, 'landmarks': 10, 'age': 1, 'pose': 3}


def shapes(module, size=(64, 64), *, batch=2, train=False):
  """Shapes of the variables and of what the module gives, without computing anything."""
  images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
  apply = lambda v, x: module.apply(v, x, train=train, mutable=['batch_stats'] if train else False)  # noqa: E731
  return variables, jax.eval_shape(apply, variables, images)


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('backbone', multitask.BACKBONES)
@pytest.mark.parametrize(('size', 'train'), [((32, 32), False), ((218, 178), True)])
def test_every_task_gets_its_outputs_in_float32(tiny_config, backbone, size, train):
  config = tiny_config(**{'model.backbone': backbone})
  _, found = shapes(multitask.from_config(config.model, TASKS).module, size, train=train)
  outputs = found[0] if train else found
  assert {name: value.shape for name, value in outputs.items()} == {name: (2, n) for name, n in OUTPUTS.items()}
  assert {value.dtype for value in outputs.values()} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('backbone', 'published'),
  [(resnet.resnet18, 11_176_512), (resnet.resnet34, 21_284_672), (resnet.resnet50, 23_508_032)],
)
def test_backbones_have_as_many_parameters_as_torchvisions(backbone, published):
  variables, features = shapes(backbone(stem='imagenet'), (224, 224))
  assert count(variables['params']) == published
  assert features.shape == (2, 512 * backbone.keywords['block'].expansion)


def test_stage_maps_shrink_as_torchvisions():
  def maps(stem, size):
    model = resnet.resnet18(width=4, stem=stem)
    run = lambda: model.init_with_output(  # noqa: E731
      jax.random.key(0), jnp.zeros((1, *size, 3)), train=False, capture_intermediates=True
    )
    caught = jax.eval_shape(run)[1]['intermediates']
    return [caught[f'layer{stage}_1']['__call__'][0].shape[1:3] for stage in (1, 2, 3, 4)]

  assert maps('imagenet', (224, 224)) == [(56, 56), (28, 28), (14, 14), (7, 7)]
  assert maps('small', (64, 48)) == [(32, 24), (16, 12), (8, 6), (4, 3)]


@pytest.mark.parametrize(('side', 'kernel'), [(96, 3), (97, 7)])
def test_the_auto_stem_depends_on_the_image_size(side, kernel):
  variables, _ = shapes(resnet.resnet18(width=4), (side, side))
  assert variables['params']['conv1']['kernel'].shape[:2] == (kernel, kernel)


def test_bfloat16_computes_with_float32_parameters_and_outputs(tiny_config):
  net = {'model.backbone': 'resnet18', 'model.dtype': 'bfloat16'}
  model = multitask.from_config(tiny_config(**net).model, TASKS).module
  for train in (False, True):
    variables, found = shapes(model, train=train)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, found))} == {jnp.dtype('float32')}
  jaxpr = str(jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, jnp.zeros((1, 32, 32, 3))))
  assert 'bf16' in jaxpr


def test_the_backbones_first_weights_do_not_depend_on_the_tasks():
  images = jnp.zeros((1, 8, 8, 3))

  def first_weights(*heads):
    backbone = resnet.ResNet(stage_sizes=(1,), block=resnet.BasicBlock, width=2)
    model = multitask.MultiTaskModel(Hard(backbone, ()), heads, head_features=2)
    return jax.jit(lambda: model.init(jax.random.key(7), images, train=False)['params'])()

  joint, single = first_weights(('attributes', 40), ('landmarks', 10)), first_weights(('landmarks', 10))
  for name in single:
    jax.tree.map(np.testing.assert_array_equal, joint[name], single[name])


# The convolution.


def both_ways(stride: int, padding: int):
  """Value and gradients of our matrix form and of XLA's convolution."""
  pads, strides = ((padding, padding),) * 2, (stride, stride)
  dimensions = ('NHWC', 'HWIO', 'NHWC')

  def ours(x, k):
    return convolution._product(x, k, strides, pads)

  def theirs(x, k):
    return lax.conv_general_dilated(x, k, strides, pads, dimension_numbers=dimensions, precision='highest')

  def value_and_gradients(form):
    def weighted(x, k, w):
      y = form(x, k)
      return (y * w[: y.shape[1], : y.shape[2]]).sum(), y

    return jax.jit(lambda x, k, w: jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(x, k, w))

  return value_and_gradients(ours), value_and_gradients(theirs)


@pytest.mark.parametrize(('stride', 'padding', 'kernel'), [(1, 1, 3), (2, 1, 3), (1, 0, 1), (2, 0, 1), (2, 3, 7)])
def test_the_matrix_form_is_the_convolution_and_so_is_its_gradient(stride, padding, kernel):
  rng = np.random.default_rng(0)
  ours, theirs = both_ways(stride, padding)
  k = rng.normal(size=(kernel, kernel, 3, 4)).astype(np.float32)
  weights = rng.normal(size=(8, 8, 4)).astype(np.float32)
  for size in ((1, 1), (2, 3), (4, 4), (7, 5), (8, 8)):
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, ours(x, k, weights), theirs(x, k, weights))


def test_convolve_is_flax_convolution_whichever_form_it_takes():
  """Through `nn.Conv`, on both sides of the size at which the form changes, with groups and dilation too."""
  rng = np.random.default_rng(0)
  options = [{}, {'strides': 2}, {'feature_group_count': 2}, {'kernel_dilation': 2}, {'padding': 'VALID'}]
  depthwise = [option | {'feature_group_count': 4, 'features': 4} for option in options]
  for size, option in itertools.product((2, 3, 4, 5, 9), options + depthwise):
    if size < 4 and option.keys() & {'kernel_dilation', 'padding'}:
      continue  # The kernel, dilated or without padding, is larger than the map.
    x = jnp.array(rng.normal(size=(1, size, size, 4)), jnp.float32)
    option = {'features': 6, 'kernel_size': (3, 3)} | option
    conv = nn.Conv(**option)
    variables = conv.init(jax.random.key(0), x)
    ours = nn.Conv(conv_general_dilated=convolution.convolve, **option)
    np.testing.assert_allclose(ours.apply(variables, x), conv.apply(variables, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(1, 1), (2, 2), (5, 4), (8, 8), (9, 7)])
def test_our_max_pooling_is_the_usual_one_and_so_is_its_gradient(size):
  x = jnp.array(np.random.default_rng(0).permutation(2 * size[0] * size[1] * 3).reshape(2, *size, 3), jnp.float32)
  usual = lambda x: nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # noqa: E731
  found, expected = convolution.max_pool_3x3(x), usual(x)
  np.testing.assert_array_equal(found, expected)
  weights = jnp.arange(found.size, dtype=jnp.float32).reshape(found.shape)
  gradient = lambda pool: jax.grad(lambda x: (pool(x) * weights).sum())(x)  # noqa: E731
  np.testing.assert_array_equal(gradient(convolution.max_pool_3x3), gradient(usual))


def test_pooling_by_two_is_the_usual_one_and_leaves_out_an_odd_rest():
  x = jnp.array(np.random.default_rng(0).normal(size=(2, 5, 8, 3)), jnp.float32)
  np.testing.assert_array_equal(convolution.max_pool_2x2(x), nn.max_pool(x, (2, 2), strides=(2, 2)))


# Stages, pooling and maps.


@pytest.mark.parametrize('name', multitask.BACKBONES)
def test_maps_lie_as_the_image_does(tiny_config, name):
  """An image of two rows for one column has maps of two rows for one column, and their mean has the features' width."""
  backbone = multitask.backbone_from_config(tiny_config(**{'model.backbone': name}).model)
  images = jnp.zeros((1, 128, 64, 3))
  variables = jax.eval_shape(lambda: backbone.init(jax.random.key(0), images, train=False))
  run = nn.apply(represent_with, backbone)
  features, maps = jax.eval_shape(run, variables, images)
  assert maps.shape[1] == 2 * maps.shape[2]
  assert maps.shape[0] == features.shape[0] == 1
  if name != 'convnet':  # Its features are the flattened map.
    assert maps.shape[-1] == features.shape[-1]


@pytest.mark.parametrize('name', multitask.BACKBONES)
def test_images_of_one_pixel_are_read_or_refused_in_one_line(tiny_config, name):
  backbone = multitask.backbone_from_config(tiny_config(**{'model.backbone': name}).model)
  init = lambda: backbone.init(jax.random.key(0), jnp.zeros((1, 1, 1, 3)), train=False)  # noqa: E731
  if name in ('convnet', 'celeba_cnn', 'convnext_tiny'):
    with pytest.raises(ConfigError, match=r'config\.model\.backbone: the images are too small'):
      jax.eval_shape(init)
  else:
    jax.eval_shape(init)


def represent_with(backbone, x):
  """What a way of sharing does with a backbone."""
  for index in range(backbone.num_stages):
    x = backbone.stage(x, index, train=False)
  return backbone.represent(x, spatial=True)


def test_a_transformers_map_has_each_patch_at_its_place():
  backbone = vit.VisionTransformer(width=8, depth=0, groups=1)
  images = jnp.zeros((1, 48, 32, 3))
  variables = backbone.init(jax.random.key(0), images, train=False)
  maps = jax.jit(lambda x: nn.apply(represent_with, backbone)(variables, x).maps)
  changed = images.at[0, 32:48, 16:32].set(1)
  np.testing.assert_array_equal((maps(images) != maps(changed)).any(-1)[0], [[0, 0], [0, 0], [0, 1]])


def test_a_transformers_width_is_a_whole_number_of_heads():
  with pytest.raises(ConfigError, match=r'config\.model\.width: 100 is no multiple of 64'):
    jax.eval_shape(lambda: vit.vit_s16(width=100).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


@pytest.mark.parametrize('name', ['mobilenet_v2', 'convnext_tiny'])
def test_small_images_keep_larger_maps_and_the_same_kernels_elsewhere(name):
  make = multitask.BACKBONES[name]
  small, usual = (shapes(make(stem=stem), (64, 64))[0]['params'] for stem in ('small', 'imagenet'))
  first = {'mobilenet_v2': 'features_0', 'convnext_tiny': 'stem_conv'}[name]
  assert {k: v for k, v in small.items() if k != first} == {k: v for k, v in usual.items() if k != first}
