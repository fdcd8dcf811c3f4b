"""The step as it is against the step with one thing changed, for each thing that is said to make a step fast.

    python benchmarks/entries.py [--only NAME ...] [--seconds S] [--json benchmarks/results/entries.json]

A ratio above 1 says that the change is faster: the median over alternating rounds, with lowest and highest.
Flags of XLA are measured on GPUs alone. Collectives are counted, for eight devices simulated on the host. Sizes of the
batch are in `step.py`.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # Some entries are processes of their own.

import absent  # noqa: F401
import epoch
import jax
from jax.sharding import Mesh
from reporting import Row, against_first, calls_for, keep, parser, rates_in_turn, report, row
from running import Stepper, make_run, make_split
from scaling import bytes_of
from variants import Augmented, Child, Flat, InputApart, NotDonated, Remat, changed, serve
from workload import Steps, Workload

from mtl_jax.platform import sharding

ON_CPU = (Workload('resnet18', 128, 16, 'float32', width=32),)
ON_ACCELERATOR = (Workload('resnet18', 128, 1024, 'bfloat16'), Workload('resnet50', 224, 256, 'bfloat16'))
QUICK = (Workload('convnet', 8, 8, 'float32', width=4),)
DISPATCHES = {'cpu': (1, 4), 'accelerator': (8, 1, 4, 32)}  # Steps of each, the default first.
FETCHES = (20, 1)  # Steps from one fetch of metrics to the next; a run logs every 20.
FLAGS = {
  'latency-hiding scheduler': '--xla_gpu_enable_latency_hiding_scheduler=true',
  'autotune level 0': '--xla_gpu_autotune_level=0',
  'no command buffers': '--xla_gpu_enable_command_buffer=',
}
AS_IT_IS = 'as it is'


@dataclasses.dataclass(frozen=True)
class Bench:
  """A workload, and how long to measure it.

  Attributes:
    number: the workload's among those of this device.
  """

  workload: Workload
  number: int
  options: argparse.Namespace

  @cached_property
  def plain(self) -> Steps:
    """The step as it is."""
    return self.steps(self.workload)

  @cached_property
  def _first(self) -> Any:
    return jax.device_get(jax.jit(self.workload.make_state)())

  def state(self, mesh: Mesh) -> Any:
    """A first state of its own for whoever asks; what makes it is compiled once."""
    return jax.device_put(self._first, sharding.replicated(mesh), may_alias=False)

  def steps(self, workload: Workload, *, make: Callable[..., Steps] = Steps, mesh: Mesh | None = None) -> Steps:
    """Of a workload whose state is like the plain one's."""
    mesh = sharding.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    return make(workload, state=self.state(mesh), mesh=mesh)

  @property
  def flags(self) -> list[str]:
    return ['--quick'] if self.options.quick else []

  def compare(self, entry: str, parts: Mapping[str, Any]) -> list[Row]:
    """Rates in turn of the step as it is, the first of the parts, and of others."""
    numbers = {name: calls_for(one.advance, self.options.round_secs, least=1) for name, one in parts.items()}
    advance = {name: partial(one.advance, numbers[name]) for name, one in parts.items()}
    rates = rates_in_turn(advance, rounds=self.options.rounds)
    for one in parts.values():
      one.check()
    return against_first(f'{self.workload.title}: {entry}', rates)

  def against(self, entry: str, others: Mapping[str, Steps]) -> list[Row]:
    """The same against `plain`, and what memory each of them takes."""
    parts = {AS_IT_IS: self.plain, **others}
    rows = self.compare(entry, parts)
    memory = [row(f'{self.workload.title}: {entry}, {name}, memory', one.memory_bytes / 2**20, 'MiB')
              for name, one in parts.items()]  # fmt: skip
    return rows + memory

  def not_measured(self, entry: str, why: str) -> list[Row]:
    return [row(f'{self.workload.title}: {entry} ({why})', math.nan, 'images/s')]


def layout(bench: Bench) -> list[Row]:
  """How many of the compiled program's convolutions read maps with channels last, and what it copies to that end."""
  text = bench.plain.compiled.as_text() or ''
  labels = re.findall(r'dim_labels=([\w?]+)_', text)
  title = f'{bench.workload.title}: layout, '
  total = row(f'{title}convolutions', len(labels), 'in the program') | {'kinds': dict(Counter(labels))}
  rows = [total, row(f'{title}of these channels last', labels.count('b01f'), 'in the program', to=total)]
  for kind in ('transpose', 'copy'):
    shapes = re.findall(rf'= (\S+) {kind}\(', text)
    rows.append(row(f'{title}{kind}', len(shapes), 'in the program'))
    rows.append(row(f'{title}{kind}, results', sum(map(bytes_of, shapes)) / 2**20, 'MiB'))
  return rows


def fused_input(bench: Bench) -> list[Row]:
  """Normalisation and augmentation in the step, or in a program of their own."""
  augmented = changed(bench.workload, Augmented)
  parts = {'in the step': Steps, 'a program of its own': InputApart}
  return bench.compare('input', {name: bench.steps(augmented, make=make) for name, make in parts.items()})


def batch_norm(bench: Bench) -> list[Row]:
  """Statistics over the batch of all devices, or of each."""
  mesh = sharding.make_mesh()
  over_all = dataclasses.replace(bench.workload, batch=mesh.size * bench.workload.batch)
  alone = dataclasses.replace(over_all, norm_rows=bench.workload.batch)
  parts = {f'over all of {mesh.size} device(s)': over_all, 'on each device': alone}
  return bench.compare('batch norm', {name: bench.steps(one, mesh=mesh) for name, one in parts.items()})


