"""What stands between a convolution and its activation: batch norm over the global batch or parts of it, group norm."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

MOMENTUM, EPSILON = 0.9, 1e-5  # torchvision's; it writes the momentum as 0.1, the weight of the new value.
GROUPS = 32  # Of group norm, as Wu and He (2018) have it.

# Makes a normalisation module: `(name=, scale_init=)`.
Normalization = Callable[..., nn.Module]


def make(kind: str, *, rows: int, train: bool, dtype: Any) -> Normalization:
  """The normalisation that `config.model.norm` names.

  `batch` in training takes statistics over all rows of the global batch, wherever they lie, or over each `rows`
  consecutive ones; what is computed does not depend on the number of devices. `none` is a scale and a bias alone.
  """
  if kind == 'group':
    return partial(GroupNorm, dtype=dtype)
  if kind == 'none':
    return partial(Affine, dtype=dtype)
  if rows and train:
    return partial(PartialBatchNorm, rows=rows, dtype=dtype)
  return partial(nn.BatchNorm, use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype)


def last_of_branch(norm: Normalization, kind: str) -> Normalization:
  """The one before a residual branch is added: without statistics it starts at zero (SkipInit, De and Smith 2020).

  Otherwise each block would double the variance of what goes through it.
  """
  return partial(norm, scale_init=nn.initializers.zeros) if kind == 'none' else norm


class PartialBatchNorm(nn.Module):
  """Batch norm in training over each `rows` consecutive rows; the running statistics take in the parts' means.

  With a number of parts that the number of devices divides, each device normalises its rows alone. Parameters and
  statistics are named as `nn.BatchNorm` names them, which takes over in evaluation.
  """

  rows: int
  dtype: Any = jnp.float32
  scale_init: Callable[..., Any] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    batch, *_, features = x.shape
    if batch % self.rows:
      raise ValueError(f'a batch of {batch} rows has no parts of {self.rows}')
    mean_of_all = self.variable('batch_stats', 'mean', jnp.zeros, (features,), jnp.float32)
    var_of_all = self.variable('batch_stats', 'var', jnp.ones, (features,), jnp.float32)
    scale = self.param('scale', self.scale_init, (features,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (features,), jnp.float32)
    parts = x.astype(jnp.float32).reshape(batch // self.rows, -1, features)
    mean = parts.mean(axis=1, keepdims=True)
    var = jnp.maximum((parts * parts).mean(axis=1, keepdims=True) - mean * mean, 0)
    if not self.is_initializing():
      for running, found in ((mean_of_all, mean), (var_of_all, var)):
        running.value = MOMENTUM * running.value + (1 - MOMENTUM) * found.mean(axis=(0, 1))
    y = (parts - mean) * (lax.rsqrt(var + EPSILON) * scale) + bias
    return y.reshape(x.shape).astype(self.dtype)


class GroupNorm(nn.Module):
  """Group norm of 32 groups, or as many as divide the number of channels; each image by itself."""

  dtype: Any = jnp.float32
  scale_init: Callable[..., Any] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    groups = max(n for n in range(1, GROUPS + 1) if x.shape[-1] % n == 0)
    norm = nn.GroupNorm(groups, epsilon=EPSILON, dtype=self.dtype, scale_init=self.scale_init, name='group')
    return norm(x)


class Affine(nn.Module):
  """A scale and a bias for each channel."""

  dtype: Any = jnp.float32
  scale_init: Callable[..., Any] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    scale = self.param('scale', self.scale_init, x.shape[-1:], jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:], jnp.float32)
    return x.astype(self.dtype) * scale.astype(self.dtype) + bias.astype(self.dtype)
