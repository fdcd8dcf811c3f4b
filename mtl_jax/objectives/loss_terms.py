"""The losses that an objective balances, one per task or per output, and the parts of a batch they are means over."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int64, Shaped

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
  per_label: Mapping[str, Shaped[Array | np.ndarray, 'b ...']],
  mask: Mapping[str, Bool[Array | np.ndarray, 'b ...']],
  *,
  entries: Sequence[Entry],
  part: Int64[np.ndarray, ' b'] | None = None,
  parts: int = 1,
  weights: Mapping[str, Float[Array | np.ndarray, 'b ...']] | None = None,
) -> tuple[Float[Array, 'p k'], Bool[Array, 'p k']]:
  """Each entry's mean loss over the labels it has, and whether it has any, in each part of the batch.

  With `weights`, above 0 where the mask is True, it is the weighted mean. `part` is each row's, of `parts`.
  """
  columns, whole = {}, {}
  for name in dict.fromkeys(entry.task for entry in entries):
    flat = mask[name].shape[0], -1
    chosen = mask[name].reshape(flat)
    chosen = chosen[None] if part is None else chosen & (part == jnp.arange(parts)[:, None])[:, :, None]  # [p, b, n]
    factors = 1 if weights is None else weights[name].reshape(flat)
    totals = jnp.where(chosen, factors * per_label[name].reshape(flat), 0).sum(1)
    counts = chosen.sum(1) if weights is None else jnp.where(chosen, factors, 0).sum(1)
    columns[name] = totals / jnp.where(counts > 0, counts, 1), counts > 0
    total, count = totals.sum(1), counts.sum(1)
    whole[name] = total / jnp.where(count > 0, count, 1), count > 0
  found = [whole[e.task] if e.column is None else [v[:, e.column] for v in columns[e.task]] for e in entries]
  return jnp.stack([mean for mean, _ in found], axis=1), jnp.stack([present for _, present in found], axis=1)


def batch_parts(sets: Int64[np.ndarray, ' b'], num: int) -> Int64[np.ndarray, ' b']:
  """The part of each row of a batch that is cut into `num`, given the set of a mixture that each row is of.

  Every `num` successive rows hold one row of each part, so that devices whose rows are a multiple of it have equally
  many of each, however many devices there are. Of the ways to do so, each part gets its share of each set, and nothing
  else that may lie at even distances in a batch stays together.
  """
  part, sizes = np.empty(len(sets), np.int64), np.bincount(sets)
  taken = np.zeros((len(sizes), num), np.int64)
  draws = np.random.PCG64(0).random_raw(-(-len(sets) // num) * num).reshape(-1, num)
  for block, draw in enumerate(draws):
    free, rows = list(np.argsort(draw)), range(block * num, min((block + 1) * num, len(sets)))
    for row in sorted(rows, key=lambda row: sizes[sets[row]]):  # Rare sets choose first.
      part[row] = min(free, key=lambda one: taken[sets[row], one])
      free.remove(part[row])
      taken[sets[row], part[row]] += 1
  return part


def rows_of_first_part(values: Array | np.ndarray, part: Int64[np.ndarray, ' b'], num: int) -> Array:
  """The rows of part 0 of `batch_parts`, one of every `num`.

  As `batch[part == 0]` it would be a gather over the whole batch, for which devices exchange their rows.
  """
  blocks = len(values) // num
  places = np.flatnonzero(part[: blocks * num] == 0) % num
  by_block = values[: blocks * num].reshape(blocks, num, *values.shape[1:])
  places = places.reshape(blocks, *[1] * values.ndim)
  return jnp.take_along_axis(by_block, places, axis=1, mode='promise_in_bounds')[:, 0]
