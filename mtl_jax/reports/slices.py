"""Tables of one evaluation: parts of its split side by side, each with its interval; and other thresholds."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.reports import figures
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Block, Cell, Heading, Row, Table, Text, table
from mtl_jax.reports.runs import Evaluation, Slice, score
from mtl_jax.tasks import Task

MAX_NAMED = 8  # Labels of a reservation.


def by_slice(evaluation: Evaluation, tasks: Sequence[Task], *, name: str = '') -> list[Block]:
  """A table for each label that an evaluation was divided by, and what to know of its slices; `name` is the run's."""
  body: list[Block] = []
  for label, slices in evaluation.get('slices', {}).items():
    columns = {'all': evaluation, **{f'{value}: {one["num_examples"]} images': one for value, one in slices.items()}}
    body += [Heading(f'{name}{" by " if name else "By "}{label}'), _table(label, columns, tasks)]
    body += [Text(said, 'note') for value, one in slices.items() if (said := _doubt(value, one))]
  if body:
    body.append(Text('In brackets the 95% interval over resamples of people, of this run alone.', 'quiet'))
  return body


def tuned(evaluation: Evaluation, tasks: Sequence[Task], *, name: str = '') -> list[Block]:
  """The metrics of tasks whose thresholds were tuned, beside those at 0.5; nothing where none were."""
  found = evaluation.get('tuned')
  if found is None:
    return []
  columns = {'threshold 0.5': evaluation, f'tuned for {figures.name(found["by"])}': found}
  own = [task for task in tasks if task.name in found['tasks']]
  heading = Heading(f'{name}{": t" if name else "T"}hresholds tuned on validation')
  return [heading, _table('Tuned thresholds', columns, own)]


def _table(label: str, columns: Mapping[str, Any], tasks: Sequence[Task]) -> Table:
  rows = [
    row
    for task in tasks
    for row in (Row(task.name, style='group'), *(_row(task, metric, columns) for metric in task.shown))
  ]
  return table(label, ['Metric', *columns], rows)


def _row(task: Task, metric: str, columns: Mapping[str, Any]) -> Row:
  cells = []
  for one in columns.values():
    value = score(one['tasks'].get(task.name), metric)
    ends = one.get('intervals', {}).get(task.name, {}).get(metric)
    interval = f' ({" to ".join(figures.level(end, metric) for end in ends)})' if isinstance(ends, tuple | list) else ''
    cells.append(Cell(MISSING if value is None else figures.level(value, metric) + interval))
  return Row(f'{figures.metric(metric).phrase} {figures.arrow(metric)}', cells)


def _doubt(value: str, one: Slice) -> str:
  """A reservation about a slice, empty where there is none."""
  if not one['num_examples']:
    return f'{value}: no image has this value.'
  said = [
    f'{what} {", ".join(names[:MAX_NAMED])}{" and others" * (len(names) > MAX_NAMED)}'
    for names, what in ((one['one_class'], 'all alike in'), (one['unlabelled'], 'without labels of'))
    if names
  ]
  return f'{value}: {"; ".join(said)}: what tells classes apart is not measured there.' if said else ''
