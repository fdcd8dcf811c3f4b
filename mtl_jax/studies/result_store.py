"""The replicas of a study that are done, each a file of its own, so that none is ever run again."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.errors import CheckpointError, one_line
from mtl_jax.platform import npz
from mtl_jax.studies.replicas import Replica, Result

ADVICE = 'remove it, and it is run again'
NOT_IN_RECIPE = ('study.', 'affinity.', 'train.seed', 'optimizer.learning_rate')  # The last two are a replica's own.


def recipe(config: ConfigDict, checksum: str) -> str:
  """A digest of all that decides what a program's replicas become, but for their seeds and rates.

  Args:
    config: the program's.
    checksum: of the data.
  """
  fields = {
    name: value
    for name, value in configs.flat(configs.to_json(config)).items()
    if not name.startswith(NOT_IN_RECIPE) and name not in configs.RESUMABLE
  }
  return hashlib.sha256(json.dumps([fields, checksum], sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ResultStore:
  """A folder of results, by program and replica."""

  directory: Path

  def path(self, program: str, replica: Replica) -> Path:
    name = f'lr{replica.learning_rate:g}-seed{replica.seed}.npz'
    return self.directory / program.replace('/', '_') / name

  def has(self, program: str, replica: Replica, made_by: str = '') -> bool:
    """True if there is such a result; with `made_by`, one of that recipe: of another it must be run again."""
    path = self.path(program, replica)
    return path.exists() and (not made_by or self._facts(path).get('made_by') == made_by)

  def put(self, program: str, result: Result, *, made_by: str) -> None:
    """Writes a result, whole or not at all, with the `recipe` it was made by."""
    facts = {name: value for name, value in vars(result).items() if name not in ('predictions', 'replica')}
    facts['made_by'] = made_by
    arrays = {f'predictions/{name}': values for name, values in result.predictions.items()}
    path, root = self.path(program, result.replica), self.directory.parent
    npz.write(path, {'facts': np.array(json.dumps(facts)), **arrays}, root=root)

  def get(self, program: str, replica: Replica) -> Result:
    """A result that was put.

    Raises:
      CheckpointError: for a file that is not as it was written.
    """
    path = self.path(program, replica)
    found = npz.read(path, names=('facts',), advice=ADVICE)
    predictions = {
      name.removeprefix('predictions/'): values for name, values in found.items() if name.startswith('predictions/')
    }
    try:
      facts = {name: value for name, value in json.loads(str(found['facts'])).items() if name != 'made_by'}
      return Result(replica=replica, predictions=predictions, **facts)
    except (ValueError, TypeError, AttributeError) as error:
      raise CheckpointError(f'{path}: cannot be read ({one_line(error)}); {ADVICE}') from error

  def _facts(self, path: Path) -> dict[str, Any]:
    """Reads a result without its predictions."""
    try:
      return json.loads(str(npz.read(path, names=('facts',), advice=ADVICE, only=True)['facts']))
    except ValueError as error:
      raise CheckpointError(f'{path}: cannot be read ({one_line(error)}); {ADVICE}') from error
