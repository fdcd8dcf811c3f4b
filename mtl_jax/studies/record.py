"""Records of a study's replicas: learning curves, rates tried, and those that diverged."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.run import workdir
from mtl_jax.studies import arms
from mtl_jax.studies.arms import Arm
from mtl_jax.studies.replicas import Replica, Result
from mtl_jax.studies.result_store import ResultStore
from mtl_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Record:
  """A finished study's configuration and its replicas.

  Attributes:
    tested: for each arm and program the results of the replicas, by the study's seeds.
    tuning: for each program the replicas that its learning rate was chosen by, by rate.
  """

  config: ConfigDict
  tasks: tuple[Task, ...]
  arms: Mapping[str, Arm]
  tested: Mapping[str, Mapping[str, Sequence[Result]]]
  tuning: Mapping[str, Mapping[float, Sequence[Result]]]

  def diverged(self) -> list[dict[str, Any]]:
    """The tested replicas whose loss was not finite."""
    return [
      {'arm': arm, 'program': program, 'seed': result.replica.seed, 'step': result.diverged_at}
      for arm, programs in self.tested.items()
      for program, results in programs.items()
      for result in results
      if result.diverged_at
    ]

  def curve(self, arm: str, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps, means over seeds and standard deviations `[m]` of a value that the arm's replicas logged.

    Replicas that diverged are left out; the deviation is 0 where there is one seed. None where nobody logged it.
    """
    logged = [
      (result.history['step'], result.history[key])
      for results in self.tested.get(arm, {}).values()
      for result in results
      if key in result.history and not result.diverged_at
    ]
    length = min((len(values) for _, values in logged), default=0)
    if not length:
      return None
    values = np.array([values[:length] for _, values in logged], np.float64)
    deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(length)
    return np.array(logged[0][0][:length], np.float64), values.mean(0), deviation


def read(directory: Path, study: Mapping[str, Any]) -> Record:
  """Reads the results kept in a study's working directory; replicas that are not there are left out.

  Raises:
    CheckpointError: for a file that is missing or damaged.
  """
  config, facts = workdir.read(directory)
  tasks = facts.selected(config)
  sides = {name: arm for name, arm in arms.from_config(config, tasks).items() if name in study['arms']}
  results, rates = ResultStore(directory / 'replicas'), study['learning_rates']
  programs = list(dict.fromkeys(name for arm in sides.values() for name in arm.programs if name in rates))
  grid = sorted(set(config.study.learning_rates))
  tested = {
    name: {
      program: _found(results, program, [Replica(seed, rates[program]) for seed in _seeds(config, arm, study)])
      for program in arm.programs
      if program in rates
    }
    for name, arm in sides.items()
  }
  tuning_seeds = arms.tuning_seeds(config)
  tuning = {
    program: {rate: _found(results, program, [Replica(seed, rate) for seed in tuning_seeds]) for rate in grid}
    for program in programs
  }
  return Record(config, tasks, sides, tested, tuning if len(grid) > 1 else {})


def _seeds(config: ConfigDict, arm: Arm, study: Mapping[str, Any]) -> range:
  first = config.train.seed + arm.first_seed
  return range(first, first + len(study['seeds']))


def _found(results: ResultStore, program: str, wanted: Sequence[Replica]) -> list[Result]:
  return [
    dataclasses.replace(results.get(program, replica), predictions={})
    for replica in wanted
    if results.has(program, replica)
  ]
