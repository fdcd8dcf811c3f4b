"""Backbone, way of sharing and heads: images to `{task: outputs}`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.models import resnet
from mtl_jax.models.backbone import Representation
from mtl_jax.models.frozen import FrozenStages, cut
from mtl_jax.models.sharing import SHARING
from mtl_jax.tasks import Task

BACKBONES = {'resnet18': resnet.resnet18, 'resnet34': resnet.resnet34, 'resnet50': resnet.resnet50}


class Head(nn.Module):
  """Features -> hidden layer -> ReLU -> outputs, in float32 at the end."""

  hidden: int
  outputs: int
  dtype: Any

  @nn.compact
  def __call__(self, representation: Representation) -> Float[Array, 'b n']:
    hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(representation.features))
    return nn.Dense(self.outputs, dtype=self.dtype, name='output')(hidden).astype(jnp.float32)


class MultiTaskModel(nn.Module):
  """A shared part and a head per task. A single task is the same model with one head.

  Parameters are `shared` and `head_<task>` for each task; what is frozen lies in the collection `frozen` instead.

  Attributes:
    shared: images `[b, h, w, 3]`, or what the frozen stages make of them, to what the heads read: see
      `models/sharing`.
    outputs: the name and number of outputs of each task.
    head_features: width of each head's hidden layer.
    dtype: type of the computation; parameters are float32.
    frozen: the stages before `shared` that do not learn. `model.clone(frozen=None)` has the same parameters and
      takes the frozen stages' outputs instead of images.
  """

  shared: nn.Module
  outputs: Sequence[tuple[str, int]]
  head_features: int = 256
  dtype: Any = jnp.float32
  frozen: FrozenStages | None = None

  def represent(self, images: Float[Array, 'b h w 3'], *, train: bool) -> Representation | Mapping[str, Representation]:
    """What the heads read: one for all tasks, or one of each by name."""
    return self.shared(self.frozen(images, train=train) if self.frozen else images, train=train)

  @nn.compact
  def heads(
    self, representation: Representation | Mapping[str, Representation], *, train: bool
  ) -> dict[str, Float[Array, 'b n']]:
    """Every task's outputs."""
    del train
    return {
      name: Head(self.head_features, num_outputs, self.dtype, name=f'head_{name.replace("/", "_")}')(
        representation if isinstance(representation, Representation) else representation[name]
      )
      for name, num_outputs in self.outputs
    }

  def __call__(self, images: Float[Array, 'b h w 3'], *, train: bool) -> dict[str, Float[Array, 'b n']]:
    return self.heads(self.represent(images, train=train), train=train)


def from_config(config: ConfigDict, tasks: Sequence[Task]) -> MultiTaskModel:
  """The model that `config.model` asks for, with a head for each task."""
  name = choose(config.model.backbone, tuple(BACKBONES), field='config.model.backbone')
  sharing = choose(config.model.sharing, tuple(SHARING), field='config.model.sharing')
  dtype = compute_dtype(config.model.dtype)
  make_backbone = partial(BACKBONES[name], width=config.model.width, stem=config.model.stem, dtype=dtype)
  frozen_stages, backbone = cut(make_backbone, config.model)
  return MultiTaskModel(
    shared=SHARING[sharing](backbone=backbone, tasks=tuple(task.name for task in tasks)),
    outputs=tuple((task.name, task.num_outputs) for task in tasks),
    head_features=config.model.head_features,
    dtype=dtype,
    frozen=frozen_stages,
  )


def compute_dtype(name: str) -> Any:
  """The type a config names; `auto` is bfloat16 where the hardware is fast at it."""
  if name == 'auto':
    return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
  return {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}[name]
