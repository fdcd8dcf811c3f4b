"""ResNet-18, -34 and -50 as torchvision has them (stride in the 3x3 convolution of a bottleneck), NHWC."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from mtl_jax.models import normalization
from mtl_jax.models.backbone import Backbone, has_small_stem
from mtl_jax.models.convolution import Conv, max_pool_3x3
from mtl_jax.models.normalization import Normalization


class Block(nn.Module):
  """The fields of a residual block (He et al. 2016), and its shortcut."""

  features: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Normalization
  last_norm: Normalization
  expansion: ClassVar[int] = 1

  def shortcut(self, x: Float[Array, 'b h w c'], features: int) -> Float[Array, 'b h2 w2 f']:
    """The block's input, projected where its size or width changes."""
    if x.shape[-1] == features and self.stride == 1:
      return x
    x = self.conv(features, (1, 1), strides=self.stride, padding=0, name='downsample_conv')(x)
    return self.norm(name='downsample_bn')(x)


class BasicBlock(Block):
  """Two 3x3 convolutions and a shortcut."""

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 f']:
    y = self.conv(self.features, (3, 3), strides=self.stride, padding=1, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = self.conv(self.features, (3, 3), padding=1, name='conv2')(y)
    y = self.last_norm(name='bn2')(y)
    return nn.relu(y + self.shortcut(x, y.shape[-1]))


class BottleneckBlock(Block):
  """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 one carries the stride."""

  expansion: ClassVar[int] = 4

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 f']:
    y = nn.relu(self.norm(name='bn1')(self.conv(self.features, (1, 1), name='conv1')(x)))
    y = self.conv(self.features, (3, 3), strides=self.stride, padding=1, name='conv2')(y)
    y = nn.relu(self.norm(name='bn2')(y))
    y = self.conv(4 * self.features, (1, 1), name='conv3')(y)
    y = self.last_norm(name='bn3')(y)
    return nn.relu(y + self.shortcut(x, y.shape[-1]))


class ResNet(Backbone):
  """Images to features: `[b, h, w, 3]` normalised floats to `[b, 8 * width * expansion]`.

  Attributes:
    stage_sizes: blocks in each of the four stages.
    block: `BasicBlock` or `BottleneckBlock`.
    width: features of the first stage; torchvision's is 64.
    stem: `imagenet` (7x7 of stride 2, max-pool) or `small` (3x3 of stride 2, no pool); `auto` takes the small
      one for small images.
  """

  stage_sizes: Sequence[int]
  block: type[Block]
  width: int = 64
  stem: str = 'auto'
  norm: str = 'batch'
  norm_rows: int = 0
  remat: bool = False

  torchvision_names = (
    (r'layer(\d)_(\d+)', r'layer\1.\2'),
    (r'downsample_conv', 'downsample.0'),
    (r'downsample_bn', 'downsample.1'),
  )

  @property
  def num_stages(self) -> int:
    """The stem and the four stages of blocks."""
    return 1 + len(self.stage_sizes)

  @nn.compact
  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Float[Array, 'b h2 w2 c2']:
    conv = partial(Conv, use_bias=False, dtype=self.dtype)
    norm = normalization.make(self.norm, rows=self.norm_rows, train=train, dtype=self.dtype)
    last_norm = normalization.last_of_branch(norm, self.norm)
    if index == 0:
      small = has_small_stem(self.stem, x.shape)
      size, padding = ((3, 3), 1) if small else ((7, 7), 3)
      x = conv(self.width, size, strides=2, padding=padding, name='conv1')(x.astype(self.dtype))
      x = nn.relu(norm(name='bn1')(x))
      return x if small else max_pool_3x3(x)
    make_block = nn.remat(self.block) if self.remat else self.block
    for block in range(self.stage_sizes[index - 1]):
      stride = 2 if index > 1 and block == 0 else 1
      features = self.width * 2 ** (index - 1)
      x = make_block(features, stride, conv, norm, last_norm, name=f'layer{index}_{block}')(x)
    return x


resnet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
resnet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
resnet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock)
