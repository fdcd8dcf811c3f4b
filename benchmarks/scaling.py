"""One step on several devices: images/s where there are several; else its collectives, from the compiled program.

    python benchmarks/scaling.py [--json benchmarks/results/scaling.json]

The least possible is one all-reduce of the gradients, float32 as the parameters, and one of the loss sums. On one
device eight are simulated on the host, in a process of its own; nothing is timed there.
"""

import argparse
import dataclasses
import math
import os
import re
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import absent  # noqa: F401
import jax
import numpy as np
from reporting import Row, parser, rates_in_turn, report, row, spread
from workload import Steps, Workload

from mtl_jax.models.cost import num_parameters
from mtl_jax.platform import sharding

SIMULATED = 8
ON_CPU = Workload('resnet18', 64, 64, 'float32', width=32)
ON_ACCELERATOR = Workload('resnet50', 224, 256, 'bfloat16')  # A device.
QUICK = Workload('convnet', 8, 16, 'float32', width=4)
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
SIZES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8,
         'u64': 8, 'f64': 8}  # fmt: skip


def main() -> None:
  options = flags().parse_args()
  if options.quick:
    options.rounds = 1
  if jax.device_count() == 1:
    simulate()
  if jax.default_backend() == 'cpu':
    rows = collectives(QUICK if options.quick else ON_CPU)
  else:
    rows = speed(QUICK if options.quick else ON_ACCELERATOR, options)
  report(rows, options)


def flags() -> argparse.ArgumentParser:
  made = parser('A step on several devices.')
  made.add_argument('--rounds', type=int, default=5)
  return made


def simulate() -> None:
  """Becomes this program on simulated devices, and leaves the memory of a GPU to others."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={SIMULATED}',
    'PJRT_NPROC': '32',
  }
  os.execve(sys.executable, [sys.executable, str(Path(__file__)), *sys.argv[1:]], environment)


def collectives(workload: Workload) -> list[Row]:
  """Number and bytes of the collectives of a step, with batch norm over all devices and on each alone."""
  devices = jax.device_count()
  parameters = num_parameters(jax.eval_shape(workload.make_state).variables['params'])
  sums = 2 * len(workload.tasks)  # A sum and a number of labels for each task.
  least = {
    'number': row('least possible: gradients, loss sums', 2, 'collectives'),
    'bytes': row('least possible: gradients, loss sums', 4 * (parameters + sums), 'bytes'),
  }
  rows = list(least.values())
  alone = dataclasses.replace(workload, norm_rows=workload.batch // devices)
  narrow = dataclasses.replace(alone, dtype='bfloat16')
  for name, one in (('over all', workload), ('on each', alone), ('on each, bfloat16', narrow)):
    lowered = one.lowered(jax.eval_shape(one.make_state), one.make_batch(), mesh=sharding.make_mesh())
    compiled, partitioned = programs(lowered)
    found = found_collectives(compiled)
    title = f'{workload.network}, batch norm {name} of {devices} devices'
    rows.append(row(title, len(found), 'collectives', to=least['number']))
    rows.append(row(title, sum(size for _, size in found), 'bytes', to=least['bytes']) | {'kinds': counted(found)})
    for kind, size in sorted(reduced_by_type(partitioned).items()):
      rows.append(row(f'{title}: of it {kind}, as partitioned', size, 'bytes', to=least['bytes']))
  return rows


def programs(lowered: Any) -> tuple[str, str]:
  """The compiled program; and as it is partitioned, before passes of the platform, some of which sum in other types.

  Neither is run, so they are compiled with little care.
  """
  stored_after = 'jax_persistent_cache_min_compile_time_secs'
  usual = getattr(jax.config, stored_after)
  jax.config.update(stored_after, math.inf)  # From the cache it would come without being partitioned.
  try:
    with tempfile.TemporaryDirectory() as folder:
      dumped = {'xla_dump_to': folder, 'xla_dump_hlo_pass_re': 'spmd.*', 'xla_backend_optimization_level': 0}
      text = lowered.compile(compiler_options=dumped).as_text() or ''
      return text, next(Path(folder).rglob('*after_spmd-partitioning*')).read_text()
  finally:
    jax.config.update(stored_after, usual)


def reduced_by_type(text: str) -> dict[str, int]:
  """Bytes of a program's all-reduces by the type of their numbers."""
  sizes: dict[str, int] = defaultdict(int)
  for shapes in re.findall(r'= (.+?) all-reduce(?:-start)?\(', text):
    for shape in re.findall(r'\w+\[[\d,]*\]', shapes):
      sizes[shape.partition('[')[0]] += bytes_of(shape)
  return dict(sizes)


def found_collectives(text: str) -> list[tuple[str, int]]:
  """Kind and bytes of each collective of a compiled program; those in two halves are counted at their start."""
  pattern = re.compile(rf'= (.+?) ({"|".join(KINDS)})(-start)?\(')
  return [(match[2], bytes_of(match[1])) for match in map(pattern.search, text.splitlines()) if match]


def bytes_of(shapes: str) -> int:
  """Of one shape as XLA writes it, such as `f32[3,4]{1,0}`, or a tuple of them."""
  found = re.findall(r'(\w+)\[([\d,]*)\]', shapes)
  return sum(SIZES[kind] * math.prod(int(n) for n in dims.split(',') if n) for kind, dims in found)


def counted(found: list[tuple[str, int]]) -> dict[str, int]:
  return {kind: sum(one == kind for one, _ in found) for kind in KINDS if any(one == kind for one, _ in found)}


def speed(workload: Workload, options: argparse.Namespace) -> list[Row]:
  """Images/s on 1, 2, 4, ... devices with as many images for each, in alternating rounds."""
  counts = [2**i for i in range(jax.device_count().bit_length()) if 2**i <= jax.device_count()]
  parts: dict[str, Steps] = {}
  for count in counts:
    one = dataclasses.replace(workload, batch=count * workload.batch)
    parts[f'{one.title}, {count} device(s)'] = Steps(one, mesh=sharding.make_mesh(jax.devices()[:count]))
  rates = rates_in_turn({name: partial(steps.advance, 20) for name, steps in parts.items()}, rounds=options.rounds)
  rows: list[Row] = []
  for count, (name, steps) in zip(counts, parts.items(), strict=True):
    steps.check()
    made = row(name, float(np.median(rates[name])), 'images/s') | spread(rates[name])
    if rows:
      made |= {'ratio': made['value'] / rows[0]['value'] / count, 'ratio_to': f'{count} x {rows[0]["name"]}'}
    rows.append(made)
  return rows


if __name__ == '__main__':
  main()
