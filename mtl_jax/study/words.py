"""What a study found, task by task, in words and in figures with their units; nothing here claims more than a test did.

"No evidence" is not "equal": it is always said with how small a difference the study could have seen.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.report.scoreboard import MISSING
from mtl_jax.study.significance import HELPS, HURTS, NO_EVIDENCE, POWER
from mtl_jax.tasks import find_metric

NOT_TESTED = 'not tested'
MAX_SPELT = 3  # With more tasks the sentence counts them and names a few.
MAX_NAMED = 4
SUBJECTS = {'joint': 'joint training', 'single': 'training alone'}


@dataclasses.dataclass(frozen=True)
class Finding:
  """One metric of one task, or of one of its outputs: an arm against the reference.

  Attributes:
    verdict: `helps`, `hurts`, `no evidence` or `not tested`; None for what is only described.
    arm: the arm's mean over its seeds and the value of each.
    reference: likewise.
    delta: the mean difference arm - reference of the seeds that both have.
    detectable: the smallest difference that would have been found at the strictest step of Holm's adjustment.
    detectable_alone: the same if this had been the only test.
  """

  name: str
  metric: str
  higher_is_better: bool
  arm: Mapping[str, Any]
  reference: Mapping[str, Any]
  delta: float | None
  ci95: Sequence[float] | None
  p_value: float | None
  p_adjusted: float | None
  num_pairs: int
  verdict: str | None
  disagreement: str | None
  detectable: float | None = None
  detectable_alone: float | None = None

  @property
  def label(self) -> str:
    return named(self.metric)[0]

  @property
  def direction(self) -> str:
    """What the interval by itself says: `better`, `worse` or `includes 0`, empty where there is none."""
    if self.ci95 is None:
      return ''
    if self.ci95[0] <= 0 <= self.ci95[1]:
      return 'includes 0'
    return 'better' if (self.ci95[0] > 0) == self.higher_is_better else 'worse'

  @property
  def sure(self) -> bool:
    """Whether the test found a difference, or, where nothing was tested, whether the interval excludes 0."""
    return self.verdict in (HELPS, HURTS) if self.verdict else self.direction in ('better', 'worse')

  @property
  def decimals(self) -> int:
    """Enough for two significant figures of the interval's half width, or of the difference where there is none."""
    size = (self.ci95[1] - self.ci95[0]) / 2 if self.ci95 else abs(self.delta or 0.0)
    return decimals(size, self.metric)

  def difference(self) -> str:
    return MISSING if self.delta is None else signed(self.delta, self.metric, self.decimals) + unit(self.metric)

  def interval(self) -> str:
    if self.ci95 is None:
      return MISSING
    return ' to '.join(signed(end, self.metric, self.decimals) for end in self.ci95)

  def details(self) -> str:
    """The figures behind a verdict."""
    parts = [
      f'{self.label} {level(self.arm["mean"], self.metric)} against {level(self.reference["mean"], self.metric)}',
      self.difference(),
    ]
    if self.ci95:
      parts.append(f'95% interval {self.interval()}')
    if self.p_adjusted is not None:
      parts.append(f'adjusted p {p_text(self.p_adjusted)}')
    return ', '.join(parts)


def findings(study: Mapping[str, Any], arm: str) -> list[Finding]:
  """The main metric of every task."""
  compared = comparison(study, arm)
  return [
    _finding(study, arm, task, metric, study['tasks'][task][metric], entry, compared['power']['tasks'].get(task, {}))
    for task, metrics in compared['tasks'].items()
    for metric, entry in metrics.items()
    if entry['main']
  ]


def descriptive(study: Mapping[str, Any], arm: str) -> list[Finding]:
  """The other metrics of every task."""
  return [
    _finding(study, arm, task, metric, study['tasks'][task][metric], entry)
    for task, metrics in comparison(study, arm)['tasks'].items()
    for metric, entry in metrics.items()
    if not entry['main']
  ]


