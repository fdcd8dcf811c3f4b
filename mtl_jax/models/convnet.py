"""The small network of PyTorch's multi-task example: two blocks of a 3x3 convolution, ReLU and 2x2 max-pooling."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models import normalization
from mtl_jax.models.backbone import Backbone
from mtl_jax.models.convolution import Conv, max_pool_2x2
from mtl_jax.models.normalization import Normalization

BLOCKS = 2


def block(x: Array, features: int, name: str, *, norm: Normalization | None, dtype: Any) -> Array:
  """A 3x3 convolution, with a bias where no normalisation follows, and ReLU. Called inside a backbone."""
  x = Conv(features, (3, 3), padding=1, use_bias=norm is None, dtype=dtype, name=f'conv{name}')(x)
  return nn.relu(x if norm is None else norm(name=f'bn{name}')(x))


class ConvNet(Backbone):
  """Images to features: `[b, h, w, 3]` normalised floats to the last map, flattened, `[b, h/4 * w/4 * 2 * width]`.

  Attributes:
    width: features of the first block, half of the second's; the example's is 16.
    norm: `none` as in the example, or another.
  """

  width: int = 16
  norm: str = 'none'
  norm_rows: int = 0
  dtype: Any = jnp.float32

  @property
  def num_stages(self) -> int:
    """Each halves the map."""
    return BLOCKS

  @nn.compact
  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Float[Array, 'b h2 w2 c2']:
    norm = normalization.make(self.norm, rows=self.norm_rows, train=train, dtype=self.dtype)
    norm = None if self.norm == 'none' else norm
    x = block(x.astype(self.dtype), self.width * 2**index, f'{index + 1}', norm=norm, dtype=self.dtype)
    return max_pool_2x2(x)

  def pool(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b f']:
    return x.reshape(x.shape[0], -1)
