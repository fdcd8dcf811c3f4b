"""Normalization after a convolution: batch norm over the global batch or parts of it, group norm."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
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
  if train:
    return partial(BatchNorm, rows=rows, dtype=dtype)
  return partial(nn.BatchNorm, use_running_average=True, momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype)


def last_of_branch(norm: Normalization, kind: str) -> Normalization:
  """The one before a residual branch is added: without statistics it starts at zero (SkipInit, De and Smith 2020).

  Otherwise each block would double the variance of what goes through it.
  """
  return partial(norm, scale_init=nn.initializers.zeros) if kind == 'none' else norm


class BatchNorm(nn.Module):
  """Batch norm in training over all rows, or over each `rows` consecutive ones (Ioffe and Szegedy 2015).

  The running statistics take in the parts' means. With a number of parts that the number of devices divides, each
  device normalises its rows alone. Parameters and statistics are named as `nn.BatchNorm` names them, which takes over
  in evaluation.
  """

  rows: int = 0
  dtype: Any = jnp.float32
  scale_init: Callable[..., Any] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, 'b *maps c']) -> Float[Array, 'b *maps c']:
    batch, *_, features = x.shape
    if self.rows and batch % self.rows:
      raise ValueError(f'a batch of {batch} rows has no parts of {self.rows}')
    mean_of_all = self.variable('batch_stats', 'mean', jnp.zeros, (features,), jnp.float32)
    var_of_all = self.variable('batch_stats', 'var', jnp.ones, (features,), jnp.float32)
    scale = self.param('scale', self.scale_init, (features,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (features,), jnp.float32)
    if self.rows:
      parts = x.reshape(batch // self.rows, self.rows, *x.shape[1:])
      y, *found = jax.vmap(_normalize, in_axes=(0, None, None))(parts, scale, bias)
      y, (mean, var) = y.reshape(x.shape), (values.mean(axis=0) for values in found)
    else:
      y, mean, var = _normalize(x, scale, bias)
    if not self.is_initializing():
      for running, found in ((mean_of_all, mean), (var_of_all, var)):
        running.value = MOMENTUM * running.value + (1 - MOMENTUM) * found
    return y.astype(self.dtype)


@jax.custom_vjp
def _normalize(
  x: Float[Array, 'b *maps c'], scale: Float[Array, ' c'], bias: Float[Array, ' c']
) -> tuple[Float[Array, 'b *maps c'], Float[Array, ' c'], Float[Array, ' c']]:
  """Maps that are normalised in float32, scaled and shifted; and their mean and variance, which take no gradient.

  The derivative is written out, since two sums serve it where automatic differentiation takes four.
  """
  return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x, scale, bias):
  wide, num = x.astype(jnp.float32), x[..., 0].size
  mean = _sum(wide) / num
  var = jnp.maximum(_sum(wide * wide) / num - mean * mean, 0)
  inverse = lax.rsqrt(var + EPSILON)
  return ((wide - mean) * (inverse * scale) + bias, mean, var), (x, scale, mean, inverse)


def _normalize_backward(kept, cotangents):
  x, scale, mean, inverse = kept
  dy, num = cotangents[0].astype(jnp.float32), x[..., 0].size
  normalized = (x.astype(jnp.float32) - mean) * inverse
  to_bias, to_scale = _sum(dy), _sum(dy * normalized)
  dx = (dy - to_bias / num - normalized * (to_scale / num)) * (inverse * scale)
  return dx.astype(x.dtype), to_scale, to_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _sum(x: Float[Array, 'b *maps c']) -> Float[Array, ' c']:
  """Sums over all but features; on a CPU over each line of a map first, which is faster there."""
  if jax.default_backend() == 'cpu' and x.ndim > 2:
    x = lax.optimization_barrier(x.sum(axis=-2))
  return x.sum(axis=tuple(range(x.ndim - 1)))


class GroupNorm(nn.Module):
  """Group norm of 32 groups, or as many as divide the number of channels; each image by itself."""

  dtype: Any = jnp.float32
  scale_init: Callable[..., Any] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, 'b *maps c']) -> Float[Array, 'b *maps c']:
    groups = max(n for n in range(1, GROUPS + 1) if x.shape[-1] % n == 0)
    norm = nn.GroupNorm(groups, epsilon=EPSILON, dtype=self.dtype, scale_init=self.scale_init, name='group')
    return norm(x)


class Affine(nn.Module):
  """A scale and a bias for each channel."""

  dtype: Any = jnp.float32
  scale_init: Callable[..., Any] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, 'b *maps c']) -> Float[Array, 'b *maps c']:
    scale = self.param('scale', self.scale_init, x.shape[-1:], jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:], jnp.float32)
    return x.astype(self.dtype) * scale.astype(self.dtype) + bias.astype(self.dtype)
