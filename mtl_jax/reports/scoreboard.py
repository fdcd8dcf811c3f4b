"""Tables of metrics: runs side by side, parts of a run's split with their intervals, and other thresholds."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.reports import figures
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Block, Cell, Column, Heading, Row, Table, Text, table
from mtl_jax.reports.runs import Evaluation, Run, Slice, baseline, score, tasks_of
from mtl_jax.tasks import Task

BASELINE = 'constant prediction'
BETTER, WORSE, SAME = 'better', 'worse', 'same'
MAX_NAMED = 8  # Labels of a reservation.


def scoreboard(runs: Sequence[Run]) -> Table:
  """The metrics of each task by run, after those of the train labels' constant prediction; the best run's in bold.

  Where a run of several tasks and one of this task alone are among them, a last column compares the first of each.
  """
  compared = {task.name: outcomes(runs, task) for task in tasks_of(runs)}
  rows = []
  for task in tasks_of(runs):
    rows.append(Row(task.name, note=f'{BASELINE}: {task.baseline_name}', style='group'))
    for metric in task.shown:
      row = _row(task, metric, [run.evaluation for run in runs], best=len(runs) > 1)
      cells = [Cell(figures.level(score(baseline(runs, task.name), metric), metric), 'base'), *row.cells]
      if any(compared.values()):
        cells.append(Cell(', '.join(compared[task.name].get(metric, [MISSING]))))
      rows.append(row._replace(cells=cells))
  heads = [Column(run.side.name, side=run.side if len(runs) > 1 else None) for run in runs]
  last = ['joint less alone'] if any(compared.values()) else []
  return table('Test metrics', ['Metric', BASELINE, *heads, *last], rows)


def outcomes(runs: Sequence[Run], task: Task) -> dict[str, list[str]]:
  """By metric how the first run of this task and others differs from the first of it alone, and what that is.

  `better`, `worse`, or `same` as far as the shown figures tell; nothing where there are no two such runs.
  """
  having = [run for run in runs if task.name in run.evaluation['tasks']]
  joint = next((run for run in having if len(run.tasks) > 1), None)
  alone = next((run for run in having if len(run.tasks) == 1), None)
  if not (joint and alone):
    return {}
  found = {}
  for metric in task.shown:
    one, other = (score(run.evaluation['tasks'][task.name], metric) for run in (joint, alone))
    if one is None or other is None:
      continue
    shown = figures.difference(one - other, metric)[0]
    same = figures.level(one, metric) == figures.level(other, metric) or not any(
      map(str.isdigit, shown.replace('0', ''))
    )
    outcome = BETTER if (one > other) == figures.metric(metric).higher_is_better else WORSE
    found[metric] = [SAME] if same else [shown, outcome]
  return found


def not_better(runs: Sequence[Run]) -> dict[str, list[str]]:
  """The tasks of which runs learned nothing beyond the labels' means, by the main metric, and those runs."""
  found = {}
  for task in tasks_of(runs):
    floor = score(baseline(runs, task.name), task.main_metric)
    sign = 1 if figures.metric(task.main_metric).higher_is_better else -1
    values = {run.side.name: score(run.evaluation['tasks'].get(task.name), task.main_metric) for run in runs}
    names = [name for name, value in values.items() if value is not None and sign * (value - (floor or 0.0)) <= 0]
    found |= {task.name: names} if names and floor is not None else {}
  return found


def details(evaluation: Evaluation, tasks: Sequence[Task], *, name: str = '') -> list[Block]:
  """A table for each label that an evaluation was divided by, with reservations, and one of tuned thresholds.

  `name` is the run's.
  """
  body: list[Block] = []
  for label, slices in evaluation.get('slices', {}).items():
    columns = {'all': evaluation, **{f'{value}: {one["num_examples"]} images': one for value, one in slices.items()}}
    body += [Heading(f'{name}{" by " if name else "By "}{label}'), _table(label, columns, tasks)]
    body += [Text(said, 'note') for value, one in slices.items() if (said := _doubt(value, one))]
  if body:
    body.append(Text('In brackets the 95% interval over resamples of people, of this run alone.', 'quiet'))
  if found := evaluation.get('tuned'):
    columns = {'threshold 0.5': evaluation, f'tuned for {figures.name(found["by"])}': found}
    own = [task for task in tasks if task.name in found['tasks']]
    heading = Heading(f'{name}{": t" if name else "T"}hresholds tuned on validation')
    body += [heading, _table('Tuned thresholds', columns, own)]
  return body


def _table(label: str, columns: Mapping[str, Any], tasks: Sequence[Task]) -> Table:
  rows = []
  for task in tasks:
    rows += [Row(task.name, style='group'), *(_row(task, metric, [*columns.values()]) for metric in task.shown)]
  return table(label, ['Metric', *columns], rows)


def _row(task: Task, metric: str, evaluations: Sequence[Any], *, best: bool = False) -> Row:
  """A metric of several evaluations, with its interval where they have it."""
  values = [score(one['tasks'].get(task.name), metric) for one in evaluations]
  known = [value for value in values if value is not None]
  top = (max if figures.metric(metric).higher_is_better else min)(known) if best and len(known) > 1 else None
  cells = []
  for one, value in zip(evaluations, values, strict=True):
    ends = one.get('intervals', {}).get(task.name, {}).get(metric)
    interval = f' ({" to ".join(figures.level(end, metric) for end in ends)})' if isinstance(ends, tuple | list) else ''
    cells.append(Cell(figures.level(value, metric) + interval, 'best' if value is not None and value == top else ''))
  return Row(figures.directed(metric), cells)


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
