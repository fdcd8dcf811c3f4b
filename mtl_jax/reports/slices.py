"""Test metrics of parts of a split side by side, each with its interval, in a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.reports import figures
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Block, Cell, Heading, Row, Text, table
from mtl_jax.reports.runs import score
from mtl_jax.tasks import Task

MAX_NAMED = 8  # Labels of a reservation.


def by_slice(evaluation: Mapping[str, Any], tasks: Sequence[Task], *, name: str = '') -> list[Block]:
  """A table for each label that an evaluation was divided by, and what to know of its slices; `name` is the run's."""
  body: list[Block] = []
  for label, slices in evaluation.get('slices', {}).items():
    columns = {'all': evaluation} | slices
    heads = [f'{value}: {one["num_examples"]} images' for value, one in columns.items()]
    rows = [
      row
      for task in tasks
      for row in (Row(task.name, style='group'), *(_row(task, metric, columns.values()) for metric in task.shown))
    ]
    body += [Heading(f'{name}{" by " if name else "By "}{label}'), table(label, ['Metric', *heads], rows)]
    body += [Text(said, 'note') for value, one in slices.items() if (said := _doubt(value, one))]
  if body:
    body.append(Text('In brackets the 95% interval over resamples of people, of this run alone.', 'quiet'))
  return body


def _row(task: Task, metric: str, columns: Any) -> Row:
  cells = []
  for one in columns:
    value = score(one['tasks'].get(task.name), metric)
    ends = one.get('intervals', {}).get(task.name, {}).get(metric)
    interval = f' ({" to ".join(figures.level(end, metric) for end in ends)})' if isinstance(ends, tuple | list) else ''
    cells.append(Cell(MISSING if value is None else figures.level(value, metric) + interval))
  return Row(f'{figures.metric(metric).phrase} {figures.arrow(metric)}', cells)


def _doubt(value: str, one: Mapping[str, Any]) -> str:
  """A reservation about a slice, empty where there is none."""
  if not one['num_examples']:
    return f'{value}: no image has this value.'
  said = [
    f'{what} {", ".join(names[:MAX_NAMED])}{" and others" * (len(names) > MAX_NAMED)}'
    for key, what in (('one_class', 'all alike in'), ('unlabelled', 'without labels of'))
    if (names := one[key])
  ]
  return f'{value}: {"; ".join(said)}: what tells classes apart is not measured there.' if said else ''
