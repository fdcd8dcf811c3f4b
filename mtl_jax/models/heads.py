"""Heads, from a backbone's features or map to a task's outputs; the last layer is in float32."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbone import Representation
from mtl_jax.models.convolution import Conv


class Head(nn.Module):
  """The settings that every head is made with.

  Attributes:
    outputs: how many there are.
    hidden: width of the hidden layer, where there is one.
    dtype: type of the computation; parameters are float32.
  """

  outputs: int
  hidden: int
  dtype: Any

  spatial: ClassVar[bool] = False  # Reads maps, and gives x and y of points in turn: for tasks of coordinates.
  dense: ClassVar[bool] = False  # Reads maps, and gives a map of logits: for dense tasks.

  def __call__(self, representation: Representation) -> Float[Array, 'b ... n']:
    """The task's outputs, from what the backbone gives: `representation.features` and, for maps, `.maps`."""
    raise NotImplementedError(f'{type(self).__name__} has no method __call__(self, representation)')


class Mlp(Head):
  """Features -> hidden layer -> ReLU -> outputs."""

  @nn.compact
  def __call__(self, representation):
    hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(representation.features))
    return nn.Dense(self.outputs, dtype=self.dtype, name='output')(hidden).astype(jnp.float32)


class Linear(Head):
  """Features -> outputs."""

  @nn.compact
  def __call__(self, representation):
    return nn.Dense(self.outputs, dtype=self.dtype, name='output')(representation.features).astype(jnp.float32)


class PerOutput(Head):
  """A head of one output for each, side by side; their parameters have a first axis for them."""

  @nn.compact
  def __call__(self, representation):
    axes = {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}, 'in_axes': None}
    side_by_side = nn.vmap(Mlp, axis_size=self.outputs, **axes)
    each = side_by_side(1, self.hidden, self.dtype, name='each')(representation)
    return each[..., 0].T


class SoftArgmax(Head):
  """A heat map for each point, and where its mass lies (Sun et al. 2018, "Integral human pose regression").

  1x1 convolutions make the heat maps, a softmax over places makes them probabilities, and the expected place, `(x,
  y)` of pixel centres in [0, 1], is a point's coordinate. Coordinates are learned in units of the train split's
  spread, which a model does not know, so each is put there by a scale and an offset that are learned: `(place -
  offset) * scale`. They begin at the image's centre, where a flat heat map lies, which thereby means the mean face,
  and at a spread of 1/20. A heat map's peak is therefore near its point, but need not be on it.
  """

  spatial: ClassVar[bool] = True
  doublings: ClassVar[int] = 0  # Of the maps' sides, before heat is read from them.

  @nn.compact
  def __call__(self, representation):
    maps = representation.maps
    assert maps is not None  # The model asks for maps where a head is spatial.
    maps = doubled(maps, self.doublings, width=self.hidden, dtype=self.dtype)
    hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(maps))
    heat = nn.Dense(self.outputs // 2, dtype=self.dtype, name='heat')(hidden).astype(jnp.float32)
    places = expected_places(heat).reshape(heat.shape[0], -1)
    offset = self.param('offset', nn.initializers.constant(0.5), (self.outputs,))
    scale = self.param('scale', nn.initializers.constant(20.0), (self.outputs,))
    return (places - offset) * scale


class UpsampledSoftArgmax(SoftArgmax):
  """The same over maps eight times as fine, made by three doublings with a 3x3 convolution each.

  As in Xiao et al. 2018 ("Simple baselines for human pose estimation"), with repeated pixels and a convolution in place
  of a transposed one (Odena et al. 2016), and without batch norm. Its convolutions are `hidden` features wide.
  """

  doublings: ClassVar[int] = 3


class Decoder(Head):
  """Logits `[b, 4 h, 4 w, c]` over the last maps `[b, h, w, f]`, made finer by two doublings with a convolution each.

  As `UpsampledSoftArgmax`; the task enlarges them to its labels' size. Its convolutions are a quarter of `hidden` wide.
  """

  dense: ClassVar[bool] = True

  @nn.compact
  def __call__(self, representation):
    maps = representation.maps
    assert maps is not None  # The model asks for maps where a head is dense.
    width = max(self.hidden // 4, 1)
    maps = nn.relu(nn.Dense(width, dtype=self.dtype, name='hidden')(maps))
    maps = doubled(maps, 2, width=width, dtype=self.dtype)
    return nn.Dense(self.outputs, dtype=self.dtype, name='output')(maps).astype(jnp.float32)


def doubled(maps: Float[Array, 'b h w f'], times: int, *, width: int, dtype: Any) -> Float[Array, 'b h2 w2 c']:
  """Maps made finer, each time by repeating pixels and a 3x3 convolution with ReLU. Called inside a head."""
  for i in range(times):
    conv = Conv(width, (3, 3), padding=1, dtype=dtype, name=f'doubled{i}')
    maps = nn.relu(conv(maps.repeat(2, axis=1).repeat(2, axis=2)))
  return maps


def expected_places(heat: Float[Array, 'b h w p']) -> Float[Array, 'b p 2']:
  """`(x, y)` of the mean pixel centre under a softmax over places, as fractions of width and height."""
  batch, height, width, points = heat.shape
  share = jax.nn.softmax(heat.reshape(batch, height * width, points), axis=1).reshape(heat.shape)
  x, y = ((jnp.arange(size) + 0.5) / size for size in (width, height))
  return jnp.stack([(share.sum(1) * x[:, None]).sum(1), (share.sum(2) * y[:, None]).sum(1)], axis=-1)


# A new head is a class here and a line.
HEADS: dict[str, type[Head]] = {
  'mlp': Mlp,
  'linear': Linear,
  'per_output': PerOutput,
  'soft_argmax': SoftArgmax,
  'upsampled_soft_argmax': UpsampledSoftArgmax,
  'decoder': Decoder,
}
