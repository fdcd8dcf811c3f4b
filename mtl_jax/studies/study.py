"""Runs a study: joint and single-task models with the same budget and several seeds, and tests of their differences.

For each program of each arm the learning rate, and what else `study.grid` names, is chosen on validation, on seeds of
its own; then replicas of the study's seeds are trained, and the first process compares their test predictions.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import with_fields
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.errors import CheckpointError, ConfigError, DivergedError
from mtl_jax.objectives import loss_terms
from mtl_jax.platform import json_file, processes
from mtl_jax.platform.progress_bar import bar
from mtl_jax.run import workdir
from mtl_jax.studies import arms, program, space, summary
from mtl_jax.studies.arms import Arm, Replica
from mtl_jax.studies.bench import Bench, Candidate
from mtl_jax.studies.space import Values
from mtl_jax.tasks import Task
from mtl_jax.training.interrupt import Interruption

log = logging.getLogger('mtl_jax')


def run(config: ConfigDict, directory: Path, *, allow_config_change: bool = False) -> dict[str, Any]:
  """Runs the study, or what is left of it, and writes `study.json` and `study.csv`.

  Returns:
    The study's JSON; of several processes in the first alone, which compares what all have trained.

  Raises:
    UserError: for bad input, an arm none of whose replicas came through, or a request to stop.
  """
  config, store, facts = workdir.opened(configs.load(config))
  tasks = facts.selected(config)
  sides = arms.from_config(config, tasks)
  check_grid(config, sides, tasks)
  if config.eval.patience:
    raise ConfigError('config.eval.patience: a study trains every replica to its end; set it to 0')
  held = workdir.resumed(directory, config, facts, holds='replicas', allow_config_change=allow_config_change)
  with held, Interruption() as interruption:
    bench = make_bench(sides, store, directory, interruption)
    if config.study.match == 'compute':
      programs = {name: bench.program(name, Replica(0)) for name in bench.configs}
      sides = matched(sides, {name: one.flops_trained() for name, one in programs.items()})
      bench = make_bench(sides, store, directory, interruption)
    chosen = choose(config, bench)
    contenders = {
      name: Candidate({one: chosen[one] for one in arm.programs}, arms.seeds(config, arm))
      for name, arm in sides.items()
    }
    tested = {name: [] for name in bench.configs}
    for side in contenders.values():
      for name in side.programs:
        tested[name] += side.replicas(name)
    bench.train(tested, test=True, title='training')
    if processes.index():
      return {}
    _, result = bench.compare(tasks, contenders)
    rates = {name: values[arms.RATE] for name, values in chosen.items()}
    spent = seconds(config, bench, contenders)
    measured = kept_cost(directory, spent) or cost(bench, contenders, spent)
    result |= {'cost': measured, 'learning_rates': rates, 'chosen': chosen}
    workdir.write_json(directory / 'study.json', result)
    workdir.write_csv(directory / 'study.csv', list(summary.csv_rows(result)))
  return result


def make_bench(sides: Mapping[str, Arm], store: DataSet, directory: Path, interruption: Interruption) -> Bench:
  """A bench for the programs of all arms, which may have one in common; all are built, so that bad ones show now."""
  bench = Bench({k: v for arm in sides.values() for k, v in arm.programs.items()}, store, directory, interruption)
  for name, config in bench.configs.items():
    bench.check(name, searched := arms.space_of(config), searched.grid())
  return bench


def check_grid(config: ConfigDict, sides: Mapping[str, Arm], tasks: Sequence[Task]) -> None:
  """Raises ConfigError for a grid that holds what changes nothing, or the learning rates a second time."""
  found = arms.written(config)
  if config.study.learning_rates and any(axis.field == arms.RATE for axis in found.axes):
    raise ConfigError(
      f'{found.where}.{arms.RATE} and config.study.learning_rates both name rates; leave one out, '
      'as --config.study.learning_rates='
    )
  own = [arms.space_of(one) for arm in sides.values() for one in arm.programs.values()]
  space.check(found, own, loss_terms.names(tasks, config.objective.grain))


def matched(sides: Mapping[str, Arm], flops: Mapping[str, float]) -> dict[str, Arm]:
  """The arms with as much compute each as the cheapest: the steps of its programs cut alike, evaluations as many.

  Args:
    sides: the arms.
    flops: of the forward pass of what is trained, over all images of a run, by program; compute is taken to be
      proportional to it.
  """
  of_arm = {name: sum(flops[one] for one in arm.programs) for name, arm in sides.items()}
  if not all(of_arm.values()):
    raise ConfigError('config.study.match=compute: XLA counts no FLOPs on this platform; choose steps')

  def cut(config: ConfigDict, share: float) -> ConfigDict:
    every = config.eval.every_steps and max(1, round(config.eval.every_steps * share))
    return with_fields(config, train__steps=max(1, round(config.train.steps * share)), eval__every_steps=every)

  return {
    name: dataclasses.replace(
      arm, programs={one: cut(config, min(of_arm.values()) / of_arm[name]) for one, config in arm.programs.items()}
    )
    for name, arm in sides.items()
  }


def choose(config: ConfigDict, bench: Bench) -> dict[str, Values]:
  """The values of each program: of the grid, those that are best on validation over the tuning seeds."""
  grids = {name: arms.grid(own) for name, own in bench.configs.items()}
  tried = {name: tuned(config, grid) for name, grid in grids.items()}
  if any(map(len, tried.values())):
    wanted = {name: [one for those in of.values() for one in those] for name, of in tried.items() if of}
    bench.train(wanted, test=False, title='choosing on validation')
  chosen = None
  if processes.index() == 0:
    chosen = {name: _best(bench, name, of) if (of := tried[name]) else grids[name][0] for name in grids}
  return processes.from_first('chosen', chosen)


def tuned(config: ConfigDict, grid: Sequence[Values]) -> dict[int, list[Replica]]:
  """The replicas that each of a grid's values is judged by, by its place; none where there is nothing to choose."""
  seeds = arms.tuning_seeds(config, config.study.num_tuning_seeds)
  return {i: [Replica.of(seed, one) for seed in seeds] for i, one in enumerate(grid)} if len(grid) > 1 else {}


