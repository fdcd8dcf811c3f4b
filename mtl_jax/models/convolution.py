"""Convolution and max-pooling in the form that is fastest on the platform at hand; the numbers are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mtl_jax.errors import ConfigError

# Forms for CPUs; benchmarks/results/README.md has what each gains. A map of up to so many pixels a side, after the
# stride, and a 1x1 kernel are one matrix product, depthwise kernels of up to so many a side shifted products.
PRODUCT_UP_TO, SHIFTED_UP_TO = 2, 7
CHANNELS_LAST = ('NHWC', 'HWIO', 'NHWC')

# He et al. 2015, as torchvision draws it: fan-out, normal.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

_BY_PLATFORM: ContextVar[bool] = ContextVar('by_platform', default=False)


@contextmanager
def chosen_by_platform() -> Iterator[None]:
  """Traces both forms of what is inside, and each platform that it is lowered for takes its own.

  For programs that are made on one platform to run on another; traced once, training has only the form it needs.
  """
  token = _BY_PLATFORM.set(True)
  try:
    yield
  finally:
    _BY_PLATFORM.reset(token)


def convolve(lhs: Float[Array, 'b h w c'], rhs: Float[Array, 'p q g f'], strides, padding, **kwargs):
  """`lax.conv_general_dilated` for `flax.linen.Conv`, with `g` channels in each group of the input's `c`.

  On a CPU small maps and 1x1 kernels take the form of a matrix product, small depthwise kernels that of shifted
  products, and all stand between barriers, for the sake of their weight gradients: see `xla.step_options`.
  """
  if any(d != 1 for d in (*(kwargs.get('lhs_dilation') or ()), *(kwargs.get('rhs_dilation') or ()))):
    return lax.conv_general_dilated(lhs, rhs, strides, padding, **kwargs)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
  native = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **kwargs)
  groups, size = kwargs.get('feature_group_count', 1), max(rhs.shape[:2])
  form = partial(_canonical, tuple(strides), tuple(map(tuple, padding))) if groups == 1 else native
  if groups == lhs.shape[-1] == rhs.shape[-1] > 1 and size <= SHIFTED_UP_TO:
    form = partial(_shifted, strides=strides, padding=padding)
  elif groups == 1 and (size == 1 or max(lhs.shape[1:3]) <= PRODUCT_UP_TO * max(strides)):
    form = partial(_product, strides=strides, padding=padding)
  on_cpu = partial(_between_barriers, form)
  if _BY_PLATFORM.get():
    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=native)
  return (on_cpu if jax.default_backend() == 'cpu' else native)(lhs, rhs)


# A convolution layer of a network that trains from scratch.
Conv = partial(nn.Conv, conv_general_dilated=convolve, kernel_init=KERNEL_INIT)


def _between_barriers(convolution, lhs, rhs):
  """The convolution of maps, and later of their gradients, that lie in memory."""
  return lax.optimization_barrier(convolution(lax.optimization_barrier(lhs), rhs))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _canonical(strides, padding, lhs, rhs):
  """Convolution whose gradients are convolutions of channels-last maps too.

  XLA:CPU brings others into that form only where they stand outside loops.
  """
  return lax.conv_general_dilated(lhs, rhs, strides, padding, dimension_numbers=CHANNELS_LAST)


def _canonical_forward(strides, padding, lhs, rhs):
  return _canonical(strides, padding, lhs, rhs), (lhs, rhs)


def _canonical_backward(strides, padding, kept, gradient):
  lhs, rhs = kept
  convolve = partial(lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=CHANNELS_LAST)
  sizes = list(zip(lhs.shape[1:3], rhs.shape[:2], gradient.shape[1:3], strides, padding, strict=True))
  around = [(k - 1 - low, n + low - 1 - s * (out - 1)) for n, k, out, s, (low, _) in sizes]
  to_lhs = convolve(gradient, rhs[::-1, ::-1].swapaxes(2, 3), padding=around, lhs_dilation=strides)
  beyond = [(low, k + s * (out - 1) - n - low) for n, k, out, s, (low, _) in sizes]
  maps, kernel = lhs.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
  to_rhs = convolve(maps, kernel, padding=beyond, rhs_dilation=strides).transpose(1, 2, 0, 3)
  return to_lhs, to_rhs


_canonical.defvjp(_canonical_forward, _canonical_backward)


def _product(lhs, rhs, strides, padding):
  """Convolution as one product of patches `[b, h2, w2, p * q * c]` and the kernel as a matrix."""
  slices = _slices(lhs, rhs.shape[:2], strides, padding)
  return jnp.concatenate(slices, axis=-1) @ rhs.reshape(-1, rhs.shape[-1])


def _shifted(lhs, rhs, strides, padding):
  """Depthwise convolution as a sum of shifted maps, each times its entry of the kernel `[p, q, 1, c]`."""
  taps = rhs.reshape(-1, rhs.shape[-1])
  return sum(x * taps[i] for i, x in enumerate(_slices(lhs, rhs.shape[:2], strides, padding)))


def _slices(lhs, kernel_size, strides, padding, fill=0.0):
  """The maps that each entry of a kernel meets: `p * q` maps `[b, h2, w2, c]`."""
  rows, columns = kernel_size
  padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)), constant_values=fill)
  height, width = ((n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], (rows, columns), strides, strict=True))
  return [
    padded[:, i : i + (height - 1) * strides[0] + 1 : strides[0], j : j + (width - 1) * strides[1] + 1 : strides[1]]
    for i in range(rows)
    for j in range(columns)
  ]


def check_halves(x: Float[Array, 'b h w c']) -> None:
  """Raises ConfigError for maps of which half would be nothing, so that their mean would be NaN."""
  if min(x.shape[1:3]) < 2:
    raise ConfigError(
      f'config.model.backbone: the images are too small for it, which halves maps of {x.shape[1]}x{x.shape[2]}; '
      'prepare larger ones, or choose another backbone, such as resnet18'
    )


def max_pool_2x2(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Max-pooling of stride 2 as the maximum of four slices; a last odd row or column is left out.

  Raises:
    ConfigError: for maps that cannot be halved.
  """
  check_halves(x)
  height, width = (n // 2 * 2 for n in x.shape[1:3])
  rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
  return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def max_pool_3x3(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Max-pooling of stride 2 and padding 1 as the maximum of nine slices.

  Unlike select-and-scatter its gradient is deterministic on GPUs, and fast on CPUs.
  """
  return reduce(jnp.maximum, _slices(x, (3, 3), (2, 2), ((1, 1), (1, 1)), fill=-jnp.inf))
