"""The study: joint and single-task models with the same budget and several seeds, and what the difference is worth.

For each arm and each of its programs the learning rate is chosen on validation, on seeds of its own; then replicas of
the study's seeds are trained, and their test predictions compared. Every finished replica is a file of its own. Of
several processes each trains its share of the replicas on its own devices, and the first compares them all.
"""

import csv
import dataclasses
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import with_fields
from mtl_jax.data.input import mixture
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.errors import ConfigError, DivergedError, Interrupted
from mtl_jax.metrics import draws
from mtl_jax.platform import atomic_write, processes
from mtl_jax.platform.progress_bar import bar
from mtl_jax.run import workdir
from mtl_jax.studies import arms, program, scores, summary
from mtl_jax.studies.arms import Arm
from mtl_jax.studies.program import Program
from mtl_jax.studies.replicas import Replica, Trainer
from mtl_jax.studies.result_store import ResultStore, recipe
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
  config = configs.load(config)
  store = mixture.open_data(config.data)
  config = workdir.with_absolute_paths(config)
  facts = workdir.DataFacts.of(store)
  tasks = facts.selected(config)
  sides = arms.from_config(config, tasks)
  if config.eval.patience:
    raise ConfigError('config.eval.patience: a study trains every replica to its end; set it to 0')
  with workdir.lock(directory), Interruption() as interruption:
    workdir.check_alike(config, facts)
    results = ResultStore(directory / 'replicas')
    workdir.check_kind(directory, 'replicas')
    workdir.check_resumable(directory, config, facts, holds='replicas', allow_config_change=allow_config_change)
    workdir.begin(directory, config, facts)
    if config.study.match == 'compute':
      sides = matched(sides, store, directory)
    study = Study(config, store, sides, directory, results, interruption)
    rates = study.choose_rates()
    study.train(rates)
    if processes.index():
      return {}
    result = study.compare(tasks, rates)
    workdir.write_json(directory / 'study.json', result)
    write_csv(directory / 'study.csv', result)
  return result


