"""What the objective counts as one loss: a task, or each output of the tasks that can be split."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mtl_jax.objectives import losses
from mtl_jax.tasks import Task

GRAINS = ('tasks', 'outputs')


class Entry(NamedTuple):
  """One loss of the objective: all labels of a task, or those of one column.

  Attributes:
    name: the task's, or `task/label`.
    task: the task's.
    columns: of its labels.
  """

  name: str
  task: str
  columns: slice


def entries(tasks: Sequence[Task], grain: str = 'tasks') -> tuple[Entry, ...]:
  """The losses that the objective balances; with grain `outputs` each of 40 attributes is one, landmarks stay one."""
  found: list[Entry] = []
  for task in tasks:
    if grain == 'outputs' and task.splittable and len(task.labels) > 1:
      found += [Entry(f'{task.name}/{label}', task.name, slice(i, i + 1)) for i, label in enumerate(task.labels)]
    else:
      found.append(Entry(task.name, task.name, slice(None)))
  return tuple(found)


def reduce(
  per_label: Mapping[str, Float[Array, 'b n']],
  mask: Mapping[str, Bool[Array, 'b n']],
  *,
  entries: Sequence[Entry],
  parts: int = 1,
) -> tuple[Float[Array, 'p k'], Bool[Array, 'p k']]:
  """Each entry's mean loss and whether it has a label, over the whole batch or over each of several parts of it.

  Part p holds the rows p, p + parts, ...: every device has rows of each, and so has every set of a mixture.
  """
  means, present = [], []
  for part in range(parts):
    for entry in entries:
      counted = mask[entry.task][:, entry.columns]
      counted = counted & (jnp.arange(len(counted))[:, None] % parts == part)
      means.append(losses.masked_mean(per_label[entry.task][:, entry.columns], counted))
      present.append(counted.any())
  shape = (parts, len(entries))
  return jnp.stack(means).reshape(shape), jnp.stack(present).reshape(shape)
