"""The same network, batch, precision, losses and optimizer here and in PyTorch, in alternating rounds of one run.

    python benchmarks/versus_torch.py [--seconds S] [--json benchmarks/results/versus_torch.json]

PyTorch runs with channels last, under autocast where the type is bfloat16, eagerly and through torch.compile, with the
fused AdamW. Both sides begin with the same weights, and must find the same first loss. A ratio is the median over
rounds of ours over PyTorch's rate in the same round, with the lowest and highest round.
"""

import argparse
import os
import time
from functools import partial
from typing import Any

os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.45')  # The other half is PyTorch's.

import absent  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from reporting import Row, calls_for, keep, parser, rates_in_turn, report, row, spread
from torch_training import TorchForward, TorchSteps, variables_of
from variants import Several
from workload import Steps, Workload, check_losses

ON_CPU = (Workload('resnet18', 64, 64, 'float32', width=32),)
ON_ACCELERATOR = (Workload('resnet18', 128, 1024, 'bfloat16'), Workload('resnet50', 224, 256, 'bfloat16'))
QUICK = (Workload('resnet18', 32, 8, 'float32', width=4),)
TARGETS = {'resnet18': 1.3, 'resnet50': 1.15}  # On an accelerator, against the faster of the two.
CPU_TARGET = 0.7
SAME_LOSS = {'float32': 1e-4, 'bfloat16': 2e-2}  # Relative.


def main() -> None:
  began = time.monotonic()
  options = flags().parse_args()
  if options.quick:
    options.rounds, options.round_secs, options.eager_only = 2, 0.05, True
  on_cpu = jax.default_backend() == 'cpu'
  forward = Workload('mobilenet_v2', 64 if options.quick else 224, 2 if options.quick else 32, 'float32')
  workloads = QUICK if options.quick else ON_CPU if on_cpu else ON_ACCELERATOR
  measured: list[Any] = [partial(training, one) for one in workloads]
  if on_cpu:
    measured.append(partial(inference, forward))
  rows: list[Row] = []
  for measure in measured:
    if options.seconds and time.monotonic() - began > options.seconds:
      print(f'no time left for {measure.args[0].title}')
      continue
    rows += measure(options, target=CPU_TARGET if on_cpu else TARGETS[measure.args[0].backbone])
    keep(rows, options)
  report(rows, options)


def flags() -> argparse.ArgumentParser:
  made = parser('The training step here and in PyTorch.')
  made.add_argument('--rounds', type=int, default=9)
  made.add_argument('--round_secs', type=float, default=1.0, help='seconds that a round of ours is to take')
  made.add_argument('--eager_only', action='store_true', help='leave torch.compile out: it takes a minute')
  made.add_argument('--seconds', type=float, default=0, help='start nothing new after so many; 0: no limit')
  return made


def training(workload: Workload, options: argparse.Namespace, *, target: float) -> list[Row]:
  """Training steps of both."""
  theirs = {'PyTorch, eager': TorchSteps(workload, compiled=False)}
  if not options.eager_only:
    theirs['PyTorch, compiled'] = TorchSteps(workload, compiled=True)
  state = jax.jit(workload.make_state)()
  variables = variables_of(theirs['PyTorch, eager'].network, workload, state.variables)
  ours: dict[str, Steps] = {'ours': Steps(workload, state=state.replace(variables=jax.tree.map(jnp.array, variables)))}
  if jax.default_backend() == 'cpu' and not options.quick:
    ours['ours, 4 steps a dispatch'] = Several(workload)
  for one in theirs.values():
    one.advance(1)
    np.testing.assert_allclose(ours['ours'].losses[0], one.losses[0], rtol=SAME_LOSS[workload.dtype])
  rows = compare(f'step of {workload.title}', ours | theirs, options, target=target)
  for one in ours.values():
    one.check()
  for one in theirs.values():
    check_losses(one.losses)
  return rows


class Forward:
  """Forward passes of our backbone in evaluation."""

  def __init__(self, workload: Workload):
    backbone = workload.model.module.shared.backbone
    self._images = jnp.asarray(workload.make_batch()['image'], jnp.float32) / 255
    self._variables = jax.jit(partial(backbone.init, train=False))(jax.random.key(0), self._images[:1])
    self._forward = jax.jit(partial(backbone.apply, train=False))
    self._batch = workload.batch
    self.advance(1)

  def advance(self, passes: int) -> int:
    for _ in range(passes):
      features = jax.block_until_ready(self._forward(self._variables, self._images))
    assert np.isfinite(features).all()
    return passes * self._batch


def inference(workload: Workload, options: argparse.Namespace, *, target: float) -> list[Row]:
  """Forward passes of both."""
  parts: dict[str, Any] = {'ours': Forward(workload), 'PyTorch, eager': TorchForward(workload, compiled=False)}
  if not options.eager_only:
    parts['PyTorch, compiled'] = TorchForward(workload, compiled=True)
  return compare(f'forward pass of {workload.title}', parts, options, target=target)


def compare(name: str, parts: dict[str, Any], options: argparse.Namespace, *, target: float) -> list[Row]:
  """Rates in alternating rounds; the target is of our ratio to the fastest of the others."""
  for part in parts.values():
    part.advance(2)
  number = calls_for(parts['ours'].advance, options.round_secs, least=1)
  rates = rates_in_turn({part: partial(steps.advance, number) for part, steps in parts.items()}, rounds=options.rounds)
  medians = {part: float(np.median(found)) for part, found in rates.items()}
  theirs = {
    part: row(f'{name}, {part}', medians[part], 'images/s') | spread(rates[part]) for part in parts if 'PyTorch' in part
  }
  best = max(theirs, key=lambda part: medians[part])
  rows = list(theirs.values())
  for ours in [part for part in parts if part not in theirs]:
    for part, other in theirs.items():
      ratios = [a / b for a, b in zip(rates[ours], rates[part], strict=True)]
      made = row(f'{name}, {ours}', medians[ours], 'images/s', to=other, target=target if part == best else None)
      rows.append(made | {'ratio': float(np.median(ratios))} | spread(rates[ours]) | spread(ratios, 'ratio'))
  return rows


if __name__ == '__main__':
  main()
