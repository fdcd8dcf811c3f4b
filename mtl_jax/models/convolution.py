"""Convolution and max-pooling in the form that is fastest on the platform at hand; the numbers are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Up to so many pixels a side of a map, after the stride, one matrix product over gathered patches is faster on a CPU
# than XLA's convolution. 3x3, forward and both gradients, batch 64, one thread, jaxlib 0.10.2, product against native:
# 2x2 maps of 512 channels 45 against 2,253 ms, 4x4 to 2x2 of 256 12 against 123, 4x4 of 512 186 against 176.
IM2COL_UP_TO = 2

# Depthwise kernels up to this size are faster as shifted products: 3x3 on 14x14 maps of 384 channels, batch 8, forward
# 0.5 ms against 29, with gradients 8 against 88. All of ConvNeXt with its 7x7 ones was no faster with gradients (7.4
# against 6.0 s a step on a busy machine), and compiled six times as long.
SHIFTED_UP_TO = 3

COLOURS = 3  # Channels of an image.

# A 7x7 stem up to so many features is faster over blocks of pixels on a CPU. Forward and the kernel's gradient, one
# thread of a busy machine, the least of four, jaxlib 0.10.2, blocks against native, ms: 32 features, batch 8, 224 px 29
# against 58, 128 px 10 against 19; 16 features, batch 16, 128 px 20 against 21; 48 features 37 against 34; 64 features,
# batch 4, 224 px 27 against 25. Padded to 4 and 8 channels: 64 features, batch 8, 128 px 19 and 36 against 15; 32
# features, batch 16 22 and 37, where native takes 40 and blocks 19.
BLOCKS_UP_TO, BLOCKS_FROM_KERNEL = 32, 7

# He et al. 2015, as torchvision draws it: fan-out, normal.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# Forms of a convolution that reads images: as it stands; with their channels padded by zeros; over 2x2 blocks of
# pixels, whose kernel is half as large.
STEM_FORMS = ('native', 'channels_4', 'channels_8', 'space_to_depth')

_BY_PLATFORM: ContextVar[bool] = ContextVar('by_platform', default=False)
_STEM_FORM: ContextVar[str] = ContextVar('stem_form', default='')


@contextmanager
def chosen_by_platform() -> Iterator[None]:
  """What is traced inside holds both forms, and each platform that it is lowered for takes its own.

  For programs that are made on one platform to run on another; traced once, training has only the form it needs.
  """
  token = _BY_PLATFORM.set(True)
  try:
    yield
  finally:
    _BY_PLATFORM.reset(token)


@contextmanager
def stem_form(form: str) -> Iterator[None]:
  """What is traced inside has its stems in this one of `STEM_FORMS`, where they can take it: for measurements."""
  token = _STEM_FORM.set(form)
  try:
    yield
  finally:
    _STEM_FORM.reset(token)


def convolve(lhs: Float[Array, 'b h w c'], rhs: Float[Array, 'p q c f'], strides, padding, **kwargs):
  """`lax.conv_general_dilated` for `flax.linen.Conv`.

  On a CPU small maps take the form of a matrix product, small depthwise kernels that of shifted products, and narrow
  stems that of blocks of pixels.
  """
  groups = kwargs.get('feature_group_count', 1)
  small = groups == 1 and max(lhs.shape[1:3]) <= IM2COL_UP_TO * max(strides)
  depthwise = groups == lhs.shape[-1] == rhs.shape[-1] > 1 and max(rhs.shape[:2]) <= SHIFTED_UP_TO
  plain = not any(d != 1 for d in (*(kwargs.get('lhs_dilation') or ()), *(kwargs.get('rhs_dilation') or ())))
  if not plain:
    return lax.conv_general_dilated(lhs, rhs, strides, padding, **kwargs)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
  native = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **kwargs)
  if small or depthwise:
    on_cpu = partial(_shifted if depthwise else _im2col, strides=strides, padding=padding)
  elif groups == 1 and lhs.shape[-1] == COLOURS:
    in_form = partial(_stem, strides=tuple(strides), padding=tuple(padding), **kwargs)
    if form := _STEM_FORM.get():
      return in_form(lhs, rhs, form=form)
    if rhs.shape[-1] > BLOCKS_UP_TO or min(rhs.shape[:2]) < BLOCKS_FROM_KERNEL:
      return native(lhs, rhs)
    on_cpu = partial(in_form, form='space_to_depth')
  else:
    return native(lhs, rhs)
  if _BY_PLATFORM.get():
    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=native)
  return (on_cpu if jax.default_backend() == 'cpu' else native)(lhs, rhs)


def _stem(lhs, rhs, *, strides, padding, form, **kwargs):
  """Convolution of images in this form, or as it stands where that cannot be."""
  if form.startswith('channels_'):
    more = int(form.removeprefix('channels_')) - COLOURS
    lhs, rhs = jnp.pad(lhs, ((0, 0),) * 3 + ((0, more),)), jnp.pad(rhs, ((0, 0),) * 2 + ((0, more), (0, 0)))
  even = not any(size % 2 for size in lhs.shape[1:3])
  centred = all(size % 2 and pads == (size // 2,) * 2 for size, pads in zip(rhs.shape[:2], padding, strict=True))
  if form == 'space_to_depth' and strides == (2, 2) and even and centred:
    lhs, rhs, strides, padding = _space_to_depth(lhs, rhs)
  return lax.conv_general_dilated(lhs, rhs, strides, padding, **kwargs)


def _space_to_depth(lhs, rhs):
  """Blocks of 2x2 pixels, `[b, h/2, w/2, 4 * c]`, a kernel of blocks, strides and padding, for a stride of 2.

  Zeros before the kernel make its first row and column meet those of a block, zeros after it fill the last blocks: a
  7x7 kernel becomes one of 4x4 blocks.
  """
  batch, height, width, channels = lhs.shape
  zeros = [(size // 2 % 2, (size + size // 2 % 2) % 2) for size in rhs.shape[:2]]  # Before and after.
  rhs = jnp.pad(rhs, (*zeros, (0, 0), (0, 0)))
  rows, columns = (size // 2 for size in rhs.shape[:2])
  padding = [(size // 2, size - 1 - size // 2) for size in (rows, columns)]
  lhs = lhs.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
  rhs = rhs.reshape(rows, 2, columns, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
  return lhs.reshape(*lhs.shape[:3], -1), rhs.reshape(rows, columns, 4 * channels, -1), (1, 1), padding


def _im2col(lhs, rhs, strides, padding):
  """Convolution as one product of patches `[b, h2, w2, p * q * c]` and the kernel as a matrix."""
  slices = _slices(lhs, rhs.shape[:2], strides, padding)
  return jnp.concatenate(slices, axis=-1) @ rhs.reshape(-1, rhs.shape[-1])


def _shifted(lhs, rhs, strides, padding):
  """Depthwise convolution as a sum of shifted maps, each times its entry of the kernel `[p, q, 1, c]`."""
  taps = rhs.reshape(-1, rhs.shape[-1])
  return sum(x * taps[i] for i, x in enumerate(_slices(lhs, rhs.shape[:2], strides, padding)))


def _slices(lhs, kernel_size, strides, padding):
  """What each entry of a kernel meets: `p * q` maps `[b, h2, w2, c]`."""
  rows, columns = kernel_size
  padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
  height, width = ((n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], (rows, columns), strides, strict=True))
  return [
    padded[:, i : i + (height - 1) * strides[0] + 1 : strides[0], j : j + (width - 1) * strides[1] + 1 : strides[1]]
    for i in range(rows)
    for j in range(columns)
  ]


def max_pool_2x2(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Max-pooling of stride 2 as the maximum of four slices; a last odd row or column is left out."""
  height, width = (n // 2 * 2 for n in x.shape[1:3])
  rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
  return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def max_pool_3x3(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Max-pooling of stride 2 and padding 1 as the maximum of nine slices.

  Unlike select-and-scatter its gradient is deterministic on GPUs, and fast on CPUs.
  """
  height, width = ((n - 1) // 2 + 1 for n in x.shape[1:3])
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
  slices = [padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)]
  result = slices[0]
  for other in slices[1:]:
    result = jnp.maximum(result, other)
  return result
