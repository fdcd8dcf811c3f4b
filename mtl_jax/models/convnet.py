"""Two plain convolutional networks: that of PyTorch's multi-task example, and one for CelebA."""

from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from mtl_jax.models import normalization
from mtl_jax.models.backbone import Backbone
from mtl_jax.models.convolution import KERNEL_INIT, Conv, max_pool_2x2
from mtl_jax.models.normalization import Normalization


def block(x: Array, features: int, name: str, *, norm: Normalization | None, dtype: Any) -> Array:
  """A 3x3 convolution, with a bias where no normalisation follows, and ReLU. Called inside a backbone."""
  x = Conv(features, (3, 3), padding=1, use_bias=norm is None, dtype=dtype, name=f'conv{name}')(x)
  return nn.relu(x if norm is None else norm(name=f'bn{name}')(x))


class ConvNet(Backbone):
  """PyTorch's example: two blocks of a 3x3 convolution, ReLU and 2x2 max-pooling, and the last map flattened.

  Images `[b, h, w, 3]`, normalised floats, to features `[b, h/4 * w/4 * 2 * width]`.

  Attributes:
    width: features of the first block, half of the second's; the example's is 16.
    norm: `none` as in the example, or another.
  """

  width: int = 16
  norm: str = 'none'
  norm_rows: int = 0

  num_stages = 2  # Each halves the map.

  @nn.compact
  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Float[Array, 'b h2 w2 c2']:
    norm = normalization.make(self.norm, rows=self.norm_rows, train=train, dtype=self.dtype)
    norm = None if self.norm == 'none' else norm
    x = block(x.astype(self.dtype), self.width * 2**index, f'{index + 1}', norm=norm, dtype=self.dtype)
    return max_pool_2x2(x)

  def pool(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b f']:
    return x.reshape(x.shape[0], -1)


CONVOLUTIONS = ((1,), (2, 2), (4, 4), (8, 8))  # Features of each stage's layers, in units of the width.


class Top(NamedTuple):
  """The last stage's output: the last convolution's map, and what the dense layers make of its mean."""

  maps: Float[Array, 'b h w c']
  features: Float[Array, 'b c']


class CelebACNN(Backbone):
  """The nine-layer network that papers on balancing tasks train on CelebA at 64x64: `[b, h, w, 3]` to `[b, 8 * width]`.

  As in the code of FAMO (Liu et al. 2023, arXiv:2306.03792), FairGrad and others after it: 64, 128, 128, 256, 256, 512,
  512 features of 3x3 convolutions, max-pooled after the first, third and fifth, averaged over the map, then two dense
  layers of 512; batch norm and ReLU after each of the nine. 5.19 M parameters. Images are at least 8 pixels a side.
  """

  width: int = 64
  norm: str = 'batch'
  norm_rows: int = 0

  num_stages = len(CONVOLUTIONS) + 1  # The last are dense layers, after which maps cannot be mixed.

  @nn.compact
  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Any:
    norm = normalization.make(self.norm, rows=self.norm_rows, train=train, dtype=self.dtype)
    if index == len(CONVOLUTIONS):
      features = x.mean(axis=(1, 2))
      for i in (1, 2):
        dense = nn.Dense(8 * self.width, use_bias=False, dtype=self.dtype, kernel_init=KERNEL_INIT, name=f'dense{i}')
        features = nn.relu(norm(name=f'bn{index + 1}_{i}')(dense(features)))
      return Top(x, features)
    x = x.astype(self.dtype)
    for i, factor in enumerate(CONVOLUTIONS[index], 1):
      x = block(x, factor * self.width, f'{index + 1}_{i}', norm=norm, dtype=self.dtype)
    return max_pool_2x2(x) if index < len(CONVOLUTIONS) - 1 else x

  def pool(self, x: Top) -> Float[Array, 'b c']:
    return x.features

  def maps(self, x: Top) -> Float[Array, 'b h w c']:
    return x.maps
