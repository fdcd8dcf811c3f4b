"""Test metrics of runs side by side, in a table."""

from collections.abc import Sequence

from mtl_jax.reports import figures
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Cell, Column, Row, Table, table
from mtl_jax.reports.runs import Run, baseline, score, tasks_of
from mtl_jax.tasks import Task

BASELINE = 'constant prediction'
BETTER, WORSE, SAME = 'better', 'worse', 'same'


def scoreboard(runs: Sequence[Run]) -> Table:
  """The metrics of each task by run, after those of the train labels' constant prediction.

  Where a run of several tasks and one of this task alone are among them, a last column compares the first of each. A
  row says `better`, `worse` or `same` for a task's main metric.
  """
  compared = any(sides_of(runs, task) for task in tasks_of(runs))
  rows = []
  for task in tasks_of(runs):
    rows.append(Row(task.name, note=f'{BASELINE}: {task.baseline_name}', style='group'))
    rows += [_row(runs, task, metric, compared=compared) for metric in task.shown]
  heads = [Column(run.side.name, side=run.side if len(runs) > 1 else None) for run in runs]
  return table('Test metrics', ['Metric', BASELINE, *heads, *(['joint less alone'] if compared else [])], rows)


def sides_of(runs: Sequence[Run], task: Task) -> tuple[Run, Run] | None:
  """The first run that was trained for the task and others, and the first for it alone; None without both."""
  having = [run for run in runs if task.name in run.evaluation['tasks']]
  joint = next((run for run in having if len(run.tasks) > 1), None)
  alone = next((run for run in having if len(run.tasks) == 1), None)
  return (joint, alone) if joint and alone else None


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


def _row(runs: Sequence[Run], task: Task, metric: str, *, compared: bool) -> Row:
  scores = [run.evaluation['tasks'].get(task.name) for run in runs]
  values = [None if one is None else score(one, metric) for one in scores]
  known = [value for value in values if value is not None]
  best = (max if figures.metric(metric).higher_is_better else min)(known) if len(known) > 1 else None
  cells = [Cell(figures.level(score(baseline(runs, task.name), metric), metric), 'base')]
  cells += [Cell(figures.level(v, metric), 'best' if v is not None and v == best else '') for v in values]
  outcome = ''
  if compared:
    shown = MISSING
    if pair := sides_of(runs, task):
      shown, outcome = _compare(metric, *(score(run.evaluation['tasks'][task.name], metric) for run in pair))
    cells.append(Cell(shown))
  name = f'{figures.metric(metric).phrase} {figures.arrow(metric)}'
  return Row(name, cells, says=outcome if metric == task.main_metric else '')


def _compare(metric: str, joint: float | None, alone: float | None) -> tuple[str, str]:
  """The difference and what it is, as far as the shown figures tell."""
  if joint is None or alone is None:
    return MISSING, ''
  shown = figures.difference(joint - alone, metric)[0]
  if figures.level(joint, metric) == figures.level(alone, metric) or not any(digit in shown for digit in '123456789'):
    return SAME, SAME
  outcome = BETTER if (joint > alone) == figures.metric(metric).higher_is_better else WORSE
  return f'{shown}, {outcome}', outcome
