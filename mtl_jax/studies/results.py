"""Results of a study's replicas, each a file of its own, so that none is ever run again, and the record they make."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.errors import CheckpointError
from mtl_jax.platform import json_file, npz
from mtl_jax.run import workdir
from mtl_jax.studies import arms
from mtl_jax.studies.arms import Arm, Replica
from mtl_jax.studies.space import Values
from mtl_jax.tasks import Task

log = logging.getLogger('mtl_jax')

ADVICE = 'remove it, and it is run again'
NOT_IN_RECIPE = ('study.', 'sweep.', 'affinity.', 'train.seed', arms.RATE)  # The last two are in a result's name.


def recipe(config: ConfigDict, checksum: str) -> str:
  """A digest of all that decides what a replica becomes, but for its seed and rate.

  Args:
    config: the replica's.
    checksum: of the data.
  """
  fields = {
    name: value
    for name, value in configs.flat(configs.to_json(config)).items()
    if not name.startswith(NOT_IN_RECIPE) and name not in configs.RESUMABLE
  }
  return hashlib.sha256(json.dumps([fields, checksum], sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass
class Result:
  """Outcome of a replica; a value that is not finite is None once it is kept.

  Attributes:
    score: the best on validation, higher is better; None for a replica that diverged before its first evaluation.
    best_step: the step it was reached at.
    history: by name, such as `step`, `train/landmarks/loss` or `val/landmarks/nme`, a value an evaluation.
    seconds: its part of the time that its chunk took to train and evaluate, without compilation.
    diverged_at: the first step whose loss was not finite, 0 if there is none.
    made_by: the `recipe` it was made by.
    pruned_at: the step it was given up at, 0 for one that was not.
    images: that its steps have seen.
  """

  score: float | None = None
  best_step: int = 0
  history: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  diverged_at: int = 0
  made_by: str = ''
  pruned_at: int = 0
  images: int = 0


Predictions = dict[str, np.ndarray]  # Of the test split by task, at the best step; empty where they were not asked for.


@dataclasses.dataclass(frozen=True)
class ResultStore:
  """A folder of results, by program and replica. CheckpointError for a file that is not as it was written."""

  directory: Path

  def path(self, program: str, replica: Replica) -> Path:
    """The file of a result; values other than the learning rate are in its name as a digest."""
    values = dict(replica.values)
    name = f'lr{rate:g}-' if (rate := values.pop(arms.RATE, None)) is not None else ''
    name += f'{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]}-' if values else ''
    return self.directory / program.replace('/', '_') / f'{name}seed{replica.seed}.npz'

  def has(self, program: str, replica: Replica, made_by: str) -> bool:
    """True if there is such a result of that recipe; of another, or of a file that is damaged, it must be run again."""
    if not self.path(program, replica).exists():
      return False
    try:
      return self.get(program, replica).made_by == made_by
    except CheckpointError as error:
      log.warning('warning: %s', str(error).replace(ADVICE, 'it is run again'))
      return False

  def put(self, program: str, replica: Replica, result: Result, predictions: Predictions) -> None:
    """Writes a result atomically."""
    arrays = {f'predictions/{name}': values for name, values in predictions.items()}
    arrays['facts'] = np.array(json.dumps(json_file.finite(vars(result)), allow_nan=False))
    npz.write(self.path(program, replica), arrays, root=self.directory.parent)

  def get(self, program: str, replica: Replica) -> Result:
    """Reads a result."""
    path = self.path(program, replica)
    facts = npz.read(path, names=('facts',), advice=ADVICE, only=True)['facts']
    return json_file.parse(str(facts), Result, place=path, advice=ADVICE)

  def predictions(self, program: str, replica: Replica, shapes: Mapping[str, tuple[int, ...]]) -> Predictions:
    """The predictions put with a result, of those tasks whose shapes these are; none of a replica that diverged."""
    path = self.path(program, replica)
    kept = npz.read(path, names=('facts',), advice=ADVICE)
    found = {task: kept[f'predictions/{task}'] for task in shapes if f'predictions/{task}' in kept}
    for task, values in found.items():
      if values.shape != shapes[task] or values.dtype.kind not in 'fiu':
        what = f'predictions of {task} are {values.dtype} of shape {values.shape}, not {shapes[task]}'
        raise CheckpointError(f'{path} is not as it was written: {what}; {ADVICE}')
    return found


@dataclasses.dataclass(frozen=True)
class Record:
  """A finished study's configuration and its replicas.

  Attributes:
    tested: for each arm and program the results of the replicas that are there, by the study's seeds.
    tuning: for each program the values that were tried, with their results; empty where there was no choice.
  """

  config: ConfigDict
  tasks: tuple[Task, ...]
  arms: Mapping[str, Arm]
  tested: Mapping[str, Mapping[str, Mapping[Replica, Result]]]
  tuning: Mapping[str, Sequence[tuple[Values, Sequence[Result]]]]

  def diverged(self) -> list[dict[str, Any]]:
    """The tested replicas whose loss was not finite."""
    return [
      {'arm': arm, 'program': program, 'seed': replica.seed, 'step': result.diverged_at}
      for arm, programs in self.tested.items()
      for program, results in programs.items()
      for replica, result in results.items()
      if result.diverged_at
    ]

  def curve(self, arm: str, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps, means over seeds and standard deviations `[m]` of a value that the arm's replicas logged.

    Replicas that diverged are left out; the deviation is 0 where there is one seed. None where nobody logged it.
    """
    logged = [
      (result.history['step'], result.history[key])
      for results in self.tested.get(arm, {}).values()
      for result in results.values()
      if key in result.history and not result.diverged_at
    ]
    length = min((len(values) for _, values in logged), default=0)
    if not length:
      return None
    values = np.array([values[:length] for _, values in logged], np.float64)
    deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(length)
    return np.array(logged[0][0][:length], np.float64), values.mean(0), deviation


def read_record(directory: Path, study: Mapping[str, Any]) -> Record:
  """Reads what is kept in a study's working directory; CheckpointError for a file that is missing or damaged."""
  config, facts = workdir.read(directory)
  tasks = facts.selected(config)
  sides = {name: arm for name, arm in arms.from_config(config, tasks).items() if name in study['arms']}
  results, chosen = ResultStore(directory / 'replicas'), chosen_in(study)

  def found(program: str, seeds: Sequence[int], values: Values) -> dict[Replica, Result]:
    wanted = [Replica.of(seed, values) for seed in seeds]
    return {one: results.get(program, one) for one in wanted if results.path(program, one).exists()}

  tested, tried = {}, {}
  for name, arm in sides.items():
    seeds = arms.seeds(config, arm)[: len(study['seeds'])]
    tested[name] = {program: found(program, seeds, chosen[program]) for program in arm.programs if program in chosen}
    for program, own in arm.programs.items():
      seeds, grid = arms.tuning_seeds(config, config.study.num_tuning_seeds), arms.grid(own)
      tried[program] = [(one, list(found(program, seeds, one).values())) for one in grid] if len(grid) > 1 else []
  return Record(config, tasks, sides, tested, tried)


def chosen_in(study: Mapping[str, Any]) -> dict[str, Values]:
  """The values that each program was given; those of a study of learning rates alone were kept as these."""
  return study.get('chosen') or {program: {arms.RATE: rate} for program, rate in study['learning_rates'].items()}
