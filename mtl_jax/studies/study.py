"""The study: joint and single-task models with the same budget and several seeds, and what the difference is worth.

For each arm and each of its programs the learning rate is chosen on validation, on seeds of its own; then replicas of
the study's seeds are trained, and their test predictions compared. Every finished replica is a file of its own. Of
several processes each trains its share of the replicas on its own devices, and the first compares them all.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
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
from mtl_jax.platform import processes
from mtl_jax.platform.progress_bar import bar
from mtl_jax.run import workdir
from mtl_jax.studies import arms, program, replicas, scores, summary
from mtl_jax.studies.arms import Arm, Replica
from mtl_jax.studies.program import Program
from mtl_jax.studies.results import ResultStore, recipe
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
    workdir.check_kind(directory, 'replicas')
    workdir.check_resumable(directory, config, facts, holds='replicas', allow_config_change=allow_config_change)
    workdir.begin(directory, config, facts)
    programs = build(sides, store, directory, interruption)
    if config.study.match == 'compute':
      sides = matched(sides, {name: one.flops_trained() for name, one in programs.items()})
      programs = build(sides, store, directory, interruption)
    study = Study(config, store, sides, programs, ResultStore(directory / 'replicas'), interruption)
    rates = study.choose_rates()
    study.train({name: study.tested(name, rates) for name in programs}, test=True, title='training')
    if processes.index():
      return {}
    result = study.compare(tasks, rates)
    workdir.write_json(directory / 'study.json', result)
    workdir.write_csv(directory / 'study.csv', list(summary.csv_rows(result)))
  return result


def build(sides: Mapping[str, Arm], store: DataSet, directory: Path, interruption: Interruption) -> dict[str, Program]:
  """The programs of all arms, by name; arms may have one in common, and programs may have their data in common."""
  built: dict[str, Program] = {}
  for name, config in {name: config for arm in sides.values() for name, config in arm.programs.items()}.items():
    like = next((one for one in built.values() if program.differs_in_objective(config, one.config)), None)
    built[name] = program.build(config, store, directory=directory, stop=interruption.requested, like=like)
  return built


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


@dataclasses.dataclass(frozen=True)
class Study:
  """A study under way: its configuration, its data, and where finished replicas lie."""

  config: ConfigDict
  store: DataSet
  arms: Mapping[str, Arm]
  programs: Mapping[str, Program]
  results: ResultStore
  interruption: Interruption

  def choose_rates(self) -> dict[str, float]:
    """The learning rate of each program: of the grid, the best on validation over the tuning seeds."""
    grid = arms.tuning(self.config)
    if not grid:
      (rate,) = set(self.config.study.learning_rates) or {self.config.optimizer.learning_rate}
      return dict.fromkeys(self.programs, float(rate))
    tried = [one for those in grid.values() for one in those]
    self.train(dict.fromkeys(self.programs, tried), test=False, title='choosing learning rates')
    chosen = {name: self._best_rate(name, grid) for name in self.programs} if processes.index() == 0 else None
    return processes.from_first('rates', chosen)

  def _best_rate(self, name: str, grid: Mapping[float, Sequence[Replica]]) -> float:
    means: dict[float, float] = {}
    for rate, those in grid.items():
      found = [self.results.get(name, one) for one in those]
      reached = [result.score for result in found if result.score is not None and not result.diverged_at]
      if len(reached) == len(found):
        means[rate] = float(np.mean(reached))
    if not means:
      raise DivergedError(f'every learning rate of config.study.learning_rates diverged for {name}; try lower ones')
    best = max(means, key=lambda rate: means[rate])
    if best in (min(grid), max(grid)):
      log.warning('warning: %s does best at %g, an end of config.study.learning_rates; widen it', name, best)
    return best

  def tested(self, name: str, rates: Mapping[str, float]) -> list[Replica]:
    """The replicas of a program that are compared, of all arms that have it."""
    seeds = [seed for arm in self.arms.values() if name in arm.programs for seed in arms.seeds(self.config, arm)]
    return [Replica(seed, rates[name]) for seed in dict.fromkeys(seeds)]

  def train(self, wanted: Mapping[str, Sequence[Replica]], *, test: bool, title: str) -> None:
    """Trains what has no result yet, in chunks; each of several processes trains its share on its own devices.

    A chunk is the same whichever of its replicas are done, and trained whole, so a study that was killed ends in the
    same bits.
    """
    made_by = {name: recipe(one.config, self.store.checksum) for name, one in self.programs.items()}
    chunks = [(name, chunk) for name, those in wanted.items() for chunk in replicas.chunks(self.programs[name], those)]
    left = [
      [i for i, one in enumerate(chunk) if not self.results.has(name, one, made_by[name])] for name, chunk in chunks
    ]
    left = processes.from_first('left', left)  # Before one of them has put its first result.
    count, num_left = sum(map(len, wanted.values())), sum(map(len, left))
    done = f', of which {count - num_left} are done' if count > num_left else ''
    log.info('%s: %d replicas of %d programs%s', title, count, len(wanted), done)
    own = [(*chunk, missing) for chunk, missing in zip(chunks, left, strict=True) if missing]
    own = own[processes.index() :: processes.count()]
    total = sum(len(chunk) * self.programs[name].config.train.steps for name, chunk, _ in own)
    trainer = None
    with bar(total, description=title, unit='step', enabled=processes.index() == 0) as progress:
      for name, chunk, missing in own:
        if trainer is None or trainer.program is not self.programs[name]:
          trainer = replicas.Trainer(self.programs[name])
        size = max(len(one) for of, one in chunks if of == name)
        found = trainer.run(chunk, size=size, test=test, stop=self._stop, advance=progress.update)
        for i in missing:
          result, predictions = found[i]
          if result.diverged_at:
            log.warning('warning: %s with %s diverged at step %d', name, chunk[i], result.diverged_at)
          result.made_by = made_by[name]
          self.results.put(name, chunk[i], result, predictions)
    processes.gather(title, None, stop=self._stop)

  def _stop(self) -> None:
    if self.interruption.requested_anywhere():
      raise Interrupted('interrupted; finished replicas are kept, and the same command goes on from there')

  def compare(self, tasks: Sequence[Task], rates: Mapping[str, float]) -> dict[str, Any]:
    """The study's JSON, from the results of the replicas."""
    test = mixture.load_split(self.store, 'test', tasks)
    test.mask_all_corrupt()
    identities = mixture.identities(self.store, test.example_id)
    resampling = draws.draw(identities, num_resamples=self.config.study.num_resamples)
    shapes = {task.name: (len(test), *task.prediction_shape) for task in tasks}
    predictions = {name: self._predictions(arm, rates, shapes) for name, arm in self.arms.items()}
    found = []
    for task in tasks:
      own = {name: [by_task.get(task.name) for by_task in of_arm] for name, of_arm in predictions.items()}
      for name, of_arm in own.items():
        if all(one is None for one in of_arm):
          raise DivergedError(f'every replica of {name} that learns {task.name} diverged; lower the learning rate')
      labels, mask = test.labels[task.name], test.mask[task.name]
      found += scores.score_task(task, own, labels, mask=mask, source_size=test.source_size, resampling=resampling)
    reference = next(iter(self.arms.values()))
    result = summary.summarize(found, arms=list(self.arms), seeds=arms.seeds(self.config, reference))
    made_of = workdir.provenance(self.store)
    made_of['data']['num_test'] = len(test)
    return result | {'cost': self.cost(rates), 'learning_rates': dict(rates), **made_of}

  def _predictions(
    self, arm: Arm, rates: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]]
  ) -> list[dict[str, np.ndarray]]:
    """The arm's test predictions by task, for each seed."""
    by_seed: list[dict[str, np.ndarray]] = []
    for seed in arms.seeds(self.config, arm):
      by_seed.append({})
      for name in arm.programs:
        by_seed[-1].update(self.results.predictions(name, Replica(seed, rates[name]), shapes))
    return by_seed

  def cost(self, rates: Mapping[str, float]) -> dict[str, Any]:
    """Cost of each arm: parameters, FLOPs of the forward pass, mean training seconds of a seed, and of tuning."""
    sizes: dict[tuple[int, ...], dict[str, float]] = {}
    tried = [one for those in arms.tuning(self.config).values() for one in those]
    found = {}
    for name, arm in self.arms.items():
      programs = [self.programs[one] for one in arm.programs]
      nets = tuple(id(one.test) for one in programs)  # Programs that differ in their objective have one.
      if nets not in sizes:
        each = [one.size() for one in programs]
        sizes[nets] = {key: sum(size[key] for size in each) for key in each[0]}
        sizes[nets]['latency_ms'] = program.latency_ms(programs)
      tested = [
        [self.results.get(one, Replica(seed, rates[one])).seconds for seed in arms.seeds(self.config, arm)]
        for one in arm.programs
      ]
      found[name] = {
        **sizes[nets],
        'seconds': sum(float(np.mean(seconds)) for seconds in tested),
        'tuning_seconds': sum(self.results.get(one, replica).seconds for one in arm.programs for replica in tried),
      }
    return found
