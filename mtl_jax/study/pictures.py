"""The test images that the compared arm gets most wrong, as pictures with their errors. They may show real people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.input import mixture
from mtl_jax.data.input.pipeline import Split
from mtl_jax.report import charts
from mtl_jax.study.record import Record
from mtl_jax.study.shelf import Shelf
from mtl_jax.tasks import Task

MAX_TASKS = 6
MAX_FACES = 8  # Of each task.


def worst(directory: Path, record: Record, *, arms: Sequence[str]) -> list[dict[str, Any]]:
  """For each of the first tasks the test images with the greatest errors of `arms[1]`, errors averaged over seeds.

  Raises:
    UserError: where the prepared set is no longer where the study found it, or a replica's file is damaged.
  """
  test = mixture.load_split(mixture.open_data(record.config.data), 'test', record.tasks)
  found = {task.name: _predictions(directory, record, task, arms) for task in record.tasks[:MAX_TASKS]}
  return [
    {'task': task.name, 'faces': _faces(task, found[task.name], test)}
    for task in record.tasks[:MAX_TASKS]
    if arms[1] in found[task.name]
  ]


def _predictions(directory: Path, record: Record, task: Task, arms: Sequence[str]) -> dict[str, np.ndarray]:
  """Of each arm that has any, compared one first, the predictions `[S, n, outputs]` of every seed that came through."""
  shelf = Shelf(directory / 'replicas')
  found = {}
  for arm in dict.fromkeys((arms[1], *arms)):
    kept = [shelf.get(program, one.replica) for program, those in record.tested[arm].items() for one in those]
    values = [result.predictions[task.name] for result in kept if task.name in result.predictions]
    if values:
      found[arm] = np.stack(values)
  return found


def _faces(task: Task, predictions: Mapping[str, np.ndarray], test: Split) -> list[dict[str, Any]]:
  """Pictures with captions. Labels that stand each for itself are judged by the worst of them, others by their mean."""
  labels, mask = test.labels[task.name], test.mask[task.name]
  errors = {
    arm: np.where(mask, np.mean([task.errors(one, labels) for one in values], axis=0), np.nan).reshape(len(mask), -1)
    for arm, values in predictions.items()
  }
  labels, mask = labels.reshape(len(labels), -1), mask.reshape(len(mask), -1)
  labelled = np.flatnonzero(mask.any(-1))
  first = next(iter(errors.values()))[labelled]
  judged = np.nanmax(first, axis=-1) if task.splittable else np.nanmean(first, axis=-1)
  faces = []
  for row in labelled[np.argsort(-judged, kind='stable')[:MAX_FACES]]:
    own = {arm: values[row] for arm, values in errors.items()}
    truth = np.where(mask[row], labels[row], np.nan)
    points = {number: _marks(task, values[:, row].mean(0)) for number, values in enumerate(predictions.values())}
    caption = _caption(task, own, truth)
    position = np.array([row])
    image = test.read(position)['image'][0]
    faces.append({'uri': charts.face(image, _marks(task, truth), points), 'caption': caption, 'row': int(row)})
  return faces


def _marks(task: Task, values: np.ndarray) -> np.ndarray:
  """The points `[p, 2]` that a task's values say, as fractions of the image; none for most tasks."""
  if task.dense or len(values) != task.num_outputs:  # A label that is no prediction, such as the number of a class.
    return np.zeros((0, 2))
  return np.array(task.marks(task.describe(values, width=1, height=1))).reshape(-1, 2)


def _caption(task: Task, errors: Mapping[str, np.ndarray], truth: np.ndarray) -> str:
  first = next(iter(errors.values()))
  if task.splittable or len(truth) == 1:
    i = int(np.nanargmax(first))
    parts = [f'{task.labels[i].replace("_", " ")} is {truth[i]:g}']
    each = {arm: values[i] for arm, values in errors.items()}
  else:
    parts = ['mean error over its labels']
    each = {arm: float(np.nanmean(values)) for arm, values in errors.items()}
  return f'{parts[0]}: ' + ', '.join(f'{arm} off by {value:.2g}' for arm, value in each.items())