def outputs(study: Mapping[str, Any], arm: str) -> dict[str, list[Finding]]:
  """Single outputs by task or group of tasks: those of one task described by their first metric, those that are tasks
  of their own (`attributes/Smiling`) with their tests."""
  groups: dict[str, list[Finding]] = collections.defaultdict(list)
  for task, parts in comparison(study, arm)['outputs'].items():
    for output, metrics in parts.items():
      metric = next(iter(metrics))
      groups[task].append(_finding(study, arm, output, metric, study['outputs'][task][output][metric], metrics[metric]))
  for finding in findings(study, arm):
    group, _, output = finding.name.partition('/')
    if output:
      groups[group].append(dataclasses.replace(finding, name=output))
  return {group: found for group, found in groups.items() if len(found) > 1}


def comparison(study: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
  """The part of the study's JSON about an arm."""
  return study['comparisons'][arm] if 'comparisons' in study else study


def _finding(
  study: Mapping[str, Any],
  arm: str,
  name: str,
  metric: str,
  values: Mapping[str, Any],
  entry: Mapping[str, Any],
  power: Mapping[str, Any] | None = None,
) -> Finding:
  delta = entry['delta']
  return Finding(
    name=name,
    metric=metric,
    higher_is_better=entry['higher_is_better'],
    arm=values[arm],
    reference=values[study['arms'][0]],
    delta=delta['mean'],
    ci95=delta['ci95'],
    p_value=delta['p_value'],
    p_adjusted=delta['p_adjusted'],
    num_pairs=delta['num_pairs'],
    verdict=NOT_TESTED if power is not None and delta['p_value'] is None else entry['verdict'],
    disagreement=entry['disagreement'],
    detectable=power.get('smallest_difference') if power else None,
    detectable_alone=power.get('smallest_difference_alone') if power else None,
  )


def sentence(found: Sequence[Finding], *, arm: str, reference: str, num_seeds: int) -> str:
  """The verdict on an arm, in a sentence.

  Args:
    found: the main metric of each task.
    arm: its name.
    reference: that of the arm it is compared with.
    num_seeds: of the study.
  """
  by_verdict = {verdict: [f for f in found if f.verdict == verdict] for verdict in (HELPS, HURTS, NO_EVIDENCE)}
  untested = [f for f in found if f.verdict == NOT_TESTED]
  subject, against = _called(arm), _called(reference)
  if (arm, reference) != ('joint', 'single'):
    subject = f'compared with {against}, {subject}'
  spell = _spelt if len(found) <= MAX_SPELT else _counted
  if len(untested) == len(found):
    return _untold(found, num_seeds, subject)
  clauses = [f'{verdict} {spell(by_verdict[verdict], len(found))}' for verdict in (HELPS, HURTS) if by_verdict[verdict]]
  if clauses:
    clauses[0] = f'{subject} {clauses[0]}'
  if by_verdict[NO_EVIDENCE]:
    unsure = f'there is no evidence either way for {spell(by_verdict[NO_EVIDENCE], len(found))}'
    clauses.append(unsure if clauses else f'it is open whether {subject} helps or hurts: {unsure}')
  if untested:
    clauses.append(f'{_counted(untested, len(found))} could not be tested')
  text = ' and '.join([', '.join(clauses[:-1]), clauses[-1]] if len(clauses) > 1 else clauses)
  seen = _seen(by_verdict[NO_EVIDENCE])
  return text[0].upper() + text[1:] + (f'; {seen}' if seen else '') + '.'


def _called(arm: str) -> str:
  return SUBJECTS.get(arm, f'the arm {arm}')


def _untold(found: Sequence[Finding], num_seeds: int, subject: str) -> str:
  """The sentence of a study in which no test could be made."""
  seeds = 'one seed' if num_seeds == 1 else f'{num_seeds} seeds, too few of which came through,'
  figures = '; '.join(f'{f.name} {f.details()}' for f in found) if len(found) <= MAX_SPELT else ''
  return (
    f'With {seeds} nothing was tested: it is open whether {subject} helps or hurts{f" ({figures})" * bool(figures)}.'
  )


def _spelt(found: Sequence[Finding], total: int) -> str:
  """Every task with its figures."""
  del total
  return ' and '.join(f'{f.name} ({f.details()}{_doubt(f)})' for f in found)


def _doubt(finding: Finding) -> str:
  return f'; {finding.disagreement}' if finding.disagreement and finding.verdict in (HELPS, HURTS) else ''


def _counted(found: Sequence[Finding], total: int) -> str:
  """How many tasks, and their names where they are few or were found to differ, the surest first."""
  ranked = sorted(found, key=lambda f: 1.0 if f.p_value is None else f.p_value)
  inside = []
  if len(found) <= MAX_NAMED or found[0].verdict in (HELPS, HURTS):
    more = f' and {len(found) - MAX_NAMED} more' if len(found) > MAX_NAMED else ''
    inside.append(', '.join(f.name for f in ranked[:MAX_NAMED]) + more)
  if doubted := sum(bool(_doubt(f)) for f in found):
    inside.append(f'{doubted} of them with a reservation that stands below')
  return f'{len(found)} of {total} tasks' + (f' ({"; ".join(inside)})' if inside else '')


def _seen(unsure: Sequence[Finding]) -> str:
  """How small a difference would have been seen in the tasks without evidence, the median of each metric."""
  sizes: dict[str, list[float]] = collections.defaultdict(list)
  for finding in unsure:
    if finding.detectable is not None:
      sizes[finding.metric].append(finding.detectable)
  said = []
  for metric, known in sizes.items():
    which = f' (the median of {len(known)} tasks)' if len(known) > 1 else ''
    said.append(f'{size(statistics.median(known), metric)} in {named(metric)[0]}{which}')
  if not said:
    return ''
  sizes_said = ' and '.join(said)
  pairs = sorted({f.num_pairs for f in unsure})
  seeds = f'{pairs[0]} to {pairs[-1]}' if len(pairs) > 1 else pairs[0]
  return f'with these {seeds} seeds a difference of about {sizes_said} would have been seen with {POWER:.0%} power'


def named(metric: str) -> tuple[str, bool]:
  """A metric's name in a sentence, and whether it is shown in per cent."""
  known = find_metric(metric)
  return (known.phrase, known.percent) if known else (metric.replace('_', ' '), False)


def unit(metric: str) -> str:
  """Of a difference."""
  return ' points' if named(metric)[1] else ''


def decimals(size: float, metric: str) -> int:
  """Decimals that show two significant figures of a size, within reason."""
  percent = named(metric)[1]
  size *= 100 if percent else 1
  wanted = 1 - math.floor(math.log10(size)) if size > 0 else 2
  return min(max(wanted, 2 if percent else 0), 5)


def level(value: float | None, metric: str) -> str:
  if value is None:
    return MISSING
  return f'{100 * value:.2f}%' if named(metric)[1] else f'{value:.4g}'


def signed(value: float, metric: str, digits: int) -> str:
  rounded = round(value * (100 if named(metric)[1] else 1), digits)
  return f'{rounded:+.{digits}f}'.replace('-', '\N{MINUS SIGN}') if rounded else f'{0:.{digits}f}'


def size(value: float | None, metric: str) -> str:
  """A difference without its sign, to two significant figures."""
  if value is None:
    return MISSING
  rounded = float(f'{value * (100 if named(metric)[1] else 1):.2g}')  # In two steps, for `g` alone writes 1.2e+02.
  return f'{rounded:g}{unit(metric)}'


def p_text(p_value: float | None) -> str:
  if p_value is None:
    return MISSING
  return '< 0.001' if p_value < 0.001 else f'= {p_value:.2g}' if p_value < 0.995 else '= 1'
