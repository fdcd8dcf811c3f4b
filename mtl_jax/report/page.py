"""Compares evaluated runs: a table for the terminal, and one self-contained HTML page with charts."""

import collections
import datetime
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.platform import atomic_write
from mtl_jax.report import charts, curves, faces, template
from mtl_jax.report.runs import Run, flat, load, numbers, series
from mtl_jax.report.scoreboard import MISSING, comparison, headlines, kinds_of, text
from mtl_jax.run import goodput
from mtl_jax.tasks import KINDS, METRICS

# What the page says about a run's configuration, besides every field in which the runs differ.
FIELDS = (
  'tasks',
  'model.backbone',
  'model.sharing',
  'objective.name',
  'optimizer.name',
  'optimizer.learning_rate',
  'train.steps',
  'train.batch_size',
  'train.seed',
  'data.dir',
  'data.dirs',
)
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
  said = headlines(evals)
  page = template.render(
    'page.html',
    title=title,
    runs=[_describe(run, number) for number, run in enumerate(loaded)],
    headlines=said,
    outcomes=collections.Counter(line['outcome'] for line in said if line['outcome']),
    max_verdicts=MAX_VERDICTS,
    notes=_notes(loaded),
    table=comparison(evals),
    metrics=METRICS,
    outputs=_output_charts(loaded),
    curves=curves.curve_charts(loaded),
    gradients=curves.gradient_charts(loaded),
    faces=faces.sheet(loaded) if pictures else None,
    fields=_config_rows(loaded),
    versions=_versions(loaded),
  )
  atomic_write.write(out, page)


def _describe(run: Run, number: int) -> dict[str, Any]:
  """What the page says about a run by itself."""
  speeds = series([run], 'images_per_sec').get(run.name)
  speed = float(np.nanmedian(speeds[1])) if speeds and np.isfinite(speeds[1]).any() else None
  return {
    'name': run.name,
    'colour': f'var(--run-{number % len(charts.RUN_COLOURS) + 1})',
    'face_colour': charts.FACE_COLOURS[number % len(charts.FACE_COLOURS)],
    'dashes': charts.SVG_DASHES[number % len(charts.SVG_DASHES)],
    'tasks': ', '.join(run.evaluation['tasks']),
    'step': run.evaluation.get('step'),
    'num_examples': run.evaluation.get('num_examples'),
    'images_per_sec': None if speed is None else f'{speed:,.0f}',
    'goodput': goodput.text(account['spent']) if (account := goodput.read(run.folder)) else None,
    'config': json.dumps(run.config, indent=2, sort_keys=True, default=str),
  }


def _notes(runs: Sequence[Run]) -> list[str]:
  """What a reader must know before believing the comparison."""
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


def _config_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """The fields to show, each with its value per run and whether the runs differ in it."""
  configs = [flat(run.config) for run in runs]
  differing = _differing_fields(runs)
  names = [name for name in FIELDS if any(config.get(name, []) != [] for config in configs)]
  names += [name for name in differing if name not in names]
  return [
    {'name': name, 'values': [field_text(config.get(name)) for config in configs], 'differs': name in differing}
    for name in names
  ]


def field_text(value: Any) -> str:
  if isinstance(value, list | tuple):
    return ', '.join(str(item) for item in value)
  return MISSING if value is None or value == '' else str(value)


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


def _output_charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """For each group of tasks the metric of every output by run: a table, and bars where a majority class exists."""
  kinds = kinds_of(run.evaluation for run in runs)
  groups: dict[tuple[str, str], None] = dict.fromkeys(
    (task.split('/')[0], kind) for task, kind in kinds.items() if kind in ('binary', 'landmarks')
  )
  return [_output_chart(runs, group, kind) for group, kind in groups]


def _output_chart(runs: Sequence[Run], group: str, kind: str) -> dict[str, Any]:
  metric = 'accuracy' if kind == 'binary' else 'nme'
  scores = {run.name: _per_output(run.evaluation['tasks'], group, metric) for run in runs}
  scores = {name: values for name, values in scores.items() if values}
  baseline: dict[str, float] = {}
  for run in runs:
    baseline = {**_per_output(run.evaluation.get('baseline', {}), group, metric), **baseline}
  outputs = list(dict.fromkeys(output for values in scores.values() for output in values))
  charts_of_group = []
  if kind == 'binary' and scores and baseline:
    charts_of_group = _gain_charts(outputs, scores, baseline, numbers=numbers(runs))
  rows = [
    {
      'name': output,
      'cells': [_output_text(values, output, metric) for values in (baseline, *scores.values())],
    }
    for output in outputs
  ]
  return {
    'group': group,
    'metric': METRICS[metric].phrase,
    'runs': list(scores),
    'baseline': KINDS[kind].baseline_name,
    'rows': rows,
    'charts': charts_of_group,
  }


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
) -> list[dict[str, Any]]:
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
      parts.append({'heading': '', 'svg': template.drawing(figure), 'alt': alt + 'the figures are in the table below.'})
  return parts
