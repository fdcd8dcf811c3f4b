"""MobileNetV2 as torchvision has it (Sandler et al. 2018), NHWC."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from mtl_jax.models import normalization
from mtl_jax.models.backbone import Backbone, has_small_stem
from mtl_jax.models.convolution import Conv
from mtl_jax.models.normalization import Normalization

# Of each group of blocks: expansion, features at width 32, number, stride of the first.
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
BLOCKS = [(ratio, size, stride if i == 0 else 1) for ratio, size, num, stride in SETTINGS for i in range(num)]
STAGES = (0, 1, 3, 6, 13, 17)  # The first block of each, and the end; a stage ends where the map shrinks next.
LAST_FEATURES = 1280


class InvertedResidual(nn.Module):
  """1x1 to more features, 3x3 depthwise, 1x1 to fewer without an activation, and a shortcut where shapes agree."""

  features: int
  stride: int
  expansion: int
  conv: Callable[..., nn.Module]
  norm: Normalization
  last_norm: Normalization

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 f']:
    hidden, y = x.shape[-1] * self.expansion, x
    if self.expansion != 1:
      y = self.conv(hidden, (1, 1), name='expand_conv')(y)
      y = nn.relu6(self.norm(name='expand_bn')(y))
    depthwise = self.conv(
      hidden, (3, 3), strides=self.stride, padding=1, feature_group_count=hidden, name='depthwise_conv'
    )
    y = nn.relu6(self.norm(name='depthwise_bn')(depthwise(y)))
    y = self.conv(self.features, (1, 1), name='project_conv')(y)
    if self.stride != 1 or x.shape[-1] != self.features:
      return self.norm(name='project_bn')(y)
    return x + self.last_norm(name='project_bn')(y)


class MobileNetV2(Backbone):
  """Images to features: `[b, h, w, 3]` normalised floats to `[b, 1280]`.

  Attributes:
    width: features of the first convolution; the published 32 is torchvision's `width_mult` of 1. All others scale
      with it and are rounded to multiples of 8.
    stem: a first convolution of stride 2 (`imagenet`) or 1 (`small`); `auto` takes the small one for small images.
  """

  width: int = 32
  stem: str = 'auto'
  norm: str = 'batch'
  norm_rows: int = 0
  remat: bool = False

  torchvision_names = (
    (r'^features_(\d+)', r'features.\1'),
    (r'^features\.(0|18)\.conv', r'features.\1.0'),
    (r'^features\.(0|18)\.bn', r'features.\1.1'),
    (r'^features\.1\.depthwise_conv', 'features.1.conv.0.0'),  # The first block does not expand.
    (r'^features\.1\.depthwise_bn', 'features.1.conv.0.1'),
    (r'^features\.1\.project_conv', 'features.1.conv.1'),
    (r'^features\.1\.project_bn', 'features.1.conv.2'),
    (r'expand_conv', 'conv.0.0'),
    (r'expand_bn', 'conv.0.1'),
    (r'depthwise_conv', 'conv.1.0'),
    (r'depthwise_bn', 'conv.1.1'),
    (r'project_conv', 'conv.2'),
    (r'project_bn', 'conv.3'),
  )

  num_stages = len(STAGES) - 1  # Each halves the map, but for a small stem.

  @nn.compact
  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Float[Array, 'b h2 w2 c2']:
    conv = partial(Conv, use_bias=False, dtype=self.dtype)
    norm = normalization.make(self.norm, rows=self.norm_rows, train=train, dtype=self.dtype)
    last_norm = normalization.last_of_branch(norm, self.norm)
    block = nn.remat(InvertedResidual) if self.remat else InvertedResidual
    conv_norm = partial(ConvNorm, conv=conv, norm=norm)
    if index == 0:
      stride = 1 if has_small_stem(self.stem, x.shape) else 2
      x = conv_norm(self._scaled(32), 3, stride, name='features_0')(x.astype(self.dtype))
    for i in range(STAGES[index], STAGES[index + 1]):
      expansion, features, stride = BLOCKS[i]
      x = block(self._scaled(features), stride, expansion, conv, norm, last_norm, name=f'features_{i + 1}')(x)
    if index == self.num_stages - 1:
      x = conv_norm(max(LAST_FEATURES, self._scaled(LAST_FEATURES)), 1, 1, name='features_18')(x)
    return x

  def _scaled(self, features: int) -> int:
    """Rounds as torchvision does: to a multiple of 8, and never down by more than a tenth."""
    exact = features * self.width / 32
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


class ConvNorm(nn.Module):
  """Convolution, normalisation, ReLU6."""

  features: int
  size: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Normalization

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 f']:
    conv = self.conv(self.features, (self.size, self.size), strides=self.stride, padding=self.size // 2, name='conv')
    return nn.relu6(self.norm(name='bn')(conv(x)))
