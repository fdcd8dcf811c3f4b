"""The small network of PyTorch's multi-task example: two blocks of a 3x3 convolution, ReLU and 2x2 max-pooling."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models import normalization
from mtl_jax.models.backbone import Backbone
from mtl_jax.models.convolution import KERNEL_INIT, convolve, max_pool_2x2

BLOCKS = 2


class ConvNet(Backbone):
  """Images to features: `[b, h, w, 3]` normalised floats to the last map, flattened, `[b, h/4 * w/4 * 2 * width]`.

  Attributes:
    width: features of the first block, half of the second's; the example's is 16.
    norm: see `normalization.make`; the example has none.
    norm_rows: likewise.
    dtype: type of the computation; parameters are float32.
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
    plain = self.norm == 'none'
    features, name = self.width * 2**index, f'conv{index + 1}'
    conv = nn.Conv(features, (3, 3), padding=1, use_bias=plain, dtype=self.dtype, kernel_init=KERNEL_INIT,
                   conv_general_dilated=convolve, name=name)  # fmt: skip
    x = conv(x.astype(self.dtype))
    if not plain:
      norm = normalization.make(self.norm, rows=self.norm_rows, train=train, dtype=self.dtype)
      x = norm(name=f'bn{index + 1}')(x)
    return max_pool_2x2(nn.relu(x))

  def pool(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b f']:
    return x.reshape(x.shape[0], -1)
