"""Vision transformers S/16 and B/16 as torchvision has them (Dosovitskiy et al. 2021), without dropout."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mtl_jax.errors import ConfigError
from mtl_jax.models.backbone import Backbone

PATCH = 16  # Pixels a side.
HEAD_WIDTH = 64  # Of attention; narrower networks have a single head.
EPSILON = 1e-6
POSITION_INIT = nn.initializers.normal(0.02)


class EncoderLayer(nn.Module):
  """Self-attention and two dense layers around a GELU, each after a layer norm and added to its input."""

  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    width = x.shape[-1]
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    norm = partial(nn.LayerNorm, EPSILON, dtype=self.dtype)
    heads = max(1, width // HEAD_WIDTH)
    qkv = dense(3 * width, name='attention_in')(norm(name='ln_1')(x))
    query, key, value = (part.reshape(*x.shape[:2], heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
    x = x + dense(width, name='attention_out')(attended)
    hidden = nn.gelu(dense(4 * width, name='mlp_in')(norm(name='ln_2')(x)), approximate=False)
    return x + dense(width, name='mlp_out')(hidden)


class VisionTransformer(Backbone):
  """Images to the class token: `[b, h, w, 3]` normalised floats to `[b, width]`.

  Between stages lie tokens `[b, 1 + rows * columns, width]`, the class token first. Sides that patches do not divide
  are padded with the mean colour. Weights of another image size have their position embeddings resized (bicubic).

  Attributes:
    width: features of a token, a multiple of 64 or less than that.
    depth: encoder layers.
    groups: stages into which the layers are divided.
  """

  width: int = 768
  depth: int = 12
  groups: int = 4
  remat: bool = False

  torchvision_names = (
    (r'^patches', 'conv_proj'),
    (r'^(class_)?position', 'encoder.pos_embedding'),
    (r'^final_norm', 'encoder.ln'),
    (r'^layer_(\d+)', r'encoder.layers.encoder_layer_\1'),
    (r'attention_in\.', 'self_attention.in_proj_'),
    (r'attention_out', 'self_attention.out_proj'),
    (r'mlp_in', 'mlp.0'),
    (r'mlp_out', 'mlp.3'),
  )
  # torchvision's own files still have the names of its first version.
  torchvision_old_names = ((r'mlp\.linear_1', 'mlp.0'), (r'mlp\.linear_2', 'mlp.3'))

  def setup(self) -> None:
    self.final_norm = nn.LayerNorm(EPSILON, dtype=self.dtype)

  @property
  def num_stages(self) -> int:
    """The embedding of patches, and the groups of layers."""
    return 1 + self.groups

  @nn.compact
  def stage(self, x: Array, index: int, *, train: bool) -> Float[Array, 'b n c']:
    del train
    if index == 0:
      return self._embed(x)
    layer = nn.remat(EncoderLayer) if self.remat else EncoderLayer
    for i in range(self.depth * (index - 1) // self.groups, self.depth * index // self.groups):
      x = layer(self.dtype, name=f'layer_{i}')(x)
    return x

  def _embed(self, images: Float[Array, 'b h w 3']) -> Float[Array, 'b n c']:
    """Patches as tokens with their positions, after the class token. Part of the compact method."""
    if self.width > HEAD_WIDTH and self.width % HEAD_WIDTH:
      raise ConfigError(f'config.model.width: {self.width} is no multiple of {HEAD_WIDTH}, the width of a head')
    patches = nn.Conv(self.width, (PATCH, PATCH), strides=PATCH, padding='SAME', dtype=self.dtype, name='patches')
    x = patches(images.astype(self.dtype))
    position = self.param('position', POSITION_INIT, x.shape[1:], jnp.float32)
    first = self.param('class_token', nn.initializers.zeros, (self.width,), jnp.float32)
    first = first + self.param('class_position', POSITION_INIT, (self.width,), jnp.float32)
    tokens = (x + position.astype(self.dtype)).reshape(x.shape[0], -1, self.width)
    first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], 1, self.width))
    return jnp.concatenate([first, tokens], axis=1)

  def pool(self, x: Float[Array, 'b n c']) -> Float[Array, 'b c']:
    return self.final_norm(x[:, 0])

  def maps(self, x: Float[Array, 'b n c']) -> Float[Array, 'b h w c']:
    grid = self.get_variable('params', 'position').shape[:2]
    return self.final_norm(x[:, 1:]).reshape(x.shape[0], *grid, -1)

  def from_torchvision(self, name, tensor, shape):
    if name == 'class_token':
      return tensor.reshape(-1)
    if name == 'class_position':
      return tensor[0, 0]
    return _resized(tensor[0, 1:], shape) if name == 'position' else super().from_torchvision(name, tensor, shape)


def _resized(tokens: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Position embeddings `[side * side, c]` for a grid `[h, w, c]`."""
  side = math.isqrt(len(tokens))
  grid = tokens[: side * side].reshape(side, side, -1).astype(np.float32)
  if grid.shape[:2] == shape[:2]:
    return grid
  return np.asarray(jax.image.resize(grid, (*shape[:2], grid.shape[-1]), 'cubic'))


vit_s16 = partial(VisionTransformer, width=384)
vit_b16 = VisionTransformer
