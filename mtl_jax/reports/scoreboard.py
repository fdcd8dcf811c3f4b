"""Puts runs side by side: a table of their main metrics, and what the figures say about joint training."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_jax.tasks import KINDS, METRICS, higher_is_better

BASELINE = 'majority class / mean face'
MISSING = '—'
UNDEFINED = 'n/a'


@dataclasses.dataclass(frozen=True)
class Column:
  """One metric of one task."""

  task: str
  metric: str

  @property
  def label(self) -> str:
    return METRICS[self.metric].label

  @property
  def higher_is_better(self) -> bool:
    return higher_is_better(self.metric)

  @property
  def arrow(self) -> str:
    return '↑' if self.higher_is_better else '↓'


@dataclasses.dataclass(frozen=True)
class Row:
  """Scores of one run: a value per column, None where it has none, and the same as text."""

  name: str
  values: tuple[float | None, ...]
  cells: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
  """Metrics by run; the first row is what the labels' means alone score."""

  columns: tuple[Column, ...]
  rows: tuple[Row, ...]

  def best(self, index: int) -> float | None:
    """The best value of a column among the runs, None where there is no choice."""
    values = [row.values[index] for row in self.rows[1:]]
    known = [value for value in values if value is not None]
    if len(known) < 2:
      return None
    return max(known) if self.columns[index].higher_is_better else min(known)


def comparison(evals: Mapping[str, dict[str, Any]]) -> Table:
  """Main metrics of each task by run, after what the train split's label means alone would score.

  Args:
    evals: for each run's name the content of its eval JSON.
  """
  kinds = kinds_of(evals.values())
  columns = tuple(Column(task, metric) for task, kind in kinds.items() for metric in KINDS[kind].shown)
  baseline: dict[str, Any] = {}
  for evaluation in evals.values():
    baseline = {**evaluation.get('baseline', {}), **baseline}
  rows = [_row(BASELINE, baseline, columns)]
  rows += [_row(name, evaluation['tasks'], columns) for name, evaluation in evals.items()]
  return Table(columns, tuple(rows))


def text_table(evals: Mapping[str, dict[str, Any]], *, width: int = 110) -> str:
  """The comparison for a terminal; tasks that do not fit into the width follow in a block below."""
  table = comparison(evals)
  name_width = max(len(row.name) for row in table.rows)
  blocks: list[list[str]] = []
  for task in dict.fromkeys(column.task for column in table.columns):
    block = _text_columns(table, task)
    if blocks and len(blocks[-1][0]) + 3 + len(block[0]) <= width:
      blocks[-1] = [f'{left}   {right}' for left, right in zip(blocks[-1], block, strict=True)]
    else:
      names = ['', '', *(row.name for row in table.rows)]
      blocks.append([f'{name:<{name_width}}   {cells}' for name, cells in zip(names, block, strict=True)])
  return '\n\n'.join('\n'.join(line.rstrip() for line in block) for block in blocks)


def headlines(evals: Mapping[str, dict[str, Any]]) -> list[dict[str, str]]:
  """Headlines from the main metric of each task: `task`, `outcome`, `verdict`, `detail` and `caution`.

  Joint means a run of several tasks, single-task one that has only this task. The outcome is what the first joint run
  is against the single-task run, `better`, `worse` or `same`, and empty where there are not both.
  """
  table = comparison(evals)
  baselines = {task: KINDS[kind].baseline_name for task, kind in kinds_of(evals.values()).items()}
  said = []
  for i, column in enumerate(table.columns):
    if i and table.columns[i - 1].task == column.task:
      continue
    scores = {row.name: value for row in table.rows if (value := row.values[i]) is not None}
    cells = {row.name: row.cells[i] for row in table.rows if row.name in scores}
    joint = [name for name in evals if name in scores and len(evals[name]['tasks']) > 1]
    single = [name for name in evals if name in scores and len(evals[name]['tasks']) == 1]
    if joint and single:
      verdict = ' '.join(_verdict(column, name, single[0], scores) for name in joint)
    else:
      phrase = METRICS[column.metric].phrase
      scored = [cells[name] + (f' ({name})' if len(evals) > 1 else '') for name in joint + single]
      verdict = f'{phrase[0].upper()}{phrase[1:]} {", ".join(scored) or UNDEFINED}'
    cells[baselines[column.task]] = cells.pop(BASELINE, MISSING)
    detail = ' · '.join(f'{name} {cell}' for name, cell in cells.items())
    outcome = _outcome(column, scores[joint[0]], scores[single[0]]) if joint and single else ''
    caution = _caution(column, scores)
    said.append({'task': column.task, 'outcome': outcome, 'verdict': verdict, 'detail': detail, 'caution': caution})
  return said


