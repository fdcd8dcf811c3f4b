"""The test images that the compared arm gets most wrong, as pictures with their errors. They may show real people."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data.input import mixture
from mtl_jax.data.input.pipeline import Split
from mtl_jax.reports import charts
from mtl_jax.reports.page import Block, Heading, Picture, Pictures, Text
from mtl_jax.studies.results import Record, ResultStore
from mtl_jax.tasks import Task

MAX_TASKS = 6
MAX_FACES = 8  # Of each task.


def worst(directory: Path, record: Record, *, arms: Sequence[str]) -> list[Block]:
  """Pictures of the test images with the greatest errors of `arms[1]`, for each of the first tasks.

  Raises:
    UserError: where the prepared set is no longer where the study found it, or a replica's file is damaged.
  """
  test = mixture.load_split(mixture.open_data(record.config.data), 'test', record.tasks)
  order = (arms[1], arms[0], *arms[2:])
  marks = ', '.join(f'{"x+"[i % 2]} where {arm} does' for i, arm in enumerate(order))
  body: list[Block] = [
    Heading('Worst test errors'),
    Text(
      f'The test images that {arms[1]} gets most wrong, errors averaged over seeds. A ring is where a landmark is; '
      f'predictions are means over seeds, {marks}. They are chosen for being wrong and say nothing of how often that '
      'happens.'
    ),
  ]
  for task in record.tasks[:MAX_TASKS]:
    found = _predictions(directory, record, task, arms, len(test))
    if arms[1] in found:
      body += [Heading(task.name, 3), Pictures(_faces(task, found, test))]
  return body


def _predictions(directory: Path, record: Record, task: Task, arms: Sequence[str], num: int) -> dict[str, np.ndarray]:
  """Predictions `[S, n, outputs]` of every seed that came through, of each arm that has any, the compared one first."""
  results = ResultStore(directory / 'replicas')
  found = {}
  for arm in dict.fromkeys((arms[1], *arms)):
    replicas = [(program, one) for program, those in record.tested[arm].items() for one in those]
    kept = [results.predictions(*one, {task.name: (num, *task.prediction_shape)}) for one in replicas]
    values = [predictions[task.name] for predictions in kept if predictions]
    if values:
      found[arm] = np.stack(values)
  return found


def _faces(task: Task, predictions: Mapping[str, np.ndarray], test: Split) -> list[Picture]:
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
    faces.append(Picture(charts.face(image, _marks(task, truth), points), f'Test image {row}. {caption}', caption))
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
