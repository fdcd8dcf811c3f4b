"""The page of a study: verdict tables, intervals, curves, cost and configuration."""

import collections
import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.config import flat
from mtl_jax.platform import address
from mtl_jax.reports import charts, findings, page
from mtl_jax.reports.findings import Finding, named
from mtl_jax.reports.page import Block, Cell, Charts, Column, Fold, Heading, Pairs, Row, Side, Text, folded, table
from mtl_jax.reports.pictures import worst
from mtl_jax.reports.runs import read_json
from mtl_jax.reports.scoreboard import MISSING
from mtl_jax.studies import arms, significance
from mtl_jax.studies.results import Record, read_record

KEYS = ('arms', 'tasks', 'seeds', 'power', 'learning_rates')  # Of a file that is whole.
MAX_OPEN_PANELS = 8  # More curves than these are folded away.
MAX_OPEN_ARMS = 5  # With more arms than these, each but the table of all is folded away.
COST = {
  'params': 'Parameters',
  'flops_per_image': 'FLOPs an image, forward',
  'seconds': 'Training a seed, s',
  'tuning_seconds': 'Choosing learning rates, s',
  'latency_ms': 'Latency of one image, ms',
}


def is_study(directory: Path) -> bool:
  """True for a working directory that holds a study, finished or not."""
  return (directory / 'study.json').is_file() or (directory / 'replicas').is_dir()


def write_report(directory: Path, *, pictures: bool = False) -> None:
  """Writes `report.html`, and the plots into `plots/`, from the files of a finished study.

  Args:
    directory: its working directory.
    pictures: whether to show the test images with the greatest errors. They may be photos of real people, so they
      are shown only when asked for.

  Raises:
    UserError: for a file that is missing or damaged.
  """
  study = read_json(directory / 'study.json', make=f'mtl-jax study --config F.py --workdir {directory}', keys=KEYS)
  kept = read_record(directory, study)
  sides = [Side(arm, number) for number, arm in enumerate(study['arms'])]
  plots, reference = directory / 'plots', sides[0].name
  body: list[Block] = [Text(note, 'note') for note in _notes(study, kept)]
  if len(sides) > 2:
    body += _all_arms(study, reference)
  for side in sides[1:]:
    section = _section(study, side, sides[0], plots)
    body += [Fold(side.name, section)] if len(sides) > MAX_OPEN_ARMS + 1 else section
  body += _intervals(study, sides, plots)
  body += _curves(study, kept, sides, plots)
  body += _cost(study, kept, sides)
  body += _rates(study, kept)
  if pictures:
    body += worst(directory, kept, arms=study['arms'])
  body += _provenance(study, kept, sides)
  num_test = study.get('data', {}).get('num_test')
  subtitle = f'{", ".join(study["arms"])}; {len(study["seeds"])} seeds; '
  subtitle += f'{num_test} test images; ' * bool(num_test) + f'finished {study.get("date", MISSING)}'
  page.write(directory / 'report.html', body, title=f'Study: {address.name(directory)}', subtitle=subtitle)


def _notes(study: Mapping[str, Any], kept: Record) -> list[str]:
  """Reservations that a reader must know before the verdicts."""
  notes = []
  if len(study['seeds']) < 2:
    notes.append('One seed: nothing was tested. Another seed may turn a difference around; set config.study.num_seeds.')
  diverged = kept.diverged()
  for one in diverged:
    notes.append(
      f'{one["program"]} of {one["arm"]} with seed {one["seed"]} diverged at step {one["step"]}; '
      'its seed is left out of the pairs.'
    )
  if study['dropped'] and not diverged:
    lost = ', '.join(f'{one["task"]} of {one["arm"]}, seed {one["seed"]}' for one in study['dropped'])
    notes.append(f'Without a test score, and left out: {lost}.')
  at_edge = [program for program, rate in study['learning_rates'].items() if _at_edge(kept, program, rate)]
  if at_edge:
    notes.append(
      f'The best learning rate of {", ".join(at_edge[:6])}{" and others" * (len(at_edge) > 6)} lies at an end of the '
      'grid: a wider config.study.learning_rates might serve it better.'
    )
  return notes


