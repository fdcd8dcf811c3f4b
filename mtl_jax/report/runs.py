"""The files of evaluated runs, read for a report."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Run:
  """The files of one evaluated run."""

  name: str
  folder: Path
  config: dict[str, Any]
  evaluation: dict[str, Any]
  log: list[dict[str, Any]]


def find_runs(workdir: Path) -> dict[str, Path]:
  """The runs of a folder by name: the folder itself, or its subfolders, `joint` first.

  Raises:
    CheckpointError: when there is none.
  """
  workdir = Path(workdir)
  if (workdir / 'config.json').is_file():
    return {workdir.resolve().name: workdir}
  found = [path.parent for path in workdir.glob('*/config.json')]
  if not found:
    raise CheckpointError(
      f'no run in {workdir}: neither it nor a subfolder has a config.json; '
      f'make one with `mtl-jax train --config F.py --workdir {workdir}`'
    )
  found.sort(key=lambda path: (path.name != 'joint', path.name))
  return {path.name: path for path in found}


def load(name: str, folder: Path) -> Run:
  """A run's configuration, evaluation and log.

  Raises:
    CheckpointError: for a file that is missing or damaged; the message says which command makes it.
  """
  config = _read_json(folder / 'config.json', make=f'mtl-jax train --config F.py --workdir {folder}')
  evaluation = _read_json(folder / 'eval' / 'test.json', make=f'mtl-jax eval --workdir {folder}')
  if not isinstance(evaluation.get('tasks'), dict):
    raise CheckpointError(f'{folder / "eval" / "test.json"} has no tasks; run `mtl-jax eval --workdir {folder}` again')
  return Run(name, folder, config, evaluation, _read_log(folder / 'metrics.jsonl'))


def _read_json(path: Path, *, make: str) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    raise CheckpointError(f'no {path}; make it with `{make}`') from None
  except (OSError, ValueError) as error:
    raise CheckpointError(f'cannot read {path} ({error}); make it again with `{make}`') from None
  if not isinstance(value, dict):
    raise CheckpointError(f'{path} is no JSON object; make it again with `{make}`')
  return value


def _read_log(path: Path) -> list[dict[str, Any]]:
  """Log lines with a step; a line that an interrupted run left unfinished is passed over."""
  lines = []
  for row in path.read_text('utf-8').splitlines() if path.is_file() else ():
    try:
      line = json.loads(row)
    except ValueError:
      continue
    if isinstance(line, dict) and isinstance(line.get('step'), int | float):
      lines.append(line)
  return lines


def series(runs: Sequence[Run], key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """For each run that logged the key, steps and values `[m]`."""
  found = {}
  for run in runs:
    points = [(line['step'], line[key]) for line in run.log if isinstance(line.get(key), int | float)]
    if points:
      steps, values = np.array(points, np.float64).T
      found[run.name] = steps, values
  return found


def numbers(runs: Sequence[Run]) -> dict[str, int]:
  """Each run's number, which decides its colour."""
  return {run.name: number for number, run in enumerate(runs)}


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested fields by their dotted names."""
  fields: dict[str, Any] = {}
  for key, value in config.items():
    fields |= flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
  return fields
