"""The nine-layer network that papers on balancing tasks train on CelebA at 64x64: seven convolutions, two dense layers.

As in the code of FAMO (Liu et al. 2023, arXiv:2306.03792), FairGrad and others after it: 64, 128, 128, 256, 256, 512,
512 features of 3x3 convolutions, max-pooled after the first, third and fifth, averaged over the map, then two dense
layers of 512; batch norm and ReLU after each of the nine. 5.19 M parameters.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models import normalization
from mtl_jax.models.backbone import Backbone
from mtl_jax.models.convnet import block
from mtl_jax.models.convolution import KERNEL_INIT, max_pool_2x2

CONVOLUTIONS = ((1,), (2, 2), (4, 4), (8, 8))  # Features of each stage's layers, in units of the width.
DENSE = (8, 8)


class Top(NamedTuple):
  """The last stage's output: the last convolution's map, and what the dense layers make of its mean."""

  maps: Float[Array, 'b h w c']
  features: Float[Array, 'b c']


class CelebACNN(Backbone):
  """Images to features: `[b, h, w, 3]` normalised floats to `[b, 8 * width]`; h and w at least 8."""

  width: int = 64
  norm: str = 'batch'
  norm_rows: int = 0
  dtype: Any = jnp.float32

  @property
  def num_stages(self) -> int:
    """The number of stages: convolutions, then one of dense layers, after which maps cannot be mixed."""
    return len(CONVOLUTIONS) + 1

  @nn.compact
  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Any:
    norm = normalization.make(self.norm, rows=self.norm_rows, train=train, dtype=self.dtype)
    last = index == len(CONVOLUTIONS)
    maps, x = x, x.mean(axis=(1, 2)) if last else x.astype(self.dtype)
    for i, factor in enumerate(DENSE if last else CONVOLUTIONS[index]):
      features, name = factor * self.width, f'{index + 1}_{i + 1}'
      if last:
        dense = nn.Dense(features, use_bias=False, dtype=self.dtype, kernel_init=KERNEL_INIT, name=f'dense{i + 1}')
        x = nn.relu(norm(name=f'bn{name}')(dense(x)))
      else:
        x = block(x, features, name, norm=norm, dtype=self.dtype)
    if last:
      return Top(maps, x)
    return max_pool_2x2(x) if index < len(CONVOLUTIONS) - 1 else x

  def pool(self, x: Top) -> Float[Array, 'b c']:
    return x.features

  def maps(self, x: Top) -> Float[Array, 'b h w c']:
    return x.maps
