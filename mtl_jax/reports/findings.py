"""Reads a study's JSON as findings, one a metric and task, with figures as text in their units."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.reports.scoreboard import MISSING
from mtl_jax.studies.significance import HELPS, HURTS
from mtl_jax.tasks import find_metric

NOT_TESTED = 'not tested'


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
    """The interval by itself: `better`, `worse` or `includes 0`, empty where there is none."""
    if self.ci95 is None:
      return ''
    if self.ci95[0] <= 0 <= self.ci95[1]:
      return 'includes 0'
    return 'better' if (self.ci95[0] > 0) == self.higher_is_better else 'worse'

  @property
  def sure(self) -> bool:
    """True if the test found a difference, or, where nothing was tested, if the interval excludes 0."""
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


def named(metric: str) -> tuple[str, bool]:
  """A metric's name in a sentence, and whether it is shown in per cent."""
  known = find_metric(metric)
  return (known.phrase, known.percent) if known else (metric.replace('_', ' '), False)


def unit(metric: str) -> str:
  """The unit of a difference."""
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
  return '< 0.001' if p_value < 0.001 else f'{p_value:.2g}'
