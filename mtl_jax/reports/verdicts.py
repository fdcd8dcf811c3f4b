"""Tables and charts of what a study found: an arm against the reference, metric by metric, and all arms together."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtl_jax.reports import charts, figures, page
from mtl_jax.reports.charts import Mark, Side
from mtl_jax.reports.figures import MISSING, metric, percent
from mtl_jax.reports.page import Block, Cell, Charts, Column, Heading, Row, Table, Text, folded, table
from mtl_jax.studies.significance import HELPS, HURTS


class Finding(NamedTuple):
  """One metric of one task, or of one of its outputs: an arm against the reference.

  Attributes:
    entry: its part of the study's JSON: `delta`, `verdict`, `disagreement`.
    arm: the arm's mean over its seeds and the value of each.
    reference: likewise.
    power: the smallest differences that would have been found; empty for what was not tested.
  """

  name: str
  metric: str
  entry: Mapping[str, Any]
  arm: Mapping[str, Any]
  reference: Mapping[str, Any]
  power: Mapping[str, Any]

  @property
  def delta(self) -> Mapping[str, Any]:
    """The difference arm - reference of the seeds that both have: `mean`, `ci95`, `p_value`, ..."""
    return self.entry['delta']

  @property
  def verdict(self) -> str:
    """`helps`, `hurts`, `no evidence` or `not tested`; of what is only described what the interval alone says."""
    if self.entry['main'] and self.delta['p_value'] is None:
      return 'not tested: one seed' if self.delta['num_pairs'] == 1 else 'not tested'
    return self.entry['verdict'] or self.direction or MISSING

  @property
  def direction(self) -> str:
    """The interval by itself: `better`, `worse` or `includes 0`, empty where there is none."""
    if self.delta['ci95'] is None:
      return ''
    low, high = self.delta['ci95']
    if low <= 0 <= high:
      return 'includes 0'
    return 'better' if (low > 0) == self.entry['higher_is_better'] else 'worse'

  @property
  def gain(self) -> float:
    """The difference, upwards where that is better; 0 where there is none."""
    return (self.delta['mean'] or 0.0) * (1 if self.entry['higher_is_better'] else -1)

  def row(self) -> Row:
    """All cells that a verdict can have."""
    shown, interval = figures.difference(self.delta['mean'], self.metric, self.delta['ci95'])
    detectable = [self.power.get(key) for key in ('smallest_difference', 'smallest_difference_alone')]
    return Row(
      figures.name(self.name),
      [
        Cell(self.verdict, self.verdict if self.verdict in (HELPS, HURTS) else ''),
        Cell(shown, value=self.delta['mean']),
        Cell(interval),
        *(Cell(figures.level(of['mean'], self.metric), value=of['mean']) for of in (self.arm, self.reference)),
        *(Cell(figures.p_text(p), value=p) for p in (self.delta['p_adjusted'], self.delta['p_value'])),
        Cell(str(self.delta['num_pairs']), value=self.delta['num_pairs']),
        *(Cell(figures.size(value, self.metric), value=value) for value in detectable),
      ],
      note=figures.directed(self.metric),
      says=self.verdict,
    )

  def mark(self) -> Mark:
    pairs = zip(self.arm['values'], self.reference['values'], strict=True)
    seeds = [arm - reference for arm, reference in pairs if arm is not None and reference is not None]
    return Mark(self.delta['mean'], self.delta['ci95'], seeds)


def comparison(study: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
  """The part of the study's JSON about an arm."""
  return study['comparisons'][arm] if 'comparisons' in study else study


def findings(study: Mapping[str, Any], arm: str, *, main: bool) -> list[Finding]:
  """The main metric of every task, which was tested, or all others, which are described."""
  compared, reference = comparison(study, arm), study['arms'][0]
  power = compared['power']['tasks']
  return [
    Finding(task, name, entry, values[arm], values[reference], power.get(task, {}) if main else {})
    for task, metrics in compared['tasks'].items()
    for name, entry in metrics.items()
    if entry['main'] == main
    for values in [study['tasks'][task][name]]
  ]


def outputs(study: Mapping[str, Any], arm: str) -> dict[str, list[Finding]]:
  """The outputs of each task by their first metric."""
  reference = study['arms'][0]
  return {
    task: [
      Finding(output, name, metrics[name], values[arm], values[reference], {})
      for output, metrics in parts.items()
      for name in [next(iter(metrics))]
      for values in [study['outputs'][task][output][name]]
    ]
    for task, parts in comparison(study, arm)['outputs'].items()
  }


