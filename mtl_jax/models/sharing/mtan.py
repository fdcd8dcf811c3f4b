"""MTAN (Liu et al. 2019): one shared net, and for each task masks on its maps, computed from them.

After every stage but the first: `a_t = mask_t * x` with `mask_t = sigmoid(norm(h(relu(norm(g([x, f(a_t
below)]))))))`; g and h are 1x1 convolutions, f is a 3x3 one with norm and ReLU that brings the map below to the size
of x. Heads read the last `a_t`. The paper takes the mask from the first convolution of a block and puts it on the
last one's output; a stage here is opaque, so both are its output. On tokens f is linear.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbone import Representation
from mtl_jax.models.convolution import convolve
from mtl_jax.models.sharing.way import Sharing, name_of


class Mtan(Sharing):
  """A representation for each task."""

  @nn.compact
  def __call__(self, images, *, train: bool) -> dict[str, Representation]:
    x = self.backbone.stage(images, 0, train=train)
    attended: dict[str, Array] = {}
    for index in range(1, self.backbone.num_stages):
      x = self.backbone.stage(x, index, train=train)
      for task in self.tasks:
        attention = Attention(name=f'{name_of("attention", task)}_{index}')
        attended[task] = attention(x, attended.get(task), train=train)
    return {task: self.backbone.represent(attended.get(task, x), spatial=self.spatial) for task in self.tasks}


class Attention(nn.Module):
  """A task's mask on a stage's output."""

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b ... c'], below: Float[Array, 'b ... d'] | None, *, train: bool
  ) -> Float[Array, 'b ... c']:
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=x.dtype)
    dense = partial(nn.Dense, x.shape[-1], dtype=x.dtype, use_bias=False)
    seen = x
    if below is not None:
      carried = nn.relu(norm(name='carry_norm')(Carry(name='carry')(below, like=x)))
      seen = jnp.concatenate([x, carried], axis=-1)
    hidden = nn.relu(norm(name='hidden_norm')(dense(name='hidden')(seen)))
    return nn.sigmoid(norm(name='mask_norm')(dense(name='mask')(hidden))) * x


class Carry(nn.Module):
  """A map brought to the size and width of a deeper one by a 3x3 convolution; tokens only to the width."""

  @nn.compact
  def __call__(self, below: Float[Array, 'b ... d'], *, like: Float[Array, 'b ... c']) -> Float[Array, 'b ... c']:
    if like.ndim != 4:
      return nn.Dense(like.shape[-1], dtype=like.dtype, use_bias=False, name='conv')(below)
    strides = tuple(max(1, a // b) for a, b in zip(below.shape[1:3], like.shape[1:3], strict=True))
    conv = partial(nn.Conv, padding=1, use_bias=False, dtype=like.dtype, conv_general_dilated=convolve)
    carried = conv(like.shape[-1], (3, 3), strides=strides, name='conv')(below)
    return carried[:, : like.shape[1], : like.shape[2]]  # Where a stage rounds an odd size down.
