"""Trains replicas of several programs, each result kept in a file of its own, and scores the arms that they make up.

Replicas of a program that differ in arguments alone are trained by one compiled step; those that differ in its
structure by one each. Of several processes each trains its share on its own devices.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.data.input import mixture
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.errors import DivergedError, Interrupted
from mtl_jax.metrics import draws
from mtl_jax.platform import processes
from mtl_jax.platform.progress_bar import bar
from mtl_jax.run import workdir
from mtl_jax.studies import program, replicas, scores, space, summary
from mtl_jax.studies.arms import Replica
from mtl_jax.studies.program import Program
from mtl_jax.studies.results import Result, ResultStore, recipe
from mtl_jax.studies.space import Space, Values
from mtl_jax.tasks import Task
from mtl_jax.training.interrupt import Interruption

log = logging.getLogger('mtl_jax')

Structure = tuple[str, tuple[tuple[str, Any], ...], tuple[str, ...]]


class Candidate(NamedTuple):
  """An arm as it is tested: its programs with the values that each was given, and its seeds."""

  programs: Mapping[str, Values]
  seeds: Sequence[int]

  def replicas(self, name: str) -> list[Replica]:
    return [Replica.of(seed, self.programs[name]) for seed in self.seeds]


@dataclasses.dataclass(frozen=True)
class Bench:
  """Trains and compares replicas of programs, each a configuration with a name, and keeps their results in a folder.

  Attributes:
    compiled: of each chunk size and program that was trained here, the number of compiled steps.
  """

  configs: Mapping[str, ConfigDict]
  store: DataSet
  directory: Path
  interruption: Interruption
  kept_in: str = 'replicas'
  built: dict[Structure, Program] = dataclasses.field(default_factory=dict)
  compiled: list[int] = dataclasses.field(default_factory=list)

  @property
  def results(self) -> ResultStore:
    return ResultStore(self.directory / self.kept_in)

  def structure(self, name: str, replica: Replica) -> Structure:
    """A key that replicas share if one compiled step trains them: what is its program's own, and its arguments."""
    arguments = space.arguments(dict(replica.values), self.configs[name])
    return name, tuple((field, value) for field, value in replica.values if field not in arguments), arguments

  def program(self, name: str, replica: Replica) -> Program:
    """The program that trains a replica, built where there is none yet."""
    key = self.structure(name, replica)
    if key not in self.built:
      config = replica.config(self.configs[name])
      like = next((one for one in self.built.values() if program.reads_alike(config, one.config)), None)
      stop = self.interruption.requested
      self.built[key] = program.build(config, self.store, directory=self.directory, stop=stop, like=like)
    return self.built[key]

  def check(self, name: str, searched: Space, points: Iterable[Values]) -> None:
    """Builds every program that these points of a space need, so that a bad value is refused before the first step."""
    with searched.blamed():
      for values in points:
        self.program(name, Replica.of(0, values))

  def train(
    self,
    wanted: Mapping[str, Iterable[Replica]],
    *,
    test: bool,
    title: str,
    give_up: Callable[[Replica, Result], bool] | None = None,
    score_of: Callable[[Result], float | None] = lambda result: result.score,
  ) -> None:
    """Trains what has no result yet, in chunks.

    A chunk is the same whichever of its replicas are done, and trained whole, so what was killed ends in the same bits.

    Args:
      wanted: by name of the program.
      test: predict the test split, too.
      title: of what is done, for the log.
      give_up: see `replicas.Trainer.run`.
      score_of: the score of a result, for the best so far.
    """
    groups: dict[Structure, list[Replica]] = {}
    for name, those in wanted.items():
      for one in dict.fromkeys(those):
        groups.setdefault(self.structure(name, one), []).append(one)
    count, made_by = sum(map(len, groups.values())), {}
    for (name, *_), those in groups.items():
      made_by |= {(name, one): recipe(one.config(self.configs[name]), self.store.checksum) for one in those}
    done = (
      {(name, one) for (name, one), made in made_by.items() if self.results.has(name, one, made)}
      if processes.index() == 0
      else ()
    )
    left = processes.from_first('left', [key not in done for key in made_by])  # Before one puts its first result.
    missing = {key for key, wanted in zip(made_by, left, strict=True) if wanted}
    kept = f', of which {count - len(missing)} done' if count > len(missing) else ''
    log.info('%s: %s of %s%s', title, _counted(count, 'replica'), _counted(len(groups), 'program'), kept)
    steps = sum(one.config(self.configs[name]).train.steps for name, one in missing)
    turns, best, ended = itertools.cycle(range(processes.count())), -np.inf, count - len(missing)
    with bar(steps, description=title, unit='step', enabled=processes.index() == 0) as progress:
      for (name, _, arguments), those in groups.items():
        if missing.isdisjoint((name, one) for one in those):
          continue
        own = self.program(name, those[0])
        chunks, trainer = replicas.chunks(own, those), None
        for chunk in chunks:
          if missing.isdisjoint((name, one) for one in chunk) or next(turns) != processes.index():
            continue
          trainer = trainer or replicas.Trainer(own, arguments)
          size, advance = max(map(len, chunks)), lambda num: progress.update(num * processes.count())
          found = trainer.run(chunk, size=size, test=test, stop=self.stop, advance=advance, give_up=give_up)
          for one, (result, predictions) in zip(chunk, found, strict=True):
            if (name, one) not in missing:
              continue
            if result.diverged_at:
              log.warning('warning: %s with %s diverged at step %d', name, one, result.diverged_at)
            result.made_by = made_by[name, one]
            self.results.put(name, one, result, predictions)
            score = None if result.diverged_at else score_of(result)
            ended, best = ended + 1, best if score is None else max(best, score)
          if len(wanted) == 1:
            progress.set_postfix_str(f'{ended} of {count} done, best so far {best:.4g}')
        self.compiled.append(trainer.num_compiled if trainer else 0)
    processes.gather(title, None, stop=self.stop)

  def stop(self) -> None:
    """Raises Interrupted where the run was asked to stop."""
    if self.interruption.requested_anywhere():
      raise Interrupted('interrupted; finished replicas are kept, and the same command goes on from there')

  def mean_score(self, name: str, replicas: Iterable[Replica]) -> float | None:
    """The mean of the replicas' best scores on validation; None where one of them diverged or was given up."""
    found = [self.results.get(name, one) for one in replicas]
    reached = [one.score for one in found if one.score is not None and not one.diverged_at and not one.pruned_at]
    return float(np.mean(reached)) if len(reached) == len(found) else None

  def seconds(self, name: str, replicas: Iterable[Replica]) -> float:
    """Sums the seconds that replicas took."""
    return sum(self.results.get(name, one).seconds for one in replicas)

  def compare(
    self, tasks: Sequence[Task], sides: Mapping[str, Candidate]
  ) -> tuple[list[scores.Scores], dict[str, Any]]:
    """Every arm's scores on the test split, and the JSON of their comparison with the first."""
    test = mixture.load_split(self.store, 'test', tasks)
    test.mask_all_corrupt()
    identities = mixture.identities(self.store, test.example_id)
    resamples = next(iter(self.configs.values())).study.num_resamples
    resampling = draws.draw(identities, num_resamples=resamples)
    shapes = {task.name: (len(test), *task.prediction_shape) for task in tasks}
    predictions = {name: self._predictions(side, shapes) for name, side in sides.items()}
    found = []
    for task in tasks:
      own = {name: [by_task.get(task.name) for by_task in of_arm] for name, of_arm in predictions.items()}
      for name, of_arm in own.items():
        if all(one is None for one in of_arm):
          raise DivergedError(f'every replica of {name} that learns {task.name} diverged; lower the learning rate')
      labels, mask = test.labels[task.name], test.mask[task.name]
      found += scores.score_task(task, own, labels, mask=mask, source_size=test.source_size, resampling=resampling)
    result = summary.summarize(found, arms=list(sides), seeds=next(iter(sides.values())).seeds)
    made_of = workdir.provenance(self.store)
    made_of['data']['num_test'] = len(test)
    return found, result | made_of

  def _predictions(self, side: Candidate, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, np.ndarray]]:
    """The arm's test predictions by task, for each seed."""
    by_seed: list[dict[str, np.ndarray]] = [{} for _ in side.seeds]
    for name in side.programs:
      for own, one in zip(by_seed, side.replicas(name), strict=True):
        own.update(self.results.predictions(name, one, shapes))
    return by_seed


def _counted(num: int, noun: str) -> str:
  return f'{num} {noun}' + 's' * (num != 1)
