"""What the objective counts as one loss: a task, or each output of the tasks that can be split."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int64

from mtl_jax.tasks import Task


class Entry(NamedTuple):
  """One loss of the objective: all labels of a task, or those of one column.

  Attributes:
    name: the task's, or `task/label`.
    task: the task's.
    column: of its labels; None takes all.
  """

  name: str
  task: str
  column: int | None = None


def entries(tasks: Sequence[Task], grain: str = 'tasks') -> tuple[Entry, ...]:
  """The losses that the objective balances: with grain `outputs` each of 40 attributes is one, landmarks stay one."""
  found: list[Entry] = []
  for task in tasks:
    if grain == 'outputs' and task.splittable and len(task.labels) > 1:
      found += [Entry(f'{task.name}/{label}', task.name, column) for column, label in enumerate(task.labels)]
    else:
      found.append(Entry(task.name, task.name))
  return tuple(found)


def names(tasks: Sequence[Task], grain: str) -> list[str]:
  """The names of the losses."""
  return [entry.name for entry in entries(tasks, grain)]


def reduce(
  per_label: Mapping[str, Float[Array, 'b n']],
  mask: Mapping[str, Bool[Array, 'b n']],
  *,
  entries: Sequence[Entry],
  parts: int = 1,
  weights: Mapping[str, Float[Array, 'b n']] | None = None,
) -> tuple[Float[Array, 'p k'], Bool[Array, 'p k']]:
  """Each entry's mean loss over the labels it has, and whether it has any, in each part of the batch.

  With `weights`, above 0 where the mask is True, it is the weighted mean. Parts are those of `batch_parts`.
  """
  columns, whole = {}, {}
  for name in dict.fromkeys(entry.task for entry in entries):
    totals, counts = _columns(per_label[name], mask[name], parts, None if weights is None else weights[name])
    columns[name] = totals / jnp.where(counts > 0, counts, 1), counts > 0
    total, count = totals.sum(1), counts.sum(1)
    whole[name] = total / jnp.where(count > 0, count, 1), count > 0
  found = [whole[e.task] if e.column is None else [v[:, e.column] for v in columns[e.task]] for e in entries]
  return jnp.stack([mean for mean, _ in found], axis=1), jnp.stack([present for _, present in found], axis=1)


def batch_parts(num_rows: int, num: int) -> Int64[np.ndarray, ' b']:
  """The part of each row of a batch that is cut into so many, as equal as can be.

  Each device's rows are cut into runs of successive ones, since any such run holds every set of a mixture in its share
  (`data/order.py:interleaved`), as rows at even distances need not. Which run is whose moves on by one from device to
  device, so that a set's few rows, which lie in the same place of each, come to all parts.
  """
  devices = parts_by_device(num_rows, num)
  place, device = np.arange(num_rows) % (num_rows // devices), np.arange(num_rows) * devices // num_rows
  return (place * num * devices // num_rows + device) % num


def parts_by_device(num_rows: int, num: int) -> int:
  """The number of devices, each of which cuts its rows into so many runs; 1 where they cannot all do so alike."""
  devices = jax.device_count()
  return 1 if num_rows % devices or num_rows // devices < num else devices


def rows_of_first_part(values: Array, num: int) -> Array:
  """A run of rows of part 0 of `batch_parts` from each device, which is all of it where `num` divides a device's rows.

  As `batch[part == 0]` it would be a gather over the whole batch, for which devices exchange their rows.
  """
  devices = parts_by_device(len(values), num)
  by_device = values.reshape(devices, -1, *values.shape[1:])
  rows = by_device.shape[1]
  first = -(-(-np.arange(devices) % num * rows) // num)  # Of the run of part 0 on each device.
  places = (first[:, None] + np.arange(rows // num)).reshape(devices, -1, *[1] * (values.ndim - 1))
  chosen = jnp.take_along_axis(by_device, places, axis=1, mode='promise_in_bounds')
  return chosen.reshape(-1, *values.shape[1:])


def _columns(
  values: Float[Array, 'b n'], mask: Bool[Array, 'b n'], parts: int, weights: Float[Array, 'b n'] | None
) -> tuple[Array, Array]:
  """For each part and column `[p, n]` the sum of the values under a True mask, and how many there are, or weigh."""
  part = batch_parts(len(values), parts)
  chosen = mask & (part == jnp.arange(parts)[:, None])[:, :, None]  # [p, b, n]
  if weights is None:
    return jnp.where(chosen, values, 0).sum(1), chosen.sum(1)
  return jnp.where(chosen, weights * values, 0).sum(1), jnp.where(chosen, weights, 0).sum(1)
