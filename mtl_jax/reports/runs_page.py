"""The page of evaluated runs: verdicts, a table of metrics, charts, configuration."""

import collections
import datetime
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.config import flat
from mtl_jax.reports import charts, curves, faces, page
from mtl_jax.reports.page import Block, Card, Cards, Cell, Charts, Column, Fold, Heading, Pairs, Row, Side, Text, table
from mtl_jax.reports.runs import Run, load, numbers, series
from mtl_jax.reports.scoreboard import MISSING, Table, comparison, headlines, kinds_of, text
from mtl_jax.run import goodput
from mtl_jax.tasks import KINDS, METRICS

MAX_VERDICTS = 6  # A page with more tasks counts them first.


def write_report(runs: Mapping[str, Path], out: Path, *, title: str, pictures: bool = False) -> None:
  """Writes one HTML file that needs nothing else: verdicts, table, charts, configuration.

  Args:
    runs: for each run's name its folder, which holds `config.json`, `metrics.jsonl` and `eval/test.json`.
    out: the file to write.
    title: of the page.
    pictures: whether to show test faces with their landmarks. They come from the prepared set, which may hold
      photos of real people, so they are shown only when asked for.

  Raises:
    CheckpointError: for a file that is missing or damaged; the message says which command makes it.
  """
  loaded = [load(name, folder) for name, folder in runs.items()]
  evals = {run.name: run.evaluation for run in loaded}
  sides = [Side(run.name, number) for number, run in enumerate(loaded)]
  versions = _versions(loaded)
  body: list[Block] = [*_verdicts(evals), *(Text(note, 'note') for note in _notes(loaded))]
  body += _metrics(comparison(evals), sides)
  body += _outputs(loaded, sides)
  body += curves.curve_charts(loaded, sides)
  body += curves.gradient_charts(loaded, sides)
  body += faces.sheet(loaded) if pictures else []
  body += _configurations(loaded, sides)
  body.append(Pairs(versions))
  steps = ', '.join(run.name + (f' at step {step}' if (step := run.evaluation.get('step')) else '') for run in loaded)
  num = loaded[0].evaluation.get('num_examples')
  subtitle = f'{steps}; ' + f'{num} test examples; ' * (num is not None) + f'written {versions["written"]}'
  page.write(out, body, title=title, subtitle=subtitle)


def _verdicts(evals: Mapping[str, Any]) -> list[Block]:
  """A card a task; of many tasks, the counts first."""
  lines = headlines(evals)
  cards = Cards([Card(line['task'], [line['verdict']], line['detail'], line['caution']) for line in lines])
  if len(lines) <= MAX_VERDICTS:
    return [cards]
  body: list[Block] = [Fold('Task by task', [cards])]
  if outcomes := collections.Counter(line['outcome'] for line in lines if line['outcome']):
    said = (
      f'Joint training is better on {outcomes["better"]}, worse on {outcomes["worse"]} and the same on '
      f'{outcomes["same"]} of the {outcomes.total()} tasks that were also trained alone.'
    )
    body.insert(0, Cards([Card(f'{len(lines)} tasks', [said])]))
  return body


def _metrics(scores: Table, sides: Sequence[Side]) -> list[Block]:
  """The metrics of each task by run."""
  rows = []
  for i, column in enumerate(scores.columns):
    if not i or scores.columns[i - 1].task != column.task:
      rows.append(Row(column.task, [], style='group'))
    best = scores.best(i)
    cells = [
      Cell(row.cells[i], 'base' if not number else 'best' if best is not None and row.values[i] == best else '')
      for number, row in enumerate(scores.rows)
    ]
    rows.append(Row(f'{METRICS[column.metric].phrase} {column.arrow}', cells))
  baseline = scores.rows[0].name
  keys = [Column(side.name, side=side if len(sides) > 1 else None) for side in sides]
  return [
    Heading('Test metrics'),
    table('Test metrics', ['Metric', baseline, *keys], rows),
    Text(
      f'↑ higher is better, ↓ lower is better; bold is the best run. The column “{baseline}” is what the training '
      "labels' means alone would score. NME is the distance from the true landmark over the distance between the eyes; "
      "MAE of landmarks is a fraction of the image's sides. A dash: the run was not trained for this task.",
      'quiet',
    ),
  ]


def _notes(runs: Sequence[Run]) -> list[str]:
  """Reservations that a reader must know before the comparison."""
  if len(runs) < 2:
    return []
  seeds = {flat(run.config).get('train.seed') for run in runs}
  notes = [
    f'{"One seed" if len(seeds) == 1 else "One seed a run"}: no statement about significance. Another seed may turn '
    'a small difference around; repeat both sides with other train.seed before you believe it.'
  ]
  differing = [field for field in _differing_fields(runs) if field != 'tasks']
  if differing:
    notes.append(
      f'The runs differ in more than their tasks ({", ".join(differing[:5])}{", …" if len(differing) > 5 else ""}), '
      'so a difference need not come from joint training.'
    )
  if len({(run.evaluation.get('split'), run.evaluation.get('num_examples')) for run in runs}) > 1:
    notes.append('The runs were evaluated on different examples: their figures cannot be compared.')
  return notes


def _differing_fields(runs: Sequence[Run]) -> list[str]:
  configs = [flat(run.config) for run in runs]
  names = dict.fromkeys(name for config in configs for name in config)
  return [name for name in names if any(config.get(name) != configs[0].get(name) for config in configs)]


