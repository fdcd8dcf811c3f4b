"""The convolutions of the CPU's default ResNet, one by one, here and in PyTorch: where a step's time goes.

    python benchmarks/convolutions.py [--json benchmarks/results/convolutions.json]

Each of them forward, and its gradients with respect to its maps and its kernel, in alternating rounds. The last rows
are all that a step computes of each kind.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import absent  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from reporting import Row, calls_for, parser, rates_in_turn, report, row

from mtl_jax.models.convolution import CHANNELS_LAST, convolve
from mtl_jax.platform import xla

# Pixels a side, channels in and out, stride, and how many a step has: ResNet-18 of width 32 at 64 pixels.
LAYERS = (
  (64, 3, 32, 2, 1), (32, 32, 32, 1, 4), (32, 32, 64, 2, 1), (16, 64, 64, 1, 3), (16, 64, 128, 2, 1),
  (8, 128, 128, 1, 3), (8, 128, 256, 2, 1), (4, 256, 256, 1, 3),
)  # fmt: skip
KINDS = ('forward', 'gradient of maps', 'gradient of kernel')


def main() -> None:
  made = parser(str(__doc__).splitlines()[0])
  made.add_argument('--rounds', type=int, default=7)
  made.add_argument('--batch', type=int, default=64)
  options = made.parse_args()
  if options.quick:
    options.rounds, options.batch = 1, 2
  rows: list[Row] = []
  milliseconds = {(who, kind): 0.0 for kind in KINDS for who in ('PyTorch', 'ours')}
  for size, inputs, outputs, stride, count in LAYERS[1::3] if options.quick else LAYERS:
    for kind, parts in both(size, inputs, outputs, stride, options).items():
      if kind == 'gradient of maps' and inputs == 3:
        continue  # Nobody asks for the gradient of images.
      title = f'{count} x 3x3 of {inputs} to {outputs} at {size} px, stride {stride}: {kind}'
      rows += timed(title, parts, options)
      for one, who in zip(rows[-2:], ('PyTorch', 'ours'), strict=True):
        milliseconds[who, kind] += count * one['value']
  for kind in KINDS:
    theirs = row(f'all, {kind}, PyTorch', milliseconds['PyTorch', kind], 'ms')
    rows += [theirs, row(f'all, {kind}, ours', milliseconds['ours', kind], 'ms', to=theirs)]
  report(rows, options)


def both(
  size: int, inputs: int, outputs: int, stride: int, options: argparse.Namespace
) -> dict[str, dict[str, Callable[[], Any]]]:
  """For each kind what computes it once, in PyTorch and here; both must find the same."""
  random = np.random.default_rng(0)
  maps = random.standard_normal((options.batch, size, size, inputs), dtype=np.float32)
  kernel = random.standard_normal((3, 3, inputs, outputs), dtype=np.float32)
  gradient = random.standard_normal((options.batch, -(-size // stride), -(-size // stride), outputs), dtype=np.float32)
  x, k, g = (jax.jit(jnp.copy)(one) for one in (maps, kernel, gradient))  # In memory of JAX's own.
  here = partial(convolve, strides=(stride, stride), padding=((1, 1), (1, 1)), dimension_numbers=CHANNELS_LAST)
  compiled = {
    'forward': here,
    'gradient of maps': lambda x, k, g: jax.vjp(lambda x: here(x, k), x)[1](g)[0],
    'gradient of kernel': lambda x, k, g: jax.vjp(lambda k: here(x, k), k)[1](g)[0],
  }
  last = {'memory_format': torch.channels_last}
  tx, tg = (torch.tensor(one).permute(0, 3, 1, 2).contiguous(**last) for one in (maps, gradient))
  tk = torch.tensor(kernel).permute(3, 2, 0, 1).contiguous(**last)

  def theirs(kind: str) -> Any:
    if kind == 'forward':
      return torch.nn.functional.conv2d(tx, tk, None, stride, 1)
    asked = [kind == 'gradient of maps', kind == 'gradient of kernel', False]
    found = torch.ops.aten.convolution_backward(tg, tx, tk, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, asked)
    return found[asked.index(True)]

  made = {}
  for kind, one in compiled.items():
    arguments = (x, k) if kind == 'forward' else (x, k, g)
    ours = partial(jax.jit(_barred(one), compiler_options=xla.step_options()), *arguments)
    expected = theirs(kind).permute(*((2, 3, 1, 0) if kind == 'gradient of kernel' else (0, 2, 3, 1))).numpy()
    np.testing.assert_allclose(ours(), expected, atol=1e-4 * float(np.abs(expected).max()))
    made[kind] = {'PyTorch': partial(theirs, kind), 'ours': lambda ours=ours: jax.block_until_ready(ours())}
  return made


def _barred(function: Callable[..., Any]) -> Callable[..., Any]:
  """Puts barriers around a function, so that what it reads and gives lies in memory, as in a step."""
  return lambda *arguments: lax.optimization_barrier(function(*lax.optimization_barrier(arguments)))


def timed(title: str, parts: dict[str, Callable[[], Any]], options: argparse.Namespace) -> list[Row]:
  """The best round of each, in milliseconds a call."""

  def advance(part: Callable[[], Any], calls: int) -> int:
    for _ in range(calls):
      part()
    return calls

  calls = calls_for(partial(advance, parts['ours']), 0.0 if options.quick else 0.05)
  rates = rates_in_turn({who: partial(advance, part, calls) for who, part in parts.items()}, rounds=options.rounds)
  theirs, ours = (1000 / max(rates[who]) for who in ('PyTorch', 'ours'))
  first = row(f'{title}, PyTorch', theirs, 'ms')
  return [first, row(f'{title}, ours', ours, 'ms', to=first)]


if __name__ == '__main__':
  main()
