"""The training step on one device: images/s, MFU, memory, compile time; and the floor under it.

    python benchmarks/step.py [--seconds S] [--json benchmarks/results/step.json]

MFU is against a matrix product, the floor against a copy, both measured in the same run. Batches double until the rate
gains less than 3 % by it: that is the knee. `--seconds` starts nothing new after so long.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import absent  # noqa: F401
import jax
import numpy as np
from floor import Cost, copy_bytes_per_sec, cost_of, matmul_flops_per_sec
from reporting import Row, calls_for, keep, parser, rates_in_turn, report, row, spread
from workload import TASKS, Steps, Workload

KNEE = 1.03  # Doubling the batch gains less than this beyond it.
MOST = 1.2  # Times the measured ceiling: a step above it cannot have run. Ceilings waver on a busy host.


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A network, and the batches to try it with."""

  backbone: str
  size: int
  width: int
  dtype: str
  batches: tuple[int, ...]

  def workloads(self) -> Iterator[Workload]:
    for batch in self.batches:
      yield Workload(self.backbone, self.size, batch, self.dtype, self.width)


ON_CPU = (Sweep('resnet18', 64, 32, 'float32', (32, 64, 128)), Sweep('resnet18', 64, 32, 'bfloat16', (64,)))
ON_ACCELERATOR = (
  Sweep('resnet18', 128, 0, 'bfloat16', (512, 1024, 2048)),
  Sweep('resnet50', 224, 0, 'bfloat16', (128, 256, 512)),
  Sweep('resnet18', 128, 0, 'float32', (1024,)),
  Sweep('resnet50', 224, 0, 'float32', (256,)),
)
QUICK = (Sweep('convnet', 8, 4, 'float32', (8,)),)


def main() -> None:
  began = time.monotonic()
  options = flags().parse_args()
  if options.quick:
    options.round_secs, options.rounds = 0.05, 1
  on_cpu = jax.default_backend() == 'cpu'
  sweeps = QUICK if options.quick else ON_CPU if on_cpu else ON_ACCELERATOR
  limits = Limits({name: matmul_flops_per_sec(name) for name in {one.dtype for one in sweeps}}, copy_bytes_per_sec())
  rows = [row(f'matrix product, {name}', rate / 1e12, 'TFLOP/s') for name, rate in sorted(limits.flops.items())]
  rows.append(row('copy', limits.bytes / 1e9, 'GB/s'))
  late = lambda: bool(options.seconds) and time.monotonic() - began > options.seconds  # noqa: E731
  for sweep in sweeps:
    rows += swept(sweep, limits, options, late=late)
    keep(rows, options)
  if not late():
    rows += joint_against_single(next(sweeps[0].workloads()), options)
  report(rows, options)


def flags() -> argparse.ArgumentParser:
  made = parser('Images/s, MFU, memory and compile time of the training step.')
  made.add_argument('--rounds', type=int, default=5)
  made.add_argument('--round_secs', type=float, default=1.0, help='seconds that a round of steps is to take')
  made.add_argument('--seconds', type=float, default=0, help='start nothing new after so many; 0: no limit')
  return made


@dataclasses.dataclass(frozen=True)
class Limits:
  """What the device reaches at all, as measured in this run.

  Attributes:
    flops: of a matrix product in a second, by type.
    bytes: read and written by a copy in a second.
  """

  flops: dict[str, float]
  bytes: float

  def floor_secs(self, cost: Cost, dtype: str) -> float:
    """No step can be faster: its arithmetic, or its traffic, takes this long."""
    return max(cost.flops / self.flops[dtype], cost.bytes / self.bytes)


def swept(sweep: Sweep, limits: Limits, options: argparse.Namespace, *, late: Any) -> list[Row]:
  """Rows of each batch up to the knee, or to where memory or time ends."""
  rows, best = [], 0.0
  for workload in sweep.workloads():
    if late():
      print(f'no time left for {workload.title}')
      break
    try:
      steps = Steps(workload)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      rows.append(row(f'{workload.title}: out of memory', math.nan, 'images/s'))
      break
    rates = rates_of(steps, options)
    rows += describe(steps, float(np.median(rates)), rates, limits)
    if np.median(rates) < KNEE * best:
      break
    best = float(np.median(rates))
  return rows


def rates_of(steps: Steps, options: argparse.Namespace) -> list[float]:
  """Images/s of each round."""
  number = calls_for(steps.advance, options.round_secs)
  rates = rates_in_turn({'step': partial(steps.advance, number)}, rounds=options.rounds)
  steps.check()
  return rates['step']


def describe(steps: Steps, rate: float, rates: list[float], limits: Limits) -> list[Row]:
  """What is known of one workload."""
  workload, cost = steps.workload, cost_of(steps.workload)
  secs = workload.batch / rate
  utilisation = cost.flops / secs / limits.flops[workload.dtype]
  assert 0 < utilisation < MOST, f'{workload.title}: {utilisation:.2f} of the matrix product: the steps did not run'
  name = workload.title
  ms = row(f'{name}: a step', 1e3 * secs, 'ms')
  floor = row(f'{name}: floor of FLOPs and fewest bytes', 1e3 * limits.floor_secs(cost, workload.dtype), 'ms', to=ms)
  fewest = row(f'{name}: fewest bytes a step', cost.bytes / 1e9, 'GB')
  return [
    row(name, rate, 'images/s') | spread(rates),
    ms,
    floor,
    row(f'{name}: MFU', 100 * utilisation, '%') | {'flops_per_image': cost.flops / workload.batch},
    fewest,
    row(f"{name}: bytes the program moves (XLA's count)", steps.bytes_accessed / 1e9, 'GB', to=fewest),
    row(f'{name}: memory', steps.memory_bytes / 2**20, 'MiB'),
    row(f'{name}: compile time', steps.compile_secs, 's'),
  ]


def joint_against_single(joint: Workload, options: argparse.Namespace) -> list[Row]:
  """What learning both tasks costs beside the dearer one alone, in alternating rounds."""
  workloads = {'joint': joint} | {task.name: dataclasses.replace(joint, tasks=(task,)) for task in TASKS}
  parts = {name: Steps(workload) for name, workload in workloads.items()}
  number = calls_for(parts['joint'].advance, options.round_secs)
  rates = rates_in_turn({name: partial(steps.advance, number) for name, steps in parts.items()}, rounds=options.rounds)
  for steps in parts.values():
    steps.check()
  medians = {name: 1e3 * float(np.median(joint.batch / np.array(found))) for name, found in rates.items()}
  singles = {name: row(f'{joint.title}: {name} alone', medians[name], 'ms') for name in parts if name != 'joint'}
  slower = max(singles.values(), key=lambda one: one['value'])
  return [*singles.values(), row(f'{joint.title}: joint', medians['joint'], 'ms', to=slower, target=1.03)]


if __name__ == '__main__':
  main()
