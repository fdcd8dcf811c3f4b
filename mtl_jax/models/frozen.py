"""Splits a backbone into frozen stages and the trainable ones after them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mtl_jax.errors import ConfigError
from mtl_jax.models.backbone import Backbone

MakeBackbone = Callable[..., Backbone]


class FrozenStages(nn.Module):
  """The first stages of a backbone, from images to what the rest reads, outside of what is differentiated.

  Their weights and batch statistics are no parameters of the model: they lie in its collection `frozen`, so that
  no optimizer, average, or gradient ever meets them.

  Attributes:
    make: makes the whole backbone.
    num_frozen: how many stages are frozen.
    pooled: pool the last stage's output to features.
    drift: in training, batch norm uses the batch's statistics and their averages go on moving.
  """

  make: MakeBackbone
  num_frozen: int
  pooled: bool
  drift: bool = False

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w 3'], *, train: bool) -> Array:
    stages: Any = Part(self.make, end=self.num_frozen, parent=None)
    method = '__call__' if self.pooled else 'apply_stages'
    key = self.make_rng('params') if self.is_initializing() else None
    held = self.variable('frozen', 'variables', lambda: dict(stages.init(key, images, train=False, method=method)))
    if not (self.drift and train):
      return jax.lax.stop_gradient(stages.apply(held.value, images, train=False, method=method))
    outputs, moved = stages.apply(held.value, images, train=True, method=method, mutable=['batch_stats'])
    held.value = {**held.value, **moved}
    return jax.lax.stop_gradient(outputs)


class Part(Backbone):
  """Some of a backbone's stages, and after the last the layers of a trunk.

  A trunk's layer is a stage, so every way of sharing can connect trunks as it connects stages.

  Attributes:
    make: makes the whole backbone.
    end: the stage before which to end.
    first: the first stage.
    pooled: what comes in was pooled to features.
    trunk: widths of the dense layers, each with a ReLU, that follow the backbone's pooling.
  """

  make: MakeBackbone
  end: int
  first: int = 0
  pooled: bool = False
  trunk: tuple[int, ...] = ()

  def setup(self) -> None:
    self.backbone = self.make()
    self.trunk_layers = [nn.Dense(width, dtype=self.backbone.dtype) for width in self.trunk]  # pyright: ignore

  @property
  def num_stages(self) -> int:
    """The backbone's stages that are in it, and the trunk's layers."""
    return self.end - self.first + len(self.trunk)

  def stage(self, x: Array, index: int, *, train: bool) -> Array:
    layer = index - (self.end - self.first)
    if layer < 0:
      return self.backbone.stage(x, self.first + index, train=train)
    if layer == 0 and not self.pooled:
      x = self.backbone.pool(x)
    return nn.relu(self.trunk_layers[layer](x))

  def pool(self, x: Array) -> Float[Array, 'b f']:
    return x if self.trunk or self.pooled else self.backbone.pool(x)

  def maps(self, x: Array) -> Float[Array, 'b h w c']:
    if self.trunk:
      raise ConfigError('config.model.trunk_features: a head that reads maps cannot follow a trunk; leave it empty')
    return self.backbone.maps(x)


def cut(make: MakeBackbone, model: ConfigDict, *, spatial: bool = False) -> tuple[FrozenStages | None, Backbone]:
  """Splits a backbone into the frozen stages that `model.freeze` names, if any, and the trainable rest.

  Args:
    make: makes the whole backbone.
    model: the group `model` of a configuration.
    spatial: some head reads maps, so that the frozen stages' last map must not be pooled.

  Raises:
    ConfigError: for a stage that the backbone has not.
  """
  trunk = tuple(int(width) for width in model.trunk_features)
  num_stages = make().num_stages
  num_frozen = _num_frozen(model.freeze, num_stages)
  if num_frozen > num_stages:
    raise ConfigError(
      f'config.model.freeze={model.freeze}: {model.backbone} has the stages 0 to {num_stages - 1}; choose one of '
      'them, or backbone for all'
    )
  if not num_frozen and not trunk:
    return None, make()
  pooled = num_frozen == num_stages and not spatial
  frozen = FrozenStages(make, num_frozen, pooled, drift=model.frozen_statistics == 'drift') if num_frozen else None
  return frozen, Part(make, end=num_stages, first=num_frozen, pooled=pooled, trunk=trunk)


def _num_frozen(freeze: str, num_stages: int) -> int:
  """The number of stages that `''`, `backbone`, or `stage<N>` (all up to stage N, from 0) freezes."""
  if freeze in ('', 'backbone'):
    return num_stages if freeze else 0
  return int(freeze.removeprefix('stage')) + 1
