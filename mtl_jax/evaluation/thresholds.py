"""Tunes decision thresholds of yes-or-no labels on validation, saves them with the run, and applies them."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from mtl_jax.data.input.pipeline import Split
from mtl_jax.errors import CheckpointError
from mtl_jax.metrics.binary import THRESHOLD
from mtl_jax.platform import json_file
from mtl_jax.run.trained_model import TrainedModel
from mtl_jax.tasks import Task

FILE, FLAG = 'thresholds.json', '--tune_thresholds'

log = logging.getLogger('mtl_jax')


class SavedThresholds(TypedDict):
  """The file's content: the checkpoint's step, the metric, and by task each label's threshold."""

  step: int
  by: str
  tasks: dict[str, dict[str, float]]


def tune(
  tasks: Sequence[Task], predictions: Mapping[str, np.ndarray], val: Split, *, by: str
) -> dict[str, dict[str, float]]:
  """Picks each label's threshold by a metric on validation; 0.5 where all labels there are equal.

  Raises:
    CheckpointError: for a run without yes-or-no labels.
  """
  found = {}
  for task in tasks:
    best = task.best_thresholds(predictions[task.name], val.labels[task.name], mask=val.mask[task.name], by=by)
    if kept := [label for label, threshold in best.items() if threshold is None]:
      log.warning('warning: threshold %s stays for %s: all alike on validation', THRESHOLD, ', '.join(kept))
    found |= {task.name: {label: THRESHOLD if t is None else t for label, t in best.items()}} if best else {}
  if not found:
    raise CheckpointError(f'{FLAG}: the run has no yes-or-no labels; leave it out')
  return found


def with_thresholds(tasks: Sequence[Task], thresholds: Mapping[str, Mapping[str, float]]) -> tuple[Task, ...]:
  """The tasks, with thresholds in those that have some."""
  return tuple(task.with_thresholds(thresholds[task.name]) if task.name in thresholds else task for task in tasks)


def tuned(directory: Path, model: TrainedModel) -> TrainedModel:
  """The model of a run, with the thresholds that were saved with it in its tasks.

  Raises:
    CheckpointError: where none were kept, or those of another step.
  """
  make = f'tune them with `mtl-jax eval --workdir {directory} --step {model.step} {FLAG}`'
  saved = json_file.read(directory / FILE, SavedThresholds, advice=make)
  if saved['step'] != model.step:
    raise CheckpointError(f'{directory / FILE} is of step {saved["step"]}, the model of step {model.step}; {make}')
  try:
    tasks = with_thresholds(model.tasks, saved['tasks'])
  except (KeyError, ValueError) as error:
    raise CheckpointError(f'{directory / FILE} is of other labels; {make}') from error
  return dataclasses.replace(model, facts=dataclasses.replace(model.facts, tasks=tasks))
