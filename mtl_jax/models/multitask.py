"""One backbone and a head per task: images to `{task: outputs}`."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.models import resnet
from mtl_jax.tasks import Task

BACKBONES = {'resnet18': resnet.resnet18, 'resnet34': resnet.resnet34, 'resnet50': resnet.resnet50}


class Head(nn.Module):
  """Features -> hidden layer -> ReLU -> outputs, in float32 at the end."""

  hidden: int
  outputs: int
  dtype: Any

  @nn.compact
  def __call__(self, features: Float[Array, 'b f']) -> Float[Array, 'b n']:
    hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(features))
    return nn.Dense(self.outputs, dtype=self.dtype, name='output')(hidden).astype(jnp.float32)


class MultiTaskModel(nn.Module):
  """Hard sharing: all heads read the same features. A single task is the same model with one head.

  Attributes:
    backbone: images `[b, h, w, 3]` to features `[b, f]`.
    heads: the name and number of outputs of each task.
    head_features: width of each head's hidden layer.
    dtype: type of the computation; parameters are float32.
  """

  backbone: nn.Module
  heads: Sequence[tuple[str, int]]
  head_features: int = 256
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w 3'], *, train: bool) -> dict[str, Float[Array, 'b n']]:
    features = self.backbone(images, train=train)
    return {
      name: Head(self.head_features, outputs, self.dtype, name=f'head_{name.replace("/", "_")}')(features)
      for name, outputs in self.heads
    }


def from_config(config: ConfigDict, tasks: Sequence[Task]) -> MultiTaskModel:
  """The model that `config.model` asks for, with a head for each task."""
  name = choose(config.model.backbone, tuple(BACKBONES), field='config.model.backbone')
  dtype = compute_dtype(config.model.dtype)
  backbone = BACKBONES[name](width=config.model.width, stem=config.model.stem, dtype=dtype, name='backbone')
  heads = tuple((task.name, task.num_outputs) for task in tasks)
  return MultiTaskModel(backbone=backbone, heads=heads, head_features=config.model.head_features, dtype=dtype)


def compute_dtype(name: str) -> Any:
  """The type a config names; `auto` is bfloat16 where the hardware is fast at it."""
  if name == 'auto':
    return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
  return {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}[name]