def section(study: Mapping[str, Any], side: Side, reference: Side, plots: Path) -> list[Block]:
  """The tests of one arm, its outputs one by one, its other metrics, and all tasks together."""
  found, compared = findings(study, side.name, main=True), comparison(study, side.name)
  negative, power = compared['negative_transfer'], compared['power']
  hurt = f' ({", ".join(negative["tasks"])})' if negative['tasks'] else ''
  doubts = collections.defaultdict(list)
  for one in found:
    doubts[one.entry['disagreement']].append(one.name)
  body: list[Block] = [
    Heading(f'{side.name} against {reference.name}: the tests'),
    _table(f'{side.name} against {reference.name}', found, side, reference),
    Text(
      f"A verdict is a paired t-test over seeds, two-sided, with p-values adjusted over {len(found)} tasks by Holm's "
      f'method at {study["alpha"]}. The interval is of one task alone and also lets the test images vary, person by '
      'person. “No evidence” does not say that the two are equal: detectable is the smallest true difference that '
      f'these seeds would have shown with {power["power"]:.0%} power, at the strictest step of the adjustment and had '
      "it been the only test. The spread over the study's own seeds is taken for the true one, so with few seeds it is "
      'itself a rough figure. ↑ higher is better, ↓ lower is better.',
      'quiet',
    ),
    *(Text(f'{", ".join(names)}: {doubt}.', 'note') for doubt, names in doubts.items() if doubt),
    Text(
      f'Negative transfer is {"" if negative["shown"] else "not "}shown: {side.name} hurts {negative["num_tasks"]} of '
      f'the {negative["num_tasks_tested"]} tasks tested{hurt}.'
    ),
  ]
  for task, those in outputs(study, side.name).items():
    body += _outputs(task, those, side, reference, plots)
  if others := findings(study, side.name, main=False):
    body += [
      Heading(f'Other metrics of {side.name}'),
      Text('Described, not tested.', 'quiet'),
      folded(f'{len(others)} metrics', _table('Other metrics', others, side, reference)),
    ]
  return body + _delta_m(compared['delta_m'], side.name, reference.name)


def _table(label: str, found: Sequence[Finding], side: Side, reference: Side) -> Table:
  """A row for each finding; what was not tested has no p-value, and nothing detectable."""
  heads = [
    Column('Task', 'text'),
    Column('Verdict', 'text'),
    Column('Difference', 'number'),
    Column('95% interval'),
    Column(side.name, 'number', side),
    Column(reference.name, 'number', reference),
    *(Column(text, 'number') for text in ('Adjusted p', 'p', 'Pairs', 'Detectable', 'Detectable, only test')),
  ]
  whole = Table(label, heads, [one.row() for one in found], sortable=True)
  return whole if any(one.entry['main'] for one in found) else whole.first(6)


def _outputs(task: str, found: Sequence[Finding], side: Side, reference: Side, plots: Path) -> list[Block]:
  """Outputs of one task, greatest gain first."""
  ranked = sorted(found, key=lambda one: -one.gain)
  outside = sum(one.direction in ('better', 'worse') for one in found)
  heading = f'{task}, one by one: {side.name}'
  return [
    Heading(heading),
    Text(
      f'Described, not tested: {outside} of these {len(found)} intervals exclude 0, where about '
      f'{0.05 * len(found):.2g} would by chance alone if there were no difference anywhere. Greatest gain first.'
    ),
    Charts([_chart('', {side: ranked}, reference, plots, f'outputs-{side.name}-{task}')]),
    _table(heading, ranked, side, reference),
  ]


def _chart(
  heading: str, found: Mapping[Side, Sequence[Finding]], reference: Side, plots: Path, name: str
) -> page.Chart:
  """The differences of findings of one metric, the same for each side."""
  first = next(iter(found.values()))
  marks = [(side, [one.mark() for one in those]) for side, those in found.items()]
  declared = metric(first[0].metric)
  figure = charts.differences([one.name for one in first], marks, metric=declared, reference=reference.name)
  alt = f'{heading or name}: differences in {declared.phrase}; the figures are in the tables.'
  return page.chart(heading, figure, alt, folder=plots, name=name, legend=list(found))