def _best(bench: Bench, name: str, tried: Mapping[int, Sequence[Replica]]) -> Values:
  """The values whose replicas did best; warns of an end of a grid."""
  means = {i: mean for i, those in tried.items() if (mean := bench.mean_score(name, those)) is not None}
  if not means:
    raise DivergedError(f'all that was tried for {name} diverged; try lower config.study.learning_rates')
  best = dict(tried[max(means, key=lambda i: means[i])][0].values)
  for field in arms.space_of(bench.configs[name]).ends(best):
    log.warning('warning: %s does best at %s=%s, an end of its grid; widen it', name, field, best[field])
  return best


Seconds: TypeAlias = dict[str, dict[str, float]]


def seconds(config: ConfigDict, bench: Bench, sides: Mapping[str, Candidate]) -> Seconds:
  """Seconds of each arm: of training a seed, and of choosing its values."""
  found = {}
  for name, side in sides.items():
    tuning = [
      bench.seconds(one, those)
      for one in side.programs
      for those in tuned(config, arms.grid(bench.configs[one])).values()
    ]
    training = sum(bench.seconds(one, side.replicas(one)) for one in side.programs) / len(side.seeds)
    found[name] = {'seconds': training, 'tuning_seconds': sum(tuning)}
  return found


class _WithCost(TypedDict):
  cost: dict[str, dict[str, int | float | None]]


def kept_cost(directory: Path, spent: Seconds) -> dict[str, Any] | None:
  """The cost in `study.json`, if it is of the same replicas: of arms that took the same seconds. None without one."""
  with suppress(CheckpointError):
    kept = json_file.read(directory / 'study.json', _WithCost, advice='')['cost']
    if spent == {name: {key: one.get(key) for key in ('seconds', 'tuning_seconds')} for name, one in kept.items()}:
      return kept
  return None


def cost(bench: Bench, sides: Mapping[str, Candidate], spent: Seconds) -> dict[str, Any]:
  """Measures size and latency of each arm, see `Program.size`; with the seconds that it took."""
  programs = {
    name: [bench.program(one, side.replicas(one)[0]) for one in side.programs] for name, side in sides.items()
  }
  # Programs that differ in how they learn have one network, and one test split.
  networks = {id(one.test): one for those in programs.values() for one in those}
  sizes, calls, compiled, latencies, found = {}, {}, {}, {}, {}
  with bar(len(networks), description='measuring cost', unit='network') as progress:
    for key, one in networks.items():
      bench.stop()
      sizes[key], calls[key] = one.size(), one.prediction(compiled)
      progress.update()
  for name in sides:
    nets = tuple(id(one.test) for one in programs[name])
    if nets not in latencies:
      latencies[nets] = program.latency_ms([calls[key] for key in nets])
    found[name] = {measure: sum(sizes[key][measure] for key in nets) for measure in sizes[nets[0]]}
    found[name] |= {'latency_ms': latencies[nets], **spent[name]}
  return found
