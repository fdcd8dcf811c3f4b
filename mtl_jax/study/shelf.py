"""The replicas of a study that are done, each a file of its own, so that none is ever run again."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from mtl_jax import npz
from mtl_jax.errors import CheckpointError, one_line
from mtl_jax.study.replicas import Replica, Result


@dataclasses.dataclass(frozen=True)
class Shelf:
  """A folder of results, by program and replica."""

  directory: Path

  def empty(self) -> bool:
    return not any(self.directory.glob('*/*.npz'))

  def path(self, program: str, replica: Replica) -> Path:
    name = f'lr{replica.learning_rate:g}-seed{replica.seed}.npz'
    return self.directory / program.replace('/', '_') / name

  def has(self, program: str, replica: Replica) -> bool:
    return self.path(program, replica).exists()

  def put(self, program: str, result: Result) -> None:
    """Writes a result, whole or not at all."""
    facts = {name: value for name, value in vars(result).items() if name not in ('predictions', 'replica')}
    arrays = {f'predictions/{name}': values for name, values in result.predictions.items()}
    npz.write(self.path(program, result.replica), facts=np.array(json.dumps(facts)), **arrays)

  def get(self, program: str, replica: Replica) -> Result:
    """A result that was put.

    Raises:
      CheckpointError: for a file that is not as it was written.
    """
    path, advice = self.path(program, replica), 'remove it, and it is run again'
    found = npz.read(path, names=('facts',), advice=advice)
    predictions = {
      name.removeprefix('predictions/'): values for name, values in found.items() if name.startswith('predictions/')
    }
    try:
      return Result(replica=replica, predictions=predictions, **json.loads(str(found['facts'])))
    except (ValueError, TypeError) as error:
      raise CheckpointError(f'{path}: cannot be read ({one_line(error)}); {advice}') from error