def intervals(study: Mapping[str, Any], sides: Sequence[Side], plots: Path) -> list[Block]:
  """A chart for each metric that is some task's main one, all arms in it."""
  by_side, drawn = {side: findings(study, side.name, main=True) for side in sides[1:]}, []
  for name in dict.fromkeys(one.metric for found in by_side.values() for one in found):
    own = {side: [one for one in found if one.metric == name] for side, found in by_side.items()}
    drawn.append(_chart(figures.directed(name), own, sides[0], plots, f'intervals-{name}'))
  note = Text('Line: 95% interval; mark: mean difference; small dots: the difference of each seed.', 'quiet')
  return [Heading('Differences by task'), Charts(drawn, sides[1:]), note] if drawn else []


def all_arms(study: Mapping[str, Any]) -> list[Block]:
  """All arms side by side, least Δm first: what each gains over all tasks, where it loses most, and what it takes."""
  reference, rows = study['arms'][0], []
  for arm in study['arms'][1:]:
    found, delta_m = findings(study, arm, main=True), comparison(study, arm)['delta_m']
    losses = {one.name: -100 * one.gain / level for one in found if (level := one.reference['mean'])}
    worst = max(losses, key=lambda name: losses[name], default='')
    counts = collections.Counter(one.verdict for one in found)
    seconds, others = (study['cost'].get(side, {}).get('seconds') for side in (arm, reference))
    texts = (
      *_delta_m_cells(delta_m),
      f'{worst} {percent(losses[worst])}' if worst else MISSING,
      *(str(counts[verdict]) for verdict in (HELPS, HURTS)),
      figures.quantity(seconds, others),
    )
    rows.append((delta_m['mean'], (arm, *texts)))
  rows.sort(key=lambda row: (row[0] is None, row[0]))
  columns = ('Arm', 'Δm ↓', '95% interval', 'Median', 'Worst task', 'Helps', 'Hurts', 'Training, s')
  return [
    Heading(f'All arms against {reference}'),
    table('All arms', columns, [row for _, row in rows]),
    Text(
      f'Least Δm first: the mean over tasks and metrics of how much worse an arm is than {reference}, in per cent; its '
      'interval is over seeds. Arms whose intervals overlap are not shown to differ. Worst task: by how much its main '
      'metric is worse.',
      'quiet',
    ),
  ]


def tests(study: Mapping[str, Any]) -> list[Block]:
  """The tests of each arm: its main metrics without their power."""
  body: list[Block] = []
  for arm in study['arms'][1:]:
    sides, heading = [Side(name, 0) for name in (arm, study['arms'][0])], f'{arm} against {study["arms"][0]}: the tests'
    body += [Heading(heading), _table(heading, findings(study, arm, main=True), *sides).first(7)]
  return body


def _delta_m(delta_m: Mapping[str, Any], arm: str, reference: str) -> list[Block]:
  parts = [('all', delta_m), *((metric(name).phrase, part) for name, part in delta_m['per_metric'].items())]
  parts += [(f'outputs of {task}', part) for task, part in delta_m['per_output'].items() if part['num_terms']]
  rows = [(name, *_delta_m_cells(part), str(part['num_tasks']), str(part['num_terms'])) for name, part in parts]
  left_out = [f'{metric(one["metric"]).phrase} of {one["task"]} ({one["reason"]})' for one in delta_m['left_out']]
  return [
    Heading(f'All tasks together: {arm}'),
    Text(
      f'Δm is the mean over tasks and metrics of how much worse {arm} is than {reference}, in per cent of {reference}: '
      f'lower is better, below 0 {arm} gains. Its intervals are over seeds alone. Small denominators dominate the '
      'mean, so the median over tasks stands beside it.'
    ),
    table(f'Δm of {arm}', ('Metric', 'Δm ↓', '95% interval', 'Median', 'Tasks', 'Terms'), rows),
    *([Text(f'Left out: {", ".join(left_out)}.', 'quiet')] if left_out else []),
  ]


def _delta_m_cells(part: Mapping[str, Any]) -> tuple[str, str, str]:
  """Mean, interval and median."""
  interval = MISSING if part['ci95'] is None else ' to '.join(map(percent, part['ci95']))
  return percent(part['mean']), interval, percent(part['median'])
