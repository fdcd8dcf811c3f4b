"""What every objective costs, as a ratio to the plain joint step; and per-task gradients beside torch with torchjd.

    python benchmarks/methods.py [--losses 2 40] [--methods upgrad cagrad] [--torch] [--rules] [--json FILE]

ResNet-18 at 64x64 on random images. K = 2 is CelebA's attributes and landmarks, any other K so many tasks of one
attribute. Times are the best of several rounds, each in turn with the plain sum; memory is what the compiled step says
it needs for temporaries. `--torch` adds PyTorch: torch and torchjd must be installed. `--rules` measures each method's
own work on K gradients of 1,000 numbers instead, without the network that gives them.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from reporting import Row, best_rates, keep, parser, report, row, table
from workload import TASKS, Workload

from mtl_jax import objectives
from mtl_jax.configs import default
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.models import multitask
from mtl_jax.objectives.options import from_config
from mtl_jax.platform import xla
from mtl_jax.platform.memory import least_of_processes, total_bytes
from mtl_jax.run import optimizer
from mtl_jax.run.state import TrainState, init_state
from mtl_jax.tasks import BinaryTask, Task
from mtl_jax.training import gradients
from mtl_jax.training.step import train_step

QUICK_METHODS = ('uncertainty', 'mgda_ub', 'upgrad')  # One of each cost class.
SIDE_BY_SIDE = ('upgrad', 'cagrad', 'mgda', 'pcgrad', 'aligned_mtl')  # That torchjd has too, if they are asked for.
SWEPT = ('upgrad', 'db_mtl')  # The first of these that is asked for shows chunks and sub-batches.

# Takes a step and says of how many images; its temporary memory in bytes.
Step: TypeAlias = tuple[Callable[[], int], int | None]


def main() -> None:
  options = arguments()
  rows: list[Row] = []
  for num in options.losses:
    for found in measure_rules(num, options) if options.rules else measure(num, options):
      rows += found
      keep(rows, options)
      print(table(found).splitlines()[-len(found)], file=sys.stderr, flush=True)
  report(rows, options)


def arguments() -> argparse.Namespace:
  made = parser('What every objective costs, as a ratio to the plain joint step.')
  made.add_argument('--losses', type=int, nargs='+', default=[2, 40], metavar='K', help='numbers of losses')
  made.add_argument('--methods', nargs='+', default=list(objectives.OBJECTIVES), choices=list(objectives.OBJECTIVES))
  made.add_argument('--chunks', type=int, nargs='*', default=[1, 2, 4, 8, 20, 40], help='backward passes side by side')
  made.add_argument('--batch_size', type=int, default=0, help='by default 64 on CPU, 256 elsewhere')
  made.add_argument('--rounds', type=int, default=5)
  made.add_argument('--rules', action='store_true', help='measure the methods alone, without a network')
  made.add_argument('--torch', action='store_true', help='measure PyTorch with torchjd too')
  options = made.parse_args()
  options.width, options.size = 64, 64
  options.batch_size = options.batch_size or (64 if jax.default_backend() == 'cpu' else 256)
  if options.quick:
    options.width, options.size, options.batch_size, options.rounds = 4, 32, 8, 1
    options.losses, options.chunks = options.losses[:1], options.chunks[:1]
    options.methods = [name for name in options.methods if name in QUICK_METHODS]
  return options


def make_tasks(num: int) -> tuple[Task, ...]:
  """Attributes and landmarks, or so many attributes apart."""
  return TASKS if num == 2 else tuple(BinaryTask(f'attributes/a{i}', (f'a{i}',)) for i in range(num))


def measure(num: int, options: argparse.Namespace) -> Iterator[list[Row]]:
  """The rows of one way to step after another, with one number of losses.

  Each takes turns with the plain sum and is then let go, since 40 gradients that are kept fill a memory.
  """
  dtype = jnp.dtype(multitask.compute_dtype('auto')).name
  workload = Workload('resnet18', options.size, options.batch_size, dtype, width=options.width, tasks=make_tasks(num))
  plain, memory = prepare_step(workload, 'fixed')
  plain()
  ratios: dict[str, float] = {}
  for name, prepare in ways(workload, num, options).items():
    step, memory = (plain, memory) if prepare is None else prepare()
    step()
    rates = best_rates({'plain sum': plain, name: step}, rounds=options.rounds)
    del step
    milliseconds = {part: 1000 * workload.batch / rate for part, rate in rates.items()}
    beside = row(f'K={num}: plain sum', milliseconds['plain sum'], 'ms a step')
    here = row(f'K={num}: {name}', milliseconds[name], 'ms a step', to=beside, target=target(name, num))
    ratios[name] = here['ratio']
    if (ours := name.removeprefix('torch ')) != name:
      here['ours_times_faster'] = ratios[name] / ratios[ours]
    yield [here] + ([] if memory is None else [row(f'K={num}: {name}, temporary memory', memory / 2**20, 'MiB')])


def measure_rules(num: int, options: argparse.Namespace) -> Iterator[list[Row]]:
  """A row for each method: its own time to combine K gradients of 1,000 numbers, or K losses in class L."""
  gradients_of_tasks = jax.random.normal(jax.random.key(0), (num, 1000))
  losses, key = jnp.linspace(0.5, 2, num), jax.random.key(1)
  for name in options.methods:
    objective = objectives.OBJECTIVES[name]()
    first = losses if objective.needs == 'losses' else gradients_of_tasks
    first = first if objective.parts == 1 else jnp.stack([first] * objective.parts)

    @jax.jit
    def once(first: Any, state: Any, objective: Any = objective) -> Any:
      if objective.needs == 'losses':
        return jax.grad(lambda each: objective.update(each, state, key=key), has_aux=True)(first)
      return objective.update(first, state, losses=losses, key=key)

    state = objective.init(num, gradients_of_tasks[0])
    compiled = partial(once.lower(first, state).compile(), first, state)
    calls = 10 if options.quick else 200

    def repeated(compiled: Any = compiled, calls: int = calls) -> int:
      for _ in range(calls):
        jax.block_until_ready(compiled())
      return calls

    repeated()
    rate = best_rates({name: repeated}, rounds=options.rounds)[name]
    yield [row(f'K={num}: {name}, the rule alone', 1e6 / rate, 'us')]


def ways(workload: Workload, num: int, options: argparse.Namespace) -> dict[str, Callable[[], Step] | None]:
  """What makes each step that is measured; None for the plain sum, which there is already."""
  prepare = partial(partial, prepare_step, workload)
  made: dict[str, Callable[[], Step] | None] = {'plain sum': None}
  made |= {name: prepare(name) for name in options.methods if name != 'fixed'}
  swept = next((name for name in SWEPT if name in options.methods), None)
  if swept is not None:
    made |= {f'{swept}, chunk {c}': prepare(swept, chunk=c) for c in options.chunks if c <= num}
    if objectives.OBJECTIVES[swept]().weighting is not None:
      made[f'{swept}, Gram of a quarter of the rows'] = prepare(swept, gram_rows=options.batch_size // 4)
      made[f'{swept}, Gram every 10 steps'] = prepare(swept, gram_every_steps=10)
  if options.torch:
    import torch_methods

    chosen = [name for name in SIDE_BY_SIDE if name in options.methods]
    made |= torch_methods.ways(workload, methods=chosen)
  return made


def target(name: str, num: int) -> float | None:
  """The largest ratio to the plain step that is aimed at."""
  if name not in objectives.OBJECTIVES or name in ('fixed', 'modo', 'sdmgrad'):
    return None
  needs = objectives.OBJECTIVES[name]().needs
  if needs == 'losses':
    return 1.4 if name == 'famo' else 1.03
  if needs == 'representation':
    return {2: 1.15, 40: 1.3}.get(num)
  return {2: 1.9, 40: round(1.15 * (1 + 2 * num) / 3, 1)}.get(num)


def prepare_step(workload: Workload, name: str, **settings: Any) -> Step:
  """One step of a method, compiled, on a state of its own, returning its images; its temporary memory in bytes."""
  config, tasks = default.get_config().unlock(), workload.tasks
  config.model.width, config.objective.name = workload.width, name
  config.objective.update(settings)
  objective = from_config(config.objective, [task.name for task in tasks], steps_per_epoch=100)
  tx = optimizer.from_config(config.optimizer, steps=config.train.steps)
  common = {'model': multitask.from_config(config.model, tasks), 'tx': tx, 'ema_decay': 0.0}
  first = first_state(workload)
  like = {'shared': first.variables['params']['shared']}
  remembered = jax.jit(partial(objective.init, len(tasks)))(like)
  state = jax.tree.map(jnp.copy, first).replace(objective=remembered)
  batch = jax.device_put(workload.make_batch())
  how = gradients.Settings.from_config(config.objective, memory=least_of_processes(total_bytes()))
  step = partial(
    train_step, tasks=tasks, augmentation=Augmentation(), seed=0, settings=how, objective=objective, **common
  )
  compiled = jax.jit(step, donate_argnums=0, compiler_options=xla.step_options()).lower(state, batch).compile()
  analysis = compiled.memory_analysis()

  def one() -> int:
    nonlocal state
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))
    return workload.batch

  return one, None if analysis is None else analysis.temp_size_in_bytes


@functools.cache
def first_state(workload: Workload) -> TrainState:
  """The state of the plain sum before the first step; made once, since compiling that takes seconds."""
  config, tasks = default.get_config().unlock(), workload.tasks
  config.model.width = workload.width
  make = partial(
    init_state,
    0,
    model=multitask.from_config(config.model, tasks),
    tx=optimizer.from_config(config.optimizer, steps=config.train.steps),
    objective=objectives.fixed([1.0] * len(tasks)),
    label_stats={task.name: task.empty_stats() for task in tasks},
    input_shape=(workload.size, workload.size, 3),
    ema_decay=0.0,
  )
  return jax.jit(make)()


if __name__ == '__main__':
  main()
