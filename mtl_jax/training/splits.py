"""Loads a run's train and validation splits, the labels that it keeps, and their statistics."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from mtl_jax.data.input import balance, keep_labels, mixture
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.input.sampler import rows_a_batch
from mtl_jax.errors import DataError
from mtl_jax.evaluation import evaluate
from mtl_jax.platform import sharding
from mtl_jax.tasks import LabelStats, Task
from mtl_jax.training import micro_batches


def load(
  config: ConfigDict, store: DataSet, tasks: Sequence[Task]
) -> tuple[Split, Split | None, dict[str, LabelStats]]:
  """The train split with the labels it keeps, the validation split if there is one, and the labels' statistics.

  Raises:
    UserError: for settings that this set cannot serve, now rather than hours later.
  """
  sharding.local_rows(config.train.batch_size, field='train.batch_size')
  micro_batches.check(config)
  train = keep_labels.apply(
    mixture.load_split(store, 'train', tasks),
    config.data.keep_labels,
    tasks=tasks,
    groups=[task.name for task in store.tasks],
    seed=config.train.seed,
  )
  rows_by_set(config, train)
  label_stats = {
    task.name: task.stats(train.labels[task.name], mask=train.mask[task.name], standardize=config.objective.standardize)
    for task in tasks
  }
  if store.split_sizes['val']:
    val = mixture.load_split(store, 'val', tasks)
    evaluate.score(config.eval.metric, total_loss=0.0, metrics=evaluate.baseline_metrics(label_stats, val, tasks))
    return train, val, label_stats
  if config.eval.patience or config.eval.metric != 'loss':
    raise DataError(f'split val of {store.directory} has no rows, but config.eval.patience or .metric asks for it')
  return train, None, label_stats


def rows_by_set(config: ConfigDict, split: Split) -> tuple[int, ...]:
  """The number of rows of each set of the train split in every global batch; of one set, all."""
  sizes = split.parts or (len(split),)
  equal = (1,) * len(sizes) if config.data.balance == balance.DOMAIN else ()
  return rows_a_batch(tuple(config.data.weights) or equal or sizes, config.train.batch_size)