@dataclasses.dataclass
class Study:
  """A study under way: its configuration, its data, and where finished replicas lie."""

  config: ConfigDict
  store: DataSet
  arms: Mapping[str, Arm]
  directory: Path
  results: ResultStore
  interruption: Interruption
  built: dict[str, Program] = dataclasses.field(default_factory=dict)  # Each is built once: it reads data and weights.

  @property
  def programs(self) -> dict[str, ConfigDict]:
    """All programs of all arms by name; arms may have one in common."""
    return {name: config for arm in self.arms.values() for name, config in arm.programs.items()}

  def seeds(self, arm: Arm) -> list[int]:
    first = self.config.train.seed + arm.first_seed
    return list(range(first, first + self.config.study.num_seeds))

  def choose_rates(self) -> dict[str, float]:
    """The learning rate of each program: of the grid, the best on validation over the tuning seeds."""
    grid, seeds = self._grid(), self._tuning_seeds()
    if len(grid) == 1:
      return dict.fromkeys(self.programs, grid[0])
    wanted = {name: [Replica(seed, rate) for rate in grid for seed in seeds] for name in self.programs}
    self._train(wanted, test=False, title='choosing learning rates')
    first = processes.index() == 0
    return processes.from_first(
      'rates', {name: self._best_rate(name, grid, seeds) for name in self.programs} if first else None
    )

  def _grid(self) -> list[float]:
    asked: tuple[float, ...] = tuple(self.config.study.learning_rates)
    return sorted(set(asked) or {float(self.config.optimizer.learning_rate)})

  def _tuning_seeds(self) -> list[int]:
    return arms.tuning_seeds(self.config)

  def _tuning_seconds(self, program: str) -> float:
    """Training time of the replicas that the program's learning rate was chosen by; 0 where there was no choice."""
    grid = self._grid()
    tried = [Replica(seed, rate) for rate in grid for seed in self._tuning_seeds()] if len(grid) > 1 else []
    return sum(self.results.get(program, one).seconds for one in tried)

  def _best_rate(self, program: str, grid: Sequence[float], seeds: Sequence[int]) -> float:
    means: dict[float, float] = {}
    for rate in grid:
      found = [self.results.get(program, Replica(seed, rate)) for seed in seeds]
      reached = [result.score for result in found if result.score is not None and not result.diverged_at]
      if len(reached) == len(found):
        means[rate] = float(np.mean(reached))
    if not means:
      raise DivergedError(f'every learning rate of config.study.learning_rates diverged for {program}; try lower ones')
    best = max(means, key=lambda rate: means[rate])
    if best in (grid[0], grid[-1]):
      log.warning('warning: %s does best at %g, an end of config.study.learning_rates; widen it', program, best)
    return best

  def train(self, rates: Mapping[str, float]) -> None:
    """Trains the replicas that are tested."""
    wanted: dict[str, list[Replica]] = {name: [] for name in self.programs}
    for arm in self.arms.values():
      for name in arm.programs:
        wanted[name] += [Replica(seed, rates[name]) for seed in self.seeds(arm)]
    self._train({name: list(dict.fromkeys(those)) for name, those in wanted.items()}, test=True, title='training')

  def _train(self, wanted: Mapping[str, Sequence[Replica]], *, test: bool, title: str) -> None:
    """Trains what has no result yet; each of several processes trains its share on its own devices."""
    left = self._share(wanted, title)
    total = sum(len(those) * self.programs[name].train.steps for name, those in left.items())
    with bar(total, description=title, unit='step', enabled=processes.index() == 0) as progress:
      for name, those in left.items():
        self._train_program(name, those, test=test, advance=progress.update)
    processes.gather(title, None, stop=self._stop)

  def _share(self, wanted: Mapping[str, Sequence[Replica]], title: str) -> dict[str, list[Replica]]:
    """Lists of each program the replicas that have no result yet and fall to this process."""
    left = []
    for name, those in wanted.items():
      made_by = self._recipe(name)
      left += [(name, i) for i, one in enumerate(those) if not self.results.has(name, one, made_by)]
    left = processes.from_first('left', left)  # Before one of them has put its first result.
    count = sum(map(len, wanted.values()))
    done = f', of which {count - len(left)} are done' if count > len(left) else ''
    log.info('%s: %d replicas of %d programs%s', title, count, len(wanted), done)
    if processes.count() > 1:  # All agree on how a program is built, also those that train none of it.
      for name in wanted:
        self.program(name)
    own = left[processes.index() :: processes.count()]
    return {name: [those[i] for of, i in own if of == name] for name, those in wanted.items()}

  def _recipe(self, program: str) -> str:
    return recipe(self.programs[program], self.store.checksum)

  def _train_program(self, name: str, left: Sequence[Replica], *, test: bool, advance: Callable[[int], Any]) -> None:
    if not left:
      return
    trainer = Trainer(self.program(name))
    width = trainer.width(len(left), self.config.study.replicas_at_once)
    for first in range(0, len(left), width):
      chunk = list(left[first : first + width])
      padded = chunk + chunk[-1:] * (-len(chunk) % trainer.program.mesh.devices.size)
      own = partial(_advance_by, advance, len(chunk))
      for result in trainer.run(padded, test=test, stop=self._stop, advance=own)[: len(chunk)]:
        if result.diverged_at:
          log.warning('warning: %s with %s diverged at step %d', name, result.replica, result.diverged_at)
        self.results.put(name, result, made_by=self._recipe(name))

  def _stop(self) -> None:
    if self.interruption.requested_anywhere():
      raise Interrupted('interrupted; finished replicas are kept, and the same command goes on from there')

  def program(self, name: str) -> Program:
    if name not in self.built:
      config, stop = self.programs[name], self.interruption.requested
      like = next((one for one in self.built.values() if program.differs_in_objective(config, one.config)), None)
      self.built[name] = program.build(config, self.store, directory=self.directory, stop=stop, like=like)
    return self.built[name]

  def compare(self, tasks: Sequence[Task], rates: Mapping[str, float]) -> dict[str, Any]:
    """The study's JSON, from the results of the replicas."""
    test = mixture.load_split(self.store, 'test', tasks)
    test.mask_all_corrupt()
    resampling = draws.draw(
      mixture.identities(self.store, test.example_id), num_resamples=self.config.study.num_resamples
    )
    predictions = {name: self._predictions(arm, rates) for name, arm in self.arms.items()}
    found = {}
    for task in tasks:
      own = {name: [by_task.get(task.name) for by_task in of_arm] for name, of_arm in predictions.items()}
      for name, replicas_of_arm in own.items():
        if all(one is None for one in replicas_of_arm):
          raise DivergedError(f'every replica of {name} that learns {task.name} diverged; lower the learning rate')
      found[task.name] = scores.score_task(
        task,
        own,
        test.labels[task.name],
        mask=test.mask[task.name],
        source_size=test.source_size,
        resampling=resampling,
      )
    result = summary.summarize(found, arms=list(self.arms), seeds=self.seeds(next(iter(self.arms.values()))))
    made_of = workdir.provenance(self.store)
    made_of['data']['num_test'] = len(test)
    return result | {'cost': self.cost(rates), 'learning_rates': dict(rates), **made_of}

  def _predictions(self, arm: Arm, rates: Mapping[str, float]) -> list[dict[str, np.ndarray]]:
    """The arm's test predictions by task, for each seed."""
    return [
      {
        task: values
        for name in arm.programs
        for task, values in self.results.get(name, Replica(seed, rates[name])).predictions.items()
      }
      for seed in self.seeds(arm)
    ]

  def cost(self, rates: Mapping[str, float]) -> dict[str, Any]:
    """Cost of each arm: parameters, FLOPs of the forward pass, mean training seconds of a seed, and of tuning."""
    sizes: dict[tuple[int, ...], dict[str, float]] = {}
    found = {}
    for name, arm in self.arms.items():
      programs = [self.program(one) for one in arm.programs]
      nets = tuple(id(one.test) for one in programs)  # Programs that differ in their objective have one.
      if nets not in sizes:
        sizes[nets] = {
          'params': sum(one.num_params() for one in programs),
          'flops_per_image': sum(one.flops_per_image() for one in programs),
          'latency_ms': program.latency_ms(programs),
        }
      seconds = sum(
        float(np.mean([self.results.get(one, Replica(seed, rates[one])).seconds for seed in self.seeds(arm)]))
        for one in arm.programs
      )
      tuning = sum(map(self._tuning_seconds, arm.programs))
      found[name] = {**sizes[nets], 'seconds': seconds, 'tuning_seconds': tuning}
    return found


