"""The files of evaluated runs, read for a report."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.errors import CheckpointError
from mtl_jax.platform import address, json_file
from mtl_jax.training.progress import read_metrics

log = logging.getLogger('mtl_jax')


@dataclasses.dataclass(frozen=True)
class Run:
  """The files of one evaluated run."""

  name: str
  folder: Path
  config: dict[str, Any]
  evaluation: dict[str, Any]
  log: list[dict[str, Any]]


def find_runs(workdir: Path) -> dict[str, Path]:
  """The runs of a folder by name: the folder itself, or those of its subfolders that are evaluated, `joint` first.

  Raises:
    CheckpointError: when there is none.
  """
  if (workdir / 'config.json').is_file():
    return {address.name(workdir): workdir}
  runs = [path.parent for path in workdir.glob('*/config.json')]
  if not runs:
    raise CheckpointError(
      f'no run in {workdir}: neither it nor a subfolder has a config.json; '
      f'make one with `mtl-jax train --config F.py --workdir {workdir}`'
    )
  found = [folder for folder in runs if (folder / 'eval' / 'test.json').is_file()]
  if not found:
    raise CheckpointError(f'no run in {workdir} is evaluated; do it with `mtl-jax eval --workdir {runs[0]}`')
  for folder in set(runs) - set(found):
    log.warning('warning: %s is left out: it has no eval/test.json', folder)
  found.sort(key=lambda path: (path.name != 'joint', path.name))
  return {path.name: path for path in found}


def load(name: str, folder: Path) -> Run:
  """A run's configuration, evaluation and log.

  Raises:
    CheckpointError: for a file that is missing or damaged; the message says which command makes it.
  """
  config = read_json(folder / 'config.json', make=f'mtl-jax train --config F.py --workdir {folder}')
  evaluation = read_json(folder / 'eval' / 'test.json', make=f'mtl-jax eval --workdir {folder}', keys=['tasks'])
  scored = evaluation['tasks']
  if not (isinstance(scored, dict) and all(isinstance(metrics, dict) for metrics in scored.values())):
    raise CheckpointError(f'{folder / "eval" / "test.json"} has no tasks; run `mtl-jax eval --workdir {folder}` again')
  return Run(name, folder, config, evaluation, read_metrics(folder / 'metrics.jsonl'))


def read_json(path: Path, *, make: str, keys: Iterable[str] = ()) -> dict[str, Any]:
  """The object in a file.

  Args:
    path: the file.
    make: the command that makes it.
    keys: what it must hold.

  Raises:
    CheckpointError: for a file that is missing or damaged; the message says that command.
  """
  value = json_file.read(path, json_file.Fields, advice=f'make it with `{make}`')
  if not value.keys() >= set(keys):
    raise CheckpointError(f'{path} is not as it was written; make it again with `{make}`')
  return value


def series(runs: Sequence[Run], key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Steps and values `[m]` of each run that logged the key."""
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