def kinds_of(evaluations: Iterable[Mapping[str, Any]]) -> dict[str, str]:
  """The kind of each task in the order of columns, told by the main metric it has."""
  kinds: dict[str, str] = {}
  for evaluation in evaluations:
    for task, metrics in evaluation['tasks'].items():
      kind = next((kind for kind in KINDS if KINDS[kind].main_metric in metrics), None)
      if kind:
        kinds.setdefault(task, kind)
  first = [kind for kind in KINDS if kind in ('binary', 'landmarks')]
  rank = {kind: i for i, kind in enumerate(first)}
  return dict(sorted(kinds.items(), key=lambda item: rank.get(item[1], len(first))))


def _row(name: str, tasks: Mapping[str, Any], columns: Sequence[Column]) -> Row:
  values = tuple(tasks.get(column.task, {}).get(column.metric) for column in columns)
  cells = tuple(
    MISSING if column.task not in tasks else text(value, column.metric)
    for value, column in zip(values, columns, strict=True)
  )
  return Row(name, values, cells)


def text(value: float | None, metric: str) -> str:
  if value is None:
    return UNDEFINED
  return f'{100 * value:.2f}%' if METRICS[metric].percent else f'{value:.3g}'


def _text_columns(table: Table, task: str) -> list[str]:
  """The lines of one task: its name, its metrics, a line per row."""
  indices = [i for i, column in enumerate(table.columns) if column.task == task]
  lines = [[f'{table.columns[i].label} {table.columns[i].arrow}' for i in indices]]
  lines += [[row.cells[i] for i in indices] for row in table.rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(indices))]
  texts = ['  '.join(f'{cell:>{width}}' for cell, width in zip(line, widths, strict=True)) for line in lines]
  width = max(len(task), len(texts[0]))
  return [f'{task:<{width}}', *(f'{text:>{width}}' for text in texts)]


def _outcome(column: Column, ours: float, theirs: float) -> str:
  """Better, worse, or the same as far as the shown figures tell."""
  if text(abs(ours - theirs), column.metric) in ('0.00%', '0'):
    return 'same'
  return 'better' if (ours > theirs) == column.higher_is_better else 'worse'


def _verdict(column: Column, joint: str, single: str, scores: Mapping[str, float]) -> str:
  """A sentence on a joint run against the run of this task alone."""
  ours, theirs = scores[joint], scores[single]
  phrase, percent = METRICS[column.metric].phrase, METRICS[column.metric].percent
  subject = 'Joint training' if joint == 'joint' else joint
  outcome = _outcome(column, ours, theirs)
  if outcome == 'same':
    return f'{subject} and training alone score the same {phrase}.'
  size = f'{100 * abs(ours - theirs):.2f} points' if percent else f'{abs(ours - theirs):.3g}'
  return f'{subject} is {outcome}: {phrase} {size} {"higher" if ours > theirs else "lower"} than training alone.'


def _caution(column: Column, scores: Mapping[str, float]) -> str:
  """Names the runs that learned nothing more than the labels' means."""
  baseline = scores.get(BASELINE)
  if baseline is None:
    return ''
  sign = 1 if column.higher_is_better else -1
  losers = [name for name, score in scores.items() if name != BASELINE and sign * (score - baseline) <= 0]
  return f'Not better than the baseline: {", ".join(losers)}.' if losers else ''