def donation(bench: Bench) -> list[Row]:
  """The state not donated."""
  return bench.against('donation', {'state not donated': bench.steps(changed(bench.workload, NotDonated))})


def dispatch(bench: Bench) -> list[Row]:
  """Several steps a dispatch, from resident images."""
  parts = {}
  split = make_split(bench.workload, 2 * bench.workload.batch)
  for steps in DISPATCHES['cpu' if jax.default_backend() == 'cpu' else 'accelerator']:
    run = make_run(bench.workload, split, mode='resident')
    run.config.train.steps_per_dispatch = steps
    parts[f'{steps} a dispatch'] = one = Stepper(run, state=bench.state(run.mesh))
    one.advance(1)  # Compiles.
  return bench.compare('steps', parts)


def metrics(bench: Bench) -> list[Row]:
  """The loss fetched to the host, which waits for it."""

  def fetching(every: int) -> Any:
    return SimpleNamespace(
      advance=lambda number: sum(bench.plain.advance(every) for _ in range(number)), check=bench.plain.check
    )

  return bench.compare('metrics', {f'fetched every {every} step(s)': fetching(every) for every in FETCHES})


def flat_optimizer(bench: Bench) -> list[Row]:
  """Adam on one vector of all parameters."""
  return bench.against('optimizer', {'on one vector': Steps(changed(bench.workload, Flat))})


def remat(bench: Bench) -> list[Row]:
  """Rematerialisation."""
  if not hasattr(bench.workload.model.module.shared.backbone, 'remat'):
    return bench.not_measured('remat', 'this network has none')
  return bench.against('remat', {'on': bench.steps(changed(bench.workload, Remat))})


def flags(bench: Bench) -> list[Row]:
  """Flags of XLA for GPUs, each in a process of its own beside one without."""
  if jax.default_backend() != 'gpu':
    return [one for name in FLAGS for one in bench.not_measured(f'XLA, {name}', 'flags of GPUs')]
  return [one for name, given in FLAGS.items() for one in in_children(bench, name, given)]


def in_children(bench: Bench, name: str, given: str) -> list[Row]:
  """A process under such flags, and one as it is, in turn. A flag that is unknown there ends its process."""
  command = [str(Path(__file__)), '--serve', str(bench.number), *bench.flags]
  children: dict[str, Child] = {}
  try:
    for part, more in ((AS_IT_IS, ''), (name, given)):
      children[part] = Child(more, command)
    return bench.compare('XLA', children)
  except ChildProcessError as error:
    return bench.not_measured(f'XLA, {name}', str(error))
  finally:
    for one in children.values():
      one.close()


def cache(bench: Bench) -> list[Row]:
  """The compilation cache, of whatever workload `epoch.py` has."""
  return [] if bench.number else epoch.starts(*bench.flags)


def collectives(bench: Bench) -> list[Row]:
  """What eight devices say to each other, counted by `scaling.py` in programs for simulated ones."""
  if bench.number:
    return []
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / 'scaling.json'
    command = [sys.executable, str(Path(__file__).with_name('scaling.py')), '--json', str(out), *bench.flags]
    subprocess.run(command, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())['rows']


ENTRIES: dict[str, Callable[[Bench], list[Row]]] = {
  'layout': layout,
  'metrics': metrics,
  'optimizer': flat_optimizer,
  'dispatch': dispatch,
  'input': fused_input,
  'batch_norm': batch_norm,
  'donation': donation,
  'remat': remat,
  'flags': flags,
  'cache': cache,
  'collectives': collectives,
}


def main() -> None:
  began = time.monotonic()
  options = command_line().parse_args()
  if options.quick:
    options.rounds, options.round_secs = 2, 0.02
  workloads = QUICK if options.quick else ON_CPU if jax.default_backend() == 'cpu' else ON_ACCELERATOR
  if options.serve is not None:
    one, mesh = workloads[options.serve], sharding.make_mesh()
    serve(Steps(dataclasses.replace(one, batch=one.batch * mesh.size), mesh=mesh))
    return
  rows: list[Row] = []
  for number, workload in enumerate(workloads):
    bench = Bench(workload, number, options)
    for name in options.only or ENTRIES:
      late = options.seconds and time.monotonic() - began > options.seconds
      rows += bench.not_measured(name, 'no time left') if late else measured(bench, name)
      keep(rows, options)
  report(rows, options)


def measured(bench: Bench, name: str) -> list[Row]:
  """An entry's rows, or that it did not fit into memory."""
  try:
    return ENTRIES[name](bench)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return bench.not_measured(name, 'out of memory')


def command_line() -> argparse.ArgumentParser:
  made = parser('The training step against itself with one thing changed.')
  made.add_argument('--only', nargs='+', choices=ENTRIES, metavar='NAME', help=f'of {", ".join(ENTRIES)}')
  made.add_argument('--rounds', type=int, default=5)
  made.add_argument('--round_secs', type=float, default=0.5, help='seconds that a round of steps is to take')
  made.add_argument('--seconds', type=float, default=0, help='start nothing new after so many; 0: no limit')
  made.add_argument('--serve', type=int, metavar='NUMBER', help='take steps of that workload as told: for its own use')
  return made


if __name__ == '__main__':
  main()
