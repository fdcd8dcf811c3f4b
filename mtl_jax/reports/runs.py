"""The files of evaluated runs, read for a report."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.errors import CheckpointError
from mtl_jax.platform import address, json_file
from mtl_jax.reports.charts import Curve, Side
from mtl_jax.run import workdir
from mtl_jax.tasks import Task
from mtl_jax.training.progress import read_metrics

log = logging.getLogger('mtl_jax')

Outputs = dict[str, dict[str, float | None]]
Scores = dict[str, float | list[Any] | Outputs | None]  # Of a task by metric; `per_output` holds those of its outputs.
Intervals = dict[str, tuple[float, float] | dict[str, Any] | None]  # Of a task likewise.


class Slice(TypedDict):
  """The eval JSON of the images with one value of a label."""

  num_examples: int
  tasks: dict[str, Scores]
  intervals: dict[str, Intervals]
  one_class: list[str]
  unlabelled: list[str]


class Tuned(TypedDict):
  """The eval JSON of tasks by tuned thresholds."""

  by: str
  tasks: dict[str, Scores]


class Evaluation(TypedDict):
  """The eval JSON."""

  tasks: dict[str, Scores]
  intervals: NotRequired[dict[str, Intervals]]
  slices: NotRequired[dict[str, dict[str, Slice]]]
  tuned: NotRequired[Tuned]
  baseline: NotRequired[dict[str, Scores]]
  step: NotRequired[int]
  split: NotRequired[str]
  num_examples: NotRequired[int]
  device: NotRequired[str]


class Run(NamedTuple):
  """The files of one evaluated run."""

  side: Side
  folder: Path
  config: ConfigDict
  tasks: Sequence[Task]
  evaluation: Evaluation
  log: list[dict[str, Any]]

  def curve(self, key: str) -> Curve | None:
    """The values that were logged under a key; None without any."""
    points = [(line['step'], line[key]) for line in self.log if isinstance(line.get(key), int | float)]
    return Curve(*np.array(points, np.float64).T) if points else None


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


def load(folders: Mapping[str, Path]) -> list[Run]:
  """The configuration, evaluation and log of runs by name.

  Raises:
    CheckpointError: for a file that is missing or damaged; the message says which command makes it.
  """
  runs = []
  for number, (name, folder) in enumerate(folders.items()):
    config, facts = workdir.read(folder)
    make = f'make it with `mtl-jax eval --workdir {folder}`'
    evaluation = json_file.read(folder / 'eval' / 'test.json', Evaluation, advice=make)
    tasks = [task for task in facts.selected(config) if task.name in evaluation['tasks']]
    runs.append(Run(Side(name, number), folder, config, tasks, evaluation, read_metrics(folder / 'metrics.jsonl')))
  return runs


def tasks_of(runs: Sequence[Run]) -> list[Task]:
  """The tasks that some run was evaluated on."""
  return list({task.name: task for run in reversed(runs) for task in reversed(run.tasks)}.values())[::-1]


def score(scores: Scores | None, metric: str) -> float | None:
  """The value of a metric; None where it has none."""
  value = (scores or {}).get(metric)
  return value if isinstance(value, float) else None


def reliability(scores: Scores | None) -> Curve | None:
  """Frequencies over predicted probabilities, by bin; None where there are none."""
  rows = (scores or {}).get('reliability')
  kept = [row for row in rows if isinstance(row, list) and len(row) == 3] if isinstance(rows, list) else []
  numbers = [row[1:] for row in kept if all(isinstance(value, int | float) for value in row)]
  return Curve(*np.array(numbers, np.float64).T) if numbers else None


def baseline(runs: Sequence[Run], task: str) -> Scores | None:
  """The scores of the constant prediction, by the first run that has them."""
  return next((found[task] for run in runs if task in (found := run.evaluation.get('baseline', {}))), None)
