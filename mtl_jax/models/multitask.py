"""Backbone, way of sharing and heads: images to `{task: outputs}`."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.errors import ConfigError
from mtl_jax.models import resnet
from mtl_jax.models.backbone import Representation
from mtl_jax.models.heads import HEADS
from mtl_jax.models.sharing import SHARING, check_options
from mtl_jax.models.sharing.way import Sharing
from mtl_jax.tasks import Task

BACKBONES = {'resnet18': resnet.resnet18, 'resnet34': resnet.resnet34, 'resnet50': resnet.resnet50}


class MultiTaskModel(nn.Module):
  """A shared part and a head per task. A single task is the same model with one head.

  Parameters are `shared` and `head_<task>` for each task.

  Attributes:
    shared: images `[b, h, w, 3]` to what the heads read: see `models/sharing`.
    outputs: the name and number of outputs of each task.
    head_features: width of each head's hidden layer.
    head_kinds: for each task by name, which of `HEADS` it has; `mlp` where none is named.
    dtype: type of the computation; parameters are float32.
  """

  shared: Sharing
  outputs: Sequence[tuple[str, int]]
  head_features: int = 256
  head_kinds: Mapping[str, str] = FrozenDict()
  dtype: Any = jnp.float32

  def represent(self, images: Float[Array, 'b h w 3'], *, train: bool) -> Representation | Mapping[str, Representation]:
    """What the heads read: one for all tasks, or one of each by name."""
    return self.shared(images, train=train)

  @nn.compact
  def heads(
    self, representation: Representation | Mapping[str, Representation], *, train: bool
  ) -> dict[str, Float[Array, 'b n']]:
    """Every task's outputs."""
    del train
    return {
      name: HEADS[self.head_kinds.get(name, 'mlp')](
        num_outputs, self.head_features, self.dtype, name=f'head_{name.replace("/", "_")}'
      )(representation if isinstance(representation, Representation) else representation[name])
      for name, num_outputs in self.outputs
    }

  def __call__(self, images: Float[Array, 'b h w 3'], *, train: bool) -> dict[str, Float[Array, 'b n']]:
    return self.heads(self.represent(images, train=train), train=train)

  def penalty(self, params: Mapping[str, Any]) -> Float[Array, ''] | None:
    """What the way of sharing adds to the loss for its prior on parameters; None if it has none."""
    return self.shared.penalty(params)


def from_config(config: ConfigDict, tasks: Sequence[Task]) -> MultiTaskModel:
  """The model that `config.model` asks for, with a head for each task."""
  name = choose(config.model.backbone, tuple(BACKBONES), field='config.model.backbone')
  sharing = choose(config.model.sharing, tuple(SHARING), field='config.model.sharing')
  dtype = compute_dtype(config.model.dtype)
  backbone = BACKBONES[name](width=config.model.width, stem=config.model.stem, dtype=dtype)
  heads = {task.name: head_of(config, task) for task in tasks}
  shared = SHARING[sharing](
    backbone=backbone,
    tasks=tuple(task.name for task in tasks),
    spatial=any(HEADS[kind].spatial for kind in heads.values()),
    **check_options(sharing, config.model.sharing_options),
  )
  return MultiTaskModel(
    shared=shared,
    outputs=tuple((task.name, task.num_outputs) for task in tasks),
    head_features=config.model.head_features,
    head_kinds=FrozenDict(heads),
    dtype=dtype,
  )


def head_of(config: ConfigDict, task: Task) -> str:
  """A task's head: its own, or its group's, or that of all.

  Raises:
    ConfigError: for an unknown head, or one that gives coordinates where the task has none.
  """
  own = next((name for name in (task.name, task.group) if name in config.model.heads), None)
  kind, field = (config.model.heads[own], f'heads.{own}') if own else (config.model.head, 'head')
  choose(kind, tuple(HEADS), field=f'config.model.{field}')
  if HEADS[kind].spatial and not task.coordinates:
    raise ConfigError(
      f'config.model.{field}: {kind} gives coordinates, and {task.name} has none; '
      f'name a task of landmarks, as with --config.model.heads.landmarks={kind}'
    )
  return kind


def compute_dtype(name: str) -> Any:
  """The type a config names; `auto` is bfloat16 where the hardware is fast at it."""
  if name == 'auto':
    return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
  return {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}[name]