def _advance_by(advance: Callable[[int], Any], replicas: int, steps: int) -> None:
  """Counts the steps of so many replicas: those that only fill up the devices are not the user's."""
  advance(steps * replicas)


def matched(sides: Mapping[str, Arm], store: DataSet, directory: Path) -> dict[str, Arm]:
  """The arms with as much compute each as the cheapest: the steps of its programs cut alike, evaluations as many.

  Compute is taken to be proportional to the FLOPs of the forward pass of what is trained, over all images of a run.
  """

  def flops_of(config: ConfigDict) -> float:
    per_image = program.build(config, store, directory=directory).flops_trained()
    return per_image * config.train.batch_size * config.train.steps

  flops = {name: sum(map(flops_of, arm.programs.values())) for name, arm in sides.items()}
  if not all(flops.values()):
    raise ConfigError('config.study.match=compute: XLA counts no FLOPs on this platform; choose steps')
  least = min(flops.values())

  def cut(config: ConfigDict, share: float) -> ConfigDict:
    fields = {'train__steps': max(1, round(config.train.steps * share))}
    if config.eval.every_steps:
      fields['eval__every_steps'] = max(1, round(config.eval.every_steps * share))
    return with_fields(config, **fields)

  return {
    name: dataclasses.replace(
      arm, programs={one: cut(config, least / flops[name]) for one, config in arm.programs.items()}
    )
    for name, arm in sides.items()
  }


def write_csv(path: Path, study: Mapping[str, Any]) -> None:
  """A row for each task, metric and arm."""
  rows = summary.csv_rows(study)
  content = io.StringIO(newline='')
  writer = csv.DictWriter(content, list(rows[0]))
  writer.writeheader()
  writer.writerows(rows)
  atomic_write.write(path, content.getvalue())
