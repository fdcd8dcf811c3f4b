"""Evaluates a whole split; the last batch is padded and its padding masked, so that no example is dropped."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mtl_jax.config import parts
from mtl_jax.data.input import pipeline
from mtl_jax.data.input.pipeline import Split
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation.step import eval_step
from mtl_jax.metrics.draws import Draws
from mtl_jax.models.network import Network
from mtl_jax.platform import sharding
from mtl_jax.tasks import LabelStats, Task, higher_is_better, source


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A model's predictions and losses over a whole split.

  Attributes:
    predictions: for each task `[n, outputs]`, probabilities or values in the labels' own units.
    losses: for each task the mean over its labels, 0 where it has none.
  """

  predictions: dict[str, np.ndarray]
  losses: dict[str, float]


def compile_eval_step(model: Network, tasks: Sequence[Task], mesh: Mesh) -> Callable[..., Any]:
  """`eval_step`, jitted on the mesh; every process gets the predictions of the whole batch."""
  return jax.jit(partial(eval_step, model=model, tasks=tasks), out_shardings=sharding.replicated(mesh))


def evaluate_split(
  split: Split,
  variables: Mapping[str, Any],
  label_stats: Mapping[str, LabelStats],
  *,
  compiled_step: Callable[..., Any],
  mesh: Mesh,
  batch_size: int,
  on_batch: Callable[[int], Any] | None = None,
) -> Evaluation:
  """Runs `compiled_step` over a whole split. `on_batch` is called after each batch with the number of its examples."""
  batch_size = -(-batch_size // jax.device_count()) * jax.device_count()  # Padding is masked, so rounding is free.
  local = sharding.local_rows(batch_size, field='eval.batch_size')
  put = partial(sharding.to_global, sharding=sharding.by_rows(mesh))
  results = []
  for batch in pipeline.padded_batches(split, batch_size, local=local, put=put):
    results.append(compiled_step(variables, label_stats, batch))
    sharding.limit_in_flight(results)
    if on_batch:
      on_batch(min(len(results) * batch_size, len(split)))
  corrupt = split.corrupt_rows()  # Among images that other processes have read, too.
  for mask in split.mask.values():
    mask[corrupt] = False
  return gathered(jax.device_get(results), split)


def gathered(results: Sequence[Mapping[str, Any]], split: Split) -> Evaluation:
  """Concatenates the results of `eval_step` over a split's batches; the padding of the last batch is dropped."""
  predictions = {
    name: np.concatenate([result['predictions'][name] for result in results])[: len(split)] for name in split.labels
  }
  losses = {}
  for name in split.labels:
    total = sum(float(result['loss_sum'][name]) for result in results)
    losses[name] = total / max(sum(int(result['num_labels'][name]) for result in results), 1)
  return Evaluation(predictions, losses)


def task_metrics(
  predictions: Mapping[str, np.ndarray],
  split: Split,
  tasks: Sequence[Task],
  *,
  mask: Mapping[str, np.ndarray] | None = None,
  draws: Draws | None = None,
) -> dict[str, dict[str, Any]]:
  """The metrics of each task, as the eval JSON has them; under another mask than the split's, or of draws.

  Raises:
    ConfigError: for a kind of task of the user's own that fails, or does not give what its `measures` name.
  """
  metrics = {}
  for task in tasks:
    own, field = source(task), 'config.plugins'
    with parts.wrap_errors(own, field=field):
      metrics[task.name] = found = task.metrics(
        predictions[task.name],
        split.labels[task.name],
        mask=(mask or split.mask)[task.name],
        source_size=split.source_size,
        draws=draws,
      )
      lacking = {metric.name for metric in task.measures} - task.undefined - found.keys() if own else ()
    if lacking:
      raise ConfigError(f'{field}: score of {own} gives no {", ".join(sorted(lacking))}, which its measures name')
  return metrics


def baseline_metrics(
  label_stats: Mapping[str, LabelStats], split: Split, tasks: Sequence[Task]
) -> dict[str, dict[str, Any]]:
  """Scores the train split's constant predictions: the majority class, the mean face."""
  constant = {
    task.name: np.broadcast_to(
      np.asarray(label_stats[task.name].baseline), (len(split), *label_stats[task.name].baseline.shape)
    )
    for task in tasks
  }
  return task_metrics(constant, split, tasks)


def dump(evaluation: Evaluation, split: Split) -> dict[str, np.ndarray]:
  """The arrays of a `--predictions` file."""
  arrays = {'example_id': split.example_id}
  for name, values in evaluation.predictions.items():
    arrays |= {f'{name}/pred': values, f'{name}/label': split.labels[name], f'{name}/mask': split.mask[name]}
  return arrays


def score(metric: str, *, total_loss: float, metrics: Mapping[str, Mapping[str, Any]]) -> float:
  """The value that picks the best checkpoint, higher is better.

  Args:
    metric: `loss`, `<task>/<metric>`, or `*/<metric>`, the mean over all tasks that have it.
    total_loss: weighted sum of the tasks' losses.
    metrics: as `task_metrics` gives them.

  Raises:
    ConfigError: for a task or metric there is not.
  """
  if metric == 'loss':
    return -total_loss
  task, _, name = metric.rpartition('/')
  of_tasks = [values[name] for values in metrics.values() if isinstance(values.get(name), (int, float))]
  value = metrics.get(task, {}).get(name)
  if task == '*' and of_tasks:
    value = sum(of_tasks) / len(of_tasks)
  if not isinstance(value, (int, float)):
    have = ', '.join(f'{t}/{m}' for t, values in metrics.items() for m, v in values.items() if isinstance(v, float))
    raise ConfigError(f'config.eval.metric: no metric {metric!r} on the validation split; there is loss, {have}')
  return float(value) if higher_is_better(name) else -float(value)