def overview(study: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A row for each arm but the reference, least delta-m first.

  Each holds `arm`, `delta_m` (the entry of the JSON, in per cent, lower is better); `worst`, the task that the arm
  serves worst, and `worst_loss`, by how many per cent of the reference its main metric is worse; `verdicts`, how many
  tasks have each; `seconds` of training and their ratio to the reference's. What is not known is None.
  """
  rows = []
  for arm in study['arms'][1:]:
    found = findings.findings(study, arm)
    losses = {one.name: loss for one in found if (loss := _loss(one)) is not None}
    worst = max(losses, key=lambda name: losses[name], default=None)
    own, others = (study.get('cost', {}).get(side, {}).get('seconds') for side in (arm, study['arms'][0]))
    rows.append(
      {
        'arm': arm,
        'delta_m': findings.comparison(study, arm)['delta_m'],
        'worst': worst,
        'worst_loss': losses.get(worst) if worst else None,
        'verdicts': collections.Counter(one.verdict for one in found),
        'seconds': own,
        'seconds_ratio': own / others if own and others else None,
      }
    )
  return sorted(rows, key=lambda row: (row['delta_m']['mean'] is None, row['delta_m']['mean']))


def _loss(finding: Finding) -> float | None:
  """Per cent of the reference by which the arm is worse."""
  level = finding.reference['mean']
  if finding.delta is None or not level:
    return None
  return 100 * finding.delta / level * (-1 if finding.higher_is_better else 1)


def _all_arms(study: Mapping[str, Any], reference: str) -> list[Block]:
  """All arms side by side: what each gains over all tasks, where it loses most, and what it takes."""
  rows = [
    (
      row['arm'],
      *_delta_m_cells(row['delta_m']),
      f'{row["worst"] or MISSING} {_percent(row["worst_loss"])}',
      *(str(row['verdicts'][verdict]) for verdict in (significance.HELPS, significance.HURTS)),
      f'{row["seconds"]:.3g} s' + f' ({row["seconds_ratio"]:.2f}\N{MULTIPLICATION SIGN})' * bool(row['seconds_ratio'])
      if row['seconds']
      else MISSING,
    )
    for row in overview(study)
  ]
  columns = ('Arm', 'Δm ↓', '95% interval', 'Median', 'Worst task', 'Helps', 'Hurts', 'Training')
  return [
    Heading(f'All arms against {reference}'),
    table('All arms', columns, rows),
    Text(
      f'Least Δm first: the mean over tasks and metrics of how much worse an arm is than {reference}, in per cent; its '
      'interval is over seeds. Arms whose intervals overlap are not shown to differ. Worst task: by how much its main '
      'metric is worse.',
      'quiet',
    ),
  ]


def _section(study: Mapping[str, Any], side: Side, reference: Side, plots: Path) -> list[Block]:
  """The verdicts on one arm, its outputs one by one, its other metrics, and all tasks together."""
  arm = side.name
  found, compared = findings.findings(study, arm), findings.comparison(study, arm)
  groups = findings.outputs(study, arm)
  split = {name for name in groups if any(one.name.startswith(f'{name}/') for one in found)}
  alone = [one for one in found if one.name.partition('/')[0] not in split]
  rows = [_verdict_row(one) for one in alone]
  for group in sorted(split):
    counts = collections.Counter(one.verdict for one in groups[group])
    text = ', '.join(f'{count} {verdict}' for verdict, count in counts.items())
    rows.append(Row(group, [Cell(text, 'left')], note=f'{len(groups[group])} tasks, one by one below'))
  negative, power = compared['negative_transfer'], compared['power']
  named_tasks = f' ({", ".join(negative["tasks"])})' if negative['tasks'] else ''
  said = (
    f'Negative transfer is {"" if negative["shown"] else "not "}shown: {arm} hurts {negative["num_tasks"]} of the '
    f'{negative["num_tasks_tested"]} tasks tested{named_tasks}.'
  )
  body: list[Block] = [
    Heading(f'{arm} against {reference.name}: the tests'),
    table(f'{arm} against {reference.name}', _verdict_columns(side, reference), rows),
    Text(
      f"A verdict is a paired t-test over seeds, two-sided, with p-values adjusted over {len(found)} tasks by Holm's "
      f'method at {study["alpha"]}. The interval is of one task alone and also lets the test images vary, person by '
      'person. “No evidence” does not say that the two are equal: detectable is the smallest true difference that '
      f'these seeds would have shown with {power["power"]:.0%} power, at the strictest step of the adjustment and had '
      "it been the only test. The spread over the study's own seeds is taken for the true one, so with few seeds it is "
      'itself a rough figure. ↑ higher is better, ↓ lower is better.',
      'quiet',
    ),
    *(Text(f'{", ".join(names)}: {doubt}.', 'note') for doubt, names in _doubts(found).items()),
    Text(said),
  ]
  if split:
    sizes = [
      f'{named(metric)[0]}: median over tasks {findings.size(of["median"], metric)}, '
      f'largest {findings.size(of["largest"], metric)}'
      for metric, of in power['smallest_difference'].items()
    ]
    body.append(Text(f'Detectable, {"; ".join(sizes)}.'))
  for group, those in groups.items():
    body += _outputs(group, those, side, reference, plots)
  if others := findings.descriptive(study, arm):
    rows = [
      (f'{one.name}: {one.label} {_arrow(one)}', one.difference(), one.interval(), *_means(one)) for one in others
    ]
    columns = ('Task and metric', 'Difference', '95% interval', arm, reference.name)
    body += [
      Heading(f'Other metrics of {arm}'),
      Text('Described, not tested.', 'quiet'),
      folded(f'{len(others)} metrics', table('Other metrics', columns, rows)),
    ]
  return body + _delta_m(compared['delta_m'], arm, reference.name)


def _doubts(found: Sequence[Finding]) -> dict[str, list[str]]:
  """The tasks of each reservation."""
  doubts: dict[str, list[str]] = {}
  for one in found:
    if one.disagreement:
      doubts.setdefault(one.disagreement, []).append(one.name)
  return doubts


def _verdict_columns(side: Side, reference: Side) -> list[Column]:
  return [
    Column('Task', 'text'),
    Column('Verdict', 'text'),
    Column('Difference', 'number'),
    Column('95% interval'),
    Column(side.name, 'number', side),
    Column(reference.name, 'number', reference),
    *(Column(text, 'number') for text in ('Adjusted p', 'p', 'Pairs', 'Detectable', 'Detectable, only test')),
  ]


def _verdict_row(one: Finding) -> Row:
  verdict = one.verdict or one.direction or MISSING
  return Row(
    one.name.replace('_', ' '),
    [
      Cell(verdict, one.verdict if one.verdict in (significance.HELPS, significance.HURTS) else ''),
      Cell(one.difference(), value=one.delta),
      Cell(one.interval()),
      *(Cell(text, value=of['mean']) for text, of in zip(_means(one), (one.arm, one.reference), strict=True)),
      *(Cell(findings.p_text(value), value=value) for value in (one.p_adjusted, one.p_value)),
      Cell(str(one.num_pairs), value=one.num_pairs),
      *(Cell(findings.size(value, one.metric), value=value) for value in (one.detectable, one.detectable_alone)),
    ],
    note=f'{one.label} {_arrow(one)}',
    says=verdict,
  )


def _outputs(group: str, found: Sequence[Finding], side: Side, reference: Side, plots: Path) -> list[Block]:
  """Outputs of one task, or the tasks of one group, greatest gain first."""
  ranked = sorted(found, key=lambda one: -(one.delta or 0.0) if one.higher_is_better else one.delta or 0.0)
  figure = charts.intervals({side.name: ranked}, numbers={side.name: side.number}, reference=reference.name)
  tested, outside = all(one.verdict for one in found), sum(one.direction in ('better', 'worse') for one in found)
  if tested:
    said = 'Each is a task of its own, tested and adjusted with all the others.'
  else:
    said = (
      f'Described, not tested: {outside} of these {len(found)} intervals exclude 0, where about '
      f'{0.05 * len(found):.2g} would by chance alone if there were no difference anywhere.'
    )
  shown = slice(None) if tested else slice(6)  # What was not tested has no p-value, and nothing detectable.
  columns = [dataclasses.replace(column, side=None) for column in _verdict_columns(side, reference)[shown]]
  rows = [dataclasses.replace(row, cells=row.cells[: len(columns) - 1]) for row in map(_verdict_row, ranked)]
  heading = f'{group}, one by one: {side.name}'
  alt = f'{heading}: differences in {found[0].label}; the figures are in the table below.'
  return [
    Heading(heading),
    Text(f'{said} Greatest gain first.'),
    Charts([page.chart('', figure, alt, folder=plots, name=f'outputs-{side.name}-{group}')]),
    table(heading, columns, rows, sortable=True),
  ]


def _delta_m(delta_m: Mapping[str, Any], arm: str, reference: str) -> list[Block]:
  parts = [('all', delta_m), *((named(metric)[0], part) for metric, part in delta_m['per_metric'].items())]
  parts += [(f'outputs of {task}', part) for task, part in delta_m['per_output'].items() if part['num_terms']]
  rows = [(name, *_delta_m_cells(part), str(part['num_tasks']), str(part['num_terms'])) for name, part in parts]
  left_out = ', '.join(f'{named(one["metric"])[0]} of {one["task"]} ({one["reason"]})' for one in delta_m['left_out'])
  return [
    Heading(f'All tasks together: {arm}'),
    Text(
      f'Δm is the mean over tasks and metrics of how much worse {arm} is than {reference}, in per cent of {reference}: '
      f'lower is better, below 0 {arm} gains. Its intervals are over seeds alone. Small denominators dominate the '
      'mean, so the median over tasks stands beside it.'
    ),
    table(f'Δm of {arm}', ('Metric', 'Δm ↓', '95% interval', 'Median', 'Tasks', 'Terms'), rows),
    *([Text(f'Left out: {left_out}.', 'quiet')] if left_out else []),
  ]


def _delta_m_cells(part: Mapping[str, Any]) -> tuple[str, str, str]:
  """Mean, interval and median."""
  interval = MISSING if part['ci95'] is None else ' to '.join(map(_percent, part['ci95']))
  return _percent(part['mean']), interval, _percent(part['median'])


def _percent(value: float | None) -> str:
  return MISSING if value is None else f'{value:+.2f}%'.replace('-', '\N{MINUS SIGN}')


def _arrow(one: Finding) -> str:
  return '↑' if one.higher_is_better else '↓'


def _means(one: Finding) -> tuple[str, str]:
  """Mean of the arm and of the reference."""
  return findings.level(one.arm['mean'], one.metric), findings.level(one.reference['mean'], one.metric)


def _intervals(study: Mapping[str, Any], sides: Sequence[Side], plots: Path) -> list[Block]:
  """A chart for each metric that is some task's main one, all arms in it; groups of tasks have charts of their own."""
  by_arm = {}
  for side in sides[1:]:
    groups = findings.outputs(study, side.name)
    found = findings.findings(study, side.name)
    by_arm[side.name] = [one for one in found if '/' not in one.name or one.name.partition('/')[0] not in groups]
  numbers, drawn = {side.name: side.number for side in sides}, []
  for metric in dict.fromkeys(one.metric for found in by_arm.values() for one in found):
    own = {arm: [one for one in found if one.metric == metric] for arm, found in by_arm.items()}
    figure = charts.intervals(own, numbers=numbers, reference=sides[0].name)
    label = named(metric)[0]
    said = '; '.join(f'{one.name} of {arm} {one.difference()}' for arm, found in own.items() for one in found)
    heading, alt = label[0].upper() + label[1:], f'{label} by task: {said}.'
    drawn.append(page.chart(heading, figure, alt, folder=plots, name=f'intervals-{metric}'))
  if not drawn:
    return []
  note = Text('Line: 95% interval; mark: mean difference; small dots: the difference of each seed.', 'quiet')
  return [Heading('Differences by task'), Charts(drawn, sides[1:]), note]


def _curves(study: Mapping[str, Any], kept: Record, sides: Sequence[Side], plots: Path) -> list[Block]:
  """Training loss and main validation metric of each task: means over seeds with a band of one deviation."""
  panels = []
  for task in sorted(kept.tasks, key=lambda task: '/' in task.name):  # Those of a group, which are many, come last.
    validation = f'val/{task.name}/{task.main_metric}'
    wanted = (('training loss', f'train/{task.name}/loss', 'loss'), ('validation', validation, task.main_metric))
    for what, key, metric in wanted:
      found = {side.name: curve for side in sides if (curve := kept.curve(side.name, key))}
      if not found:
        continue
      label, percent = named(metric)
      figure = charts.curves(
        {arm: (steps, mean) for arm, (steps, mean, _) in found.items()},
        run_numbers={side.name: side.number for side in sides},
        percent=percent,
        spread={arm: deviation for arm, (_, _, deviation) in found.items()},
      )
      ends = ', '.join(
        f'{arm} ends at {findings.level(float(mean[-1]), metric)}' for arm, (_, mean, _) in found.items()
      )
      heading = f'{task.name}: {what}' + (f' {label}' if metric != 'loss' else '')
      alt = f'{heading} over steps: {ends}.'
      panels.append(page.chart(heading, figure, alt, folder=plots, name=f'curve-{task.name}-{what}'))
  if not panels:
    return []
  band = ', and a band of one standard deviation to either side' if len(study['seeds']) > 1 else ''
  note = f'Mean over seeds{band}; replicas that diverged are left out.'
  body: list[Block] = [Heading('Training curves'), Text(note, 'quiet'), Charts(panels[:MAX_OPEN_PANELS], sides)]
  if more := panels[MAX_OPEN_PANELS:]:
    body.append(Fold(f'{len(more)} more', [Charts(more)]))
  return body


def _cost(study: Mapping[str, Any], kept: Record, sides: Sequence[Side]) -> list[Block]:
  """Figures by arm, each with what it is of the reference's."""
  models = [str(len(kept.arms[side.name].programs)) if side.name in kept.arms else MISSING for side in sides]
  rows = [('Models', *models)]
  for key, name in COST.items():
    each = [study['cost'][side.name].get(key) for side in sides]
    if any(each):
      rows.append((name, *(_with_ratio(one, each[0]) for one in each)))
  columns = ['', *(Column(side.name, side=side) for side in sides)]
  note = 'Sums over the models of an arm, which answer for an image one after another; in brackets the ratio to '
  note += f'{sides[0].name}.'
  return [Heading('Cost'), table('Cost', columns, rows), Text(note, 'quiet')]


def _with_ratio(value: float | None, reference: float | None) -> str:
  if not value:
    return MISSING
  text = f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
  for size, suffix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M')):
    if value >= size:
      text = f'{value / size:.3g} {suffix}'
      break
  return f'{text} (\N{MULTIPLICATION SIGN}{value / reference:.2f})' if reference and value is not reference else text


def _rates(study: Mapping[str, Any], kept: Record) -> list[Block]:
  """The learning rate that each model was given, and those tried."""
  rows = [
    (program, f'{rate:g}' + ', end of the grid' * _at_edge(kept, program, rate), '; '.join(_tried(kept, program)))
    for program, rate in study['learning_rates'].items()
  ]
  seconds = sum(one.seconds for tried in kept.tuning.values() for results in tried.values() for one in results)
  said = (
    'Chosen on validation, on seeds that are not tested; the score of each rate tried, greater is better. '
    f'Choosing took {seconds:.3g} s of training.'
    if seconds
    else 'Not chosen: all models were given one.'
  )
  one = table('Learning rates', ('Model', 'Rate', 'Tried'), rows, style='wrap')
  return [Heading('Learning rates'), Text(said), folded('Model by model', one)]


def _at_edge(kept: Record, program: str, rate: float) -> bool:
  tried = kept.tuning.get(program, {})
  return bool(tried) and rate in (min(tried), max(tried))


def _tried(kept: Record, program: str) -> Iterator[str]:
  for rate, results in kept.tuning.get(program, {}).items():
    scores = [result.score for result in results if result.score is not None and not result.diverged_at]
    if results:
      yield f'{rate:g}: ' + (f'{sum(scores) / len(scores):.4g}' if len(scores) == len(results) else 'diverged')


def _provenance(study: Mapping[str, Any], kept: Record, sides: Sequence[Side]) -> list[Block]:
  """Arms, configuration, data, seeds, versions, device and dates."""
  config = kept.config.to_dict()
  known, data = flat(config), study.get('data', {})
  names = [name for name in (*page.FIELDS, 'eval.metric') if name in known and name != 'optimizer.learning_rate']
  names += [name for name in known if name.startswith('study.')]
  counts = data.get('splits') or {'test': data.get('num_test')}
  what = {side.name: (getattr(arms.ARMS.get(side.name), '__doc__', None) or '').split('\n')[0] for side in sides}
  return [
    Heading('Configuration'),
    Pairs({name: text for name, text in what.items() if text}),
    Pairs({name: page.field_text(known[name]) for name in names if known[name] not in ((), '')}),
    Fold('Whole configuration', [page.configuration(config)]),
    Heading('Data, seeds and versions'),
    Pairs(
      {
        'data': str(data.get('directory', MISSING)),
        'checksum': str(data.get('checksum', MISSING)),
        'images': ', '.join(f'{name} {count}' for name, count in counts.items()),
        'seeds': ', '.join(map(str, study['seeds'])),
        **study.get('versions', {}),
        'device': str(study.get('device', MISSING)),
        'study': str(study.get('date', MISSING)),
        'page written': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
      }
    ),
  ]
