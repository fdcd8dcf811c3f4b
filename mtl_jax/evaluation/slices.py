"""Metrics of subgroups of a split, such as women and men, with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.data.input import mixture
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Split, by_rows
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation.evaluate import task_metrics
from mtl_jax.metrics.draws import Draws, draw
from mtl_jax.tasks import Task, select

FIELD = '--slices'

# Sums of absolute errors grow by resampling: the estimate itself lay below its percentile interval.
UNRESAMPLED = ('ece', 'macro_ece')


def choose(names: Sequence[str], store: DataSet) -> list[Task]:
  """Selects the labels that a split is divided by, each as a task.

  Args:
    names: `task/label`, or `task` of a task of one label.
    store: the set that has them, whether or not a model predicts them.

  Raises:
    ConfigError: for a label that there is not, or whose values are not few.
  """
  chosen = list(select(store.tasks, names, field=FIELD)) if names else []
  for task in chosen:
    if len(task.labels) > 1:
      raise ConfigError(f'{FIELD}: {task.name} has several labels; name one, such as {task.name}/{task.labels[0]}')
    if not task.discrete:
      raise ConfigError(
        f'{FIELD}: {task.name} is {task.kind}; a split is divided by binary, categorical or ordinal ones'
      )
  return chosen


def of_split(
  by: Sequence[Task], predictions: Mapping[str, np.ndarray], split: Split, tasks: Sequence[Task], store: DataSet,
  *, name: str,
) -> dict[str, Any]:  # fmt: skip
  """The keys `intervals` and `slices` of the eval JSON.

  Every slice has a value of its label, and holds `num_examples`, the `tasks` and `intervals` of its images alone, the
  labels that all its images have alike (`one_class`) and those that none has (`unlabelled`). An interval is the 95%
  percentile interval over resamples of people, the same for all slices; None where fewer than two people have a label,
  and of calibration errors.
  `name` is that of the split, which is of the store; `by` are the labels that divide it.
  """
  draws = draw(mixture.identities(store, split.example_id))
  labels = mixture.load_split(store, name, by, missing_ok=True, partial_ok=True)

  def scored(rows: np.ndarray) -> dict[str, Any]:
    mask = {task.name: split.mask[task.name] & by_rows(rows, split.mask[task.name]) for task in tasks}
    return {
      'tasks': task_metrics(predictions, split, tasks, mask=mask),
      'intervals': _intervals(task_metrics(predictions, split, tasks, mask=mask, draws=draws), mask, draws),
    } | _degenerate_labels(tasks, split.labels, mask)

  slices: dict[str, Any] = {}
  for label in by:
    values, present = labels.labels[label.name][:, 0], labels.mask[label.name][:, 0]
    slices[label.name] = {}
    for number, value in enumerate(getattr(label, 'classes', ()) or ('0', '1')):
      rows = present & (values == number)
      slices[label.name][value] = {'num_examples': int(rows.sum()), **scored(rows)}
  return {'intervals': scored(np.ones(len(split), bool))['intervals'], 'slices': slices}


def _intervals(resampled: Mapping[str, Any], mask: Mapping[str, np.ndarray], draws: Draws) -> dict[str, Any]:
  """The ends of the interval of each metric `[B]` of each task, and of each of its outputs."""

  def ends(metric: Any, known: bool) -> Any:
    if isinstance(metric, dict):
      return {
        key: ends(value, known and key not in UNRESAMPLED)
        for key, value in metric.items()
        if isinstance(value, dict | np.ndarray)
      }
    finite = metric[np.isfinite(metric)]
    return np.percentile(finite, (2.5, 97.5)).tolist() if known and finite.size else None

  return {task: ends(metrics, draws.num_clusters(mask[task]) > 1) for task, metrics in resampled.items()}


def _degenerate_labels(
  tasks: Sequence[Task], labels: Mapping[str, np.ndarray], mask: Mapping[str, np.ndarray]
) -> dict[str, list[str]]:
  """Lists the labels, as `task/label`, that have only one value, or none."""
  found: dict[str, list[str]] = {'one_class': [], 'unlabelled': []}
  for task in tasks:
    for i, label in enumerate(task.labels):
      own = mask[task.name] if task.dense else mask[task.name][:, i]
      name = task.name if len(task.labels) == 1 else f'{task.name}/{label}'
      if not own.any():
        found['unlabelled'].append(name)
      elif task.discrete and len(np.unique(labels[task.name][own, i])) == 1:
        found['one_class'].append(name)
  return found
