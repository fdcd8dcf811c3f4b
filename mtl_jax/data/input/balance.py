"""Assigns each row of the train split to a group, for batches that are balanced by group."""

import logging

import numpy as np
from jaxtyping import Int64
from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.data.input import keep_labels, mixture
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.store.reader import Store
from mtl_jax.errors import ConfigError

FIELD = 'config.data.balance'
IDENTITY = 'identity'
DOMAIN = 'domain'

log = logging.getLogger('mtl_jax')


def groups(settings: ConfigDict, data: DataSet, *, seed: int) -> Int64[np.ndarray, ' n'] | None:
  """The group of each row of the train split, -1 for none; None without balancing by groups.

  Groups are read from the data set, whatever tasks are learned, so that single-task runs see the joint one's batches.

  Args:
    settings: `config.data`.
    data: the prepared set, or the mixture of several.
    seed: of the run, by which labels are dropped.

  Raises:
    ConfigError: for a label that the data does not have, or that has no classes, or for no row with a group.
  """
  by = settings.balance
  if by in ('', DOMAIN):  # Domains are sets, and equal shares of sets are a matter of weights.
    return None
  rows = [part.split('train') for part in data.parts]
  if by == IDENTITY:
    own = [part.identity[range_.start : range_.stop] for part, range_ in zip(data.parts, rows, strict=True)]
    found = np.concatenate(own).astype(np.int64)
  else:
    found = _classes(settings, data, seed)
  if (found < 0).all():
    raise ConfigError(f'{FIELD}: no train row of {data.directory} has {by!r}; leave it empty')
  bounds = np.cumsum([0, *map(len, rows)])
  for part, begin, end in zip(data.parts, bounds[:-1], bounds[1:], strict=True):
    _describe(by, part, found[begin:end])
  return found


def _classes(settings: ConfigDict, data: DataSet, seed: int) -> Int64[np.ndarray, ' n']:
  """The class of a label in each train row, -1 where it is missing or dropped."""
  by, tasks = settings.balance, {task.name: task for task in data.tasks}
  labels = [f'{task.name}/{label}' for task in data.tasks for label in task.labels]
  name, _, label = choose(by, [IDENTITY, DOMAIN, *labels], field=FIELD).partition('/')
  if not tasks[name].discrete:
    raise ConfigError(f'{FIELD}: {by!r} is of a {tasks[name].kind} task and has no classes to balance')
  split = mixture.load_split(data, 'train', [tasks[name].subset((label,), field=FIELD)])
  kept = keep_labels.label_mask(settings.keep_labels, list(tasks), example_ids=split.example_id, seed=seed)
  present = split.mask[name][:, 0] & kept[name]
  return np.where(present, split.labels[name][:, 0], -1).astype(np.int64)


def _describe(by: str, part: Store, found: Int64[np.ndarray, ' n']) -> None:
  sizes = np.unique(found[found >= 0], return_counts=True)[1]
  if len(sizes):
    log.info(
      'balance %s: %d groups of %d to %d train rows of %s; %d of its %d rows have none and are left out',
      *(by, len(sizes), sizes.min(), sizes.max(), part.directory, len(found) - sizes.sum(), len(found)),
    )
  else:
    log.info('balance %s: no train row of %s has one, so all are drawn alike', by, part.directory)
