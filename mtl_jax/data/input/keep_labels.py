"""Drops labels of the train split by rule, for experiments on labels that are missing or disjoint.

A rule is one of

    attributes:0.1,landmarks:0.5       the share of rows that keep their labels, for each task; others keep all
    disjoint                           each row keeps the labels of one task of the data set, evenly
    disjoint:attributes=3,landmarks=1  of one of these tasks, by weight; tasks not named keep none
    disjoint:attributes=4,landmarks=4,all=1,none=1   likewise, but a tenth of the rows keeps all, and a tenth nothing

Whether a row keeps a task's labels depends on the seed, the row's id and the task's name alone: not on the other rows,
nor on which tasks a run learns, so that single-task runs see exactly the labels that the joint one sees.
"""

import dataclasses
import hashlib
import logging
import math
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from mtl_jax.config import choose
from mtl_jax.data.input.permutation import mixed
from mtl_jax.data.input.pipeline import Split, by_rows
from mtl_jax.errors import ConfigError
from mtl_jax.tasks import Task

FIELD = 'config.data.keep_labels'
DISJOINT = 'disjoint'
ALL, NONE = 'all', 'none'  # In a disjoint rule: rows that keep the labels of all tasks, or of none.

log = logging.getLogger('mtl_jax')


def apply(split: Split, rule: str, *, tasks: Sequence[Task], groups: Sequence[str], seed: int) -> Split:
  """Masks the labels of a split that the rule drops; the empty rule drops none.

  Args:
    split: the train split; validation and test are to keep all labels.
    rule: see above.
    tasks: the tasks of the split.
    groups: the names of the tasks of the data set, which the rule may speak of.
    seed: decides, with the rows' ids, which labels are kept.

  Raises:
    ConfigError: for a rule that cannot be read, or that leaves no label of one of the tasks.
  """
  if not rule:
    return split
  keep = label_mask(rule, groups, example_ids=split.example_id, seed=seed)
  mask = {task.name: split.mask[task.name] & by_rows(keep[task.group], split.mask[task.name]) for task in tasks}
  for task in tasks:
    if split.mask[task.name].any() and not mask[task.name].any():
      raise ConfigError(f'{FIELD}: {rule!r} leaves no label of task {task.name!r}; keep some, or do not learn it')
  counts = ', '.join(f'{name} {rows.sum()}' for name, rows in keep.items())
  log.info('keep_labels %s: of %d train rows keep their labels: %s', rule, len(split), counts)
  return dataclasses.replace(split, mask=mask)


def label_mask(
  rule: str, names: Sequence[str], *, example_ids: Int[np.ndarray, ' n'], seed: int
) -> dict[str, Bool[np.ndarray, ' n']]:
  """True for each row that keeps its labels, for each task.

  Args:
    rule: see above; the empty one keeps all.
    names: the tasks of the data set.
    example_ids: the rows' ids.
    seed: of the draw.

  Raises:
    ConfigError: for a rule that cannot be read, saying which part of it.
  """
  draws = {name: _draw(name, example_ids, seed=seed) for name in (*names, ALL, NONE)}
  kind, separator, listed = rule.strip().partition(':')
  if kind.strip() == DISJOINT:
    weights = _numbers(listed, '=', names=tuple(draws)) if separator else dict.fromkeys(names, 1.0)
    owned = _one_task_each(draws, weights, rule=rule)
    return {name: owned[name] | owned[ALL] for name in names}
  shares = _numbers(rule, ':', names=names, most=1.0) if rule.strip() else {}
  return {name: draws[name] < shares.get(name, 1.0) for name in names}


def _one_task_each(
  draws: dict[str, Float[np.ndarray, ' n']], weights: dict[str, float], *, rule: str
) -> dict[str, Bool[np.ndarray, ' n']]:
  """Gives each row to one task: the first arrival of exponential clocks, whose rates are the weights.

  A further task thereby takes rows from the others, but moves none between them.
  """
  running = [name for name in draws if weights.get(name)]
  if not running:
    raise ConfigError(f'{FIELD}: {rule!r} gives no task a weight above 0')
  arrivals = np.stack([-np.log(draws[name]) / weights[name] for name in running])
  first = arrivals.argmin(0)
  return {name: first == running.index(name) if name in running else np.zeros(first.shape, bool) for name in draws}


def _numbers(text: str, separator: str, *, names: Sequence[str], most: float = sys.float_info.max) -> dict[str, float]:
  """The numbers from 0 to `most` in `name<separator>number,...`; every name is one of `names`, once."""
  numbers: dict[str, float] = {}
  for part in text.split(','):
    name, found, number = (piece.strip() for piece in part.partition(separator))
    if not found:
      example = f'{names[0]}:0.5' if separator == ':' else f'{DISJOINT}:{names[0]}=2'
      raise ConfigError(
        f'{FIELD}: {part.strip()!r} is no TASK{separator}NUMBER; write such as {example}, or {DISJOINT} alone'
      )
    choose(name, names, field=FIELD)
    if name in numbers:
      raise ConfigError(f'{FIELD}: {name!r} is named twice')
    try:
      numbers[name] = float(number)
    except ValueError:
      numbers[name] = math.nan
    if not 0 <= numbers[name] <= most:
      bounds = 'from 0 to 1' if most == 1 else 'finite and at least 0'
      raise ConfigError(f'{FIELD}: the number of {name!r} must be {bounds}, not {number!r}')
  return numbers


def _draw(name: str, example_ids: Int[np.ndarray, ' n'], *, seed: int) -> Float[np.ndarray, ' n']:
  """A number in (0, 1) for each row, by splitmix64 of its id, keyed by the seed and the task's name."""
  key = np.frombuffer(hashlib.sha256(f'{seed}/{name}'.encode()).digest()[:8], '<u8')
  bits = mixed(mixed(np.asarray(example_ids).astype(np.uint64)) ^ key)
  return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
