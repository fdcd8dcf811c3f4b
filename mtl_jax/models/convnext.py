"""ConvNeXt-Tiny as torchvision has it (Liu et al. 2022), NHWC, without its stochastic depth."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbone import Backbone, has_small_stem
from mtl_jax.models.convolution import check_halves, convolve

EPSILON = 1e-6
LAYER_SCALE = 1e-6  # What each block's branch is multiplied with at first.
KERNEL_INIT = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
  """7x7 depthwise, layer norm, two dense layers around a GELU, scaled for each channel and added to the input."""

  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    features = x.shape[-1]
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=KERNEL_INIT)
    depthwise = partial(
      nn.Conv, dtype=self.dtype, feature_group_count=features, conv_general_dilated=convolve, kernel_init=KERNEL_INIT
    )
    y = depthwise(features, (7, 7), padding=3, name='depthwise')(x)
    y = nn.LayerNorm(EPSILON, dtype=self.dtype, name='norm')(y)
    y = nn.gelu(dense(4 * features, name='expand')(y), approximate=False)
    y = dense(features, name='project')(y)
    scale = self.param('layer_scale', nn.initializers.constant(LAYER_SCALE), (features,), jnp.float32)
    return x + scale.astype(self.dtype) * y


class ConvNeXt(Backbone):
  """Images to features: `[b, h, w, 3]` normalised floats to `[b, 8 * width]`.

  Attributes:
    stage_sizes: blocks in each stage.
    width: features of the first stage; ConvNeXt-Tiny's is 96.
    stem: patches of 4 (`imagenet`) or 2 (`small`) pixels a side; `auto` takes the small ones for small images.
  """

  stage_sizes: Sequence[int] = (3, 3, 9, 3)
  width: int = 96
  stem: str = 'auto'
  remat: bool = False

  torchvision_names = (
    (r'^stem_conv', 'features.0.0'),
    (r'^stem_norm', 'features.0.1'),
    (r'^final_norm', 'classifier.0'),
    (r'^features_(\d)_norm', r'features.\1.0'),
    (r'^features_(\d)_conv', r'features.\1.1'),
    (r'^features_(\d)_(\d)', r'features.\1.\2'),
    (r'depthwise', 'block.0'),
    (r'norm', 'block.2'),
    (r'expand', 'block.3'),
    (r'project', 'block.5'),
  )

  def setup(self) -> None:
    self.final_norm = nn.LayerNorm(EPSILON, dtype=self.dtype)

  @property
  def num_stages(self) -> int:
    """The stem, and the stages of blocks."""
    return 1 + len(self.stage_sizes)

  @nn.compact
  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Float[Array, 'b h2 w2 c2']:
    del train
    patches = partial(nn.Conv, padding='VALID', dtype=self.dtype, kernel_init=KERNEL_INIT)
    norm = partial(nn.LayerNorm, EPSILON, dtype=self.dtype)
    if index == 0:
      size = 2 if has_small_stem(self.stem, x.shape) else 4
      check_halves(x)
      x = patches(self.width, (size, size), strides=size, name='stem_conv')(x.astype(self.dtype))
      return norm(name='stem_norm')(x)
    if index > 1:
      check_halves(x)
      x = norm(name=f'features_{2 * index - 2}_norm')(x)
      x = patches(self.width * 2 ** (index - 1), (2, 2), strides=2, name=f'features_{2 * index - 2}_conv')(x)
    block = nn.remat(Block) if self.remat else Block
    for i in range(self.stage_sizes[index - 1]):
      x = block(self.dtype, name=f'features_{2 * index - 1}_{i}')(x)
    return x

  def pool(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b c']:
    return self.final_norm(x.mean(axis=(1, 2)))

  def maps(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    return self.final_norm(x)

  def from_torchvision(self, name, tensor, shape):
    return tensor.reshape(-1) if name == 'layer_scale' else super().from_torchvision(name, tensor, shape)


convnext_tiny = ConvNeXt
