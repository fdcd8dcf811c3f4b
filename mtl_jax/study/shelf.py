"""The replicas of a study that are done, each a file of its own, so that none is ever run again."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np

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
    path = self.path(program, result.replica)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {name: value for name, value in vars(result).items() if name not in ('predictions', 'replica')}
    content = io.BytesIO()
    arrays = {f'predictions/{name}': values for name, values in result.predictions.items()}
    np.savez(content, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    partial = path.with_suffix('.partial')
    partial.write_bytes(content.getbuffer())
    partial.replace(path)

  def get(self, program: str, replica: Replica) -> Result:
    """A result that was put.

    Raises:
      CheckpointError: for a file that is not as it was written.
    """
    path = self.path(program, replica)
    try:
      with np.load(path, allow_pickle=False) as file:
        predictions = {
          name.removeprefix('predictions/'): file[name] for name in file.files if name.startswith('predictions/')
        }
        return Result(replica=replica, predictions=predictions, **json.loads(str(file['facts'])))
    except Exception as error:  # A zip cut short raises one of half a dozen kinds.
      raise CheckpointError(f'{path}: cannot be read ({one_line(error)}); remove it, and it is run again') from error