def _configurations(runs: Sequence[Run], sides: Sequence[Side]) -> list[Block]:
  """The fields to show by run, bold where the runs differ, with speed and time; then whole configurations."""
  configs = [flat(run.config) for run in runs]
  differing = _differing_fields(runs)
  names = [name for name in page.FIELDS if any(config.get(name, []) != [] for config in configs)]
  names += [name for name in differing if name not in names]
  rows = [
    Row(
      name,
      [Cell(page.field_text(config.get(name))) for config in configs],
      style='differs' if name in differing else '',
    )
    for name in names
  ]
  rows.append(Row('images/s in training (median)', [Cell(_speed(run)) for run in runs]))
  accounts = [goodput.read(run.folder) for run in runs]
  spent = [Cell(goodput.text(account['spent']) if account else MISSING) for account in accounts]
  rows.append(Row('where the time went', spent))
  columns = ['Field', *(side.name for side in sides)]
  body: list[Block] = [Heading('Configuration'), table('Configuration', columns, rows, style='wrap')]
  if len(runs) > 1:
    body.append(Text('Bold: the runs differ.', 'quiet'))
  return body + [Fold(f'Whole configuration of {run.name}', [page.configuration(run.config)]) for run in runs]


def _speed(run: Run) -> str:
  speeds = series([run], 'images_per_sec').get(run.name)
  return f'{np.nanmedian(speeds[1]):,.0f}' if speeds and np.isfinite(speeds[1]).any() else MISSING


def _versions(runs: Sequence[Run]) -> dict[str, str]:
  """Packages, device and date. The device is the evaluation's where it says so, else that of this process."""
  versions = {}
  for package in ('mtl_jax', 'jax', 'flax', 'optax', 'numpy'):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  devices = {str(run.evaluation['device']) for run in runs if run.evaluation.get('device')}
  if devices:
    versions['device'] = ', '.join(sorted(devices))
  else:
    versions['device of this report'] = _device()
  versions['written'] = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
  return versions


def _device() -> str:
  import jax

  try:
    devices = jax.devices()
  except RuntimeError:
    return 'unknown'
  return devices[0].device_kind + (f', {len(devices)} of them' if len(devices) > 1 else '')


def _outputs(runs: Sequence[Run], sides: Sequence[Side]) -> list[Block]:
  """The metric of every output by run, for each group of tasks: a table, and bars where a majority class exists."""
  kinds = kinds_of(run.evaluation for run in runs)
  groups = dict.fromkeys((task.split('/')[0], kind) for task, kind in kinds.items() if kind in ('binary', 'landmarks'))
  return [block for group, kind in groups for block in _output(runs, sides, group, kind)]


def _output(runs: Sequence[Run], sides: Sequence[Side], group: str, kind: str) -> list[Block]:
  metric = 'accuracy' if kind == 'binary' else 'nme'
  scores = {run.name: values for run in runs if (values := _per_output(run.evaluation['tasks'], group, metric))}
  baseline: dict[str, float] = {}
  for run in runs:
    baseline = {**_per_output(run.evaluation.get('baseline', {}), group, metric), **baseline}
  outputs = list(dict.fromkeys(output for values in scores.values() for output in values))
  if len(outputs) < 2:
    return []
  body: list[Block] = [Heading(f'{group}, one by one')]
  if kind == 'binary' and baseline:
    said = (
      'How much each run gains over always answering with the majority class, in points of accuracy; greatest gain of '
      f'{next(iter(scores))} first.'
    )
    legend = [side for side in sides if side.name in scores]
    body += [Text(said), Charts(_gain_charts(outputs, scores, baseline, numbers=numbers(runs)), legend)]
  label = f'{METRICS[metric].phrase} of each of {group}'
  each = (baseline, *scores.values())
  rows = [(name.replace('_', ' '), *(_output_text(values, name, metric) for values in each)) for name in outputs]
  one = table(label, [group, KINDS[kind].baseline_name, *scores], rows)
  return [*body, page.folded(f'{label}, as a table', one)]


def _per_output(tasks: Mapping[str, Any], group: str, metric: str) -> dict[str, float]:
  """The metric of each output of the tasks of a group, where it is defined."""
  found = {}
  for task, metrics in tasks.items():
    if task.split('/')[0] == group:
      for output, values in metrics.get('per_output', {}).items():
        if values.get(metric) is not None:
          found[output] = values[metric]
  return found


def _output_text(values: Mapping[str, float], output: str, metric: str) -> str:
  return text(values[output], metric) if output in values else MISSING


def _gain_charts(
  outputs: Sequence[str],
  scores: Mapping[str, Mapping[str, float]],
  baseline: Mapping[str, float],
  *,
  numbers: Mapping[str, int],
) -> list[page.Chart]:
  """Bars of accuracy above the majority class, greatest gain first, in one or two columns."""
  gains = {
    run: {output: 100 * (values.get(output, math.nan) - baseline.get(output, math.nan)) for output in outputs}
    for run, values in scores.items()
  }
  first = next(iter(gains.values()))
  ordered = sorted(outputs, key=lambda output: -first[output] if math.isfinite(first[output]) else math.inf)
  half = len(ordered) if len(ordered) <= 12 else -(-len(ordered) // 2)
  every = [gain for values in gains.values() for gain in values.values() if math.isfinite(gain)]
  limits = min([0.0, *every]) - 1, max([0.0, *every]) + 1
  parts = []
  for names in (ordered[:half], ordered[half:]):
    if names:
      values = {run: [gains[run][name] for name in names] for run in gains}
      alt = f'Accuracy above the majority class in points, {len(names)} outputs from {names[0]} to {names[-1]}; '
      figure = charts.bars(names, values, run_numbers=numbers, limits=limits)
      parts.append(page.chart('', figure, alt + 'the figures are in the table below.'))
  return parts
