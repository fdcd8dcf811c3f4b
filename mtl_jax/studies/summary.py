"""Summarizes replicas' scores in study.json and study.csv: tests, intervals, verdicts, delta-m, transfer, power."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.platform.json_file import finite
from mtl_jax.studies import significance
from mtl_jax.studies.delta_m import delta_m
from mtl_jax.studies.scores import Scores
from mtl_jax.tasks import higher_is_better


def summarize(scores: Sequence[Scores], *, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
  """Makes the content of study.json, except for the cost.

  `arms[0]` is the reference, the single-task models, and `arms[1]` the arm that `delta`, `verdict`, `delta_m`,
  `negative_transfer` and `power` at the top are about; with more arms than two `comparisons` holds these for each. The
  family over which p-values are adjusted is one arm's main metrics, one a task. Only they (`main` is true) have
  p-values and a verdict: other metrics, and the single outputs of a task under `outputs`, are descriptive, with a
  difference and an interval and None for the rest.

  An arm's `mean` is over its own finite `values`; `delta` over the seeds that both arms have (`num_pairs`). Replicas
  without a finite main metric are listed under `dropped`.
  """
  reference, first, *more = arms
  compared = {arm: _compare(scores, arm, reference) for arm in arms[1:]}
  top = compared[first]

  def with_values(one: Scores) -> dict[str, Any]:
    entry = (top['outputs'][one.task][one.output] if one.output else top['tasks'][one.task])[one.metric]
    return {arm: _values(one.values[arm]) for arm in arms} | entry

  result = {
    'arms': list(arms),
    'seeds': list(seeds),
    **_tables(scores, with_values),
    **{key: top[key] for key in ('delta_m', 'negative_transfer', 'power')},
    'dropped': [
      {'task': one.task, 'arm': arm, 'seed': seed}
      for one in scores
      if one.main
      for arm in arms
      for seed, value in zip(seeds, one.values[arm], strict=True)
      if np.isnan(value)
    ],
    'alpha': significance.ALPHA,
  }
  return {**result, 'comparisons': compared} if more else result


def csv_rows(study: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Rows of study.csv: one an arm other than the reference, task, output and metric; empty where there is no value."""
  reference, *arms = study['arms']
  for arm in arms:
    compared = study.get('comparisons', {}).get(arm, study)
    for task, whole in compared['tasks'].items():
      groups = {'': whole, **compared['outputs'].get(task, {})}
      values = {'': study['tasks'][task], **study['outputs'].get(task, {})}
      for output, metric, entry in [(o, metric, entry) for o, of in groups.items() for metric, entry in of.items()]:
        delta = entry['delta']
        low, high = delta['ci95'] or (None, None)
        row = {
          'task': task,
          'output': output,
          'metric': metric,
          'main': entry['main'],
          'higher_is_better': entry['higher_is_better'],
          'reference': reference,
          'arm': arm,
          'reference_mean': values[output][metric][reference]['mean'],
          'arm_mean': values[output][metric][arm]['mean'],
          'delta': delta['mean'],
          'ci95_low': low,
          'ci95_high': high,
          'p_value': delta['p_value'],
          'p_adjusted': delta['p_adjusted'],
          'verdict': entry['verdict'],
          'num_pairs': delta['num_pairs'],
        }
        yield {key: '' if value is None else value for key, value in row.items()}


def _tables(scores: Sequence[Scores], entry: Callable[[Scores], Any]) -> dict[str, dict[str, Any]]:
  """An entry of each metric, by task under `tasks`, and by task and output under `outputs`."""
  tables: dict[str, dict[str, Any]] = {'tasks': {}, 'outputs': {}}
  for one in scores:
    table = tables['outputs' if one.output else 'tasks'].setdefault(one.task, {})
    (table.setdefault(one.output, {}) if one.output else table)[one.metric] = entry(one)
  return tables


def _compare(scores: Sequence[Scores], arm: str, reference: str) -> dict[str, Any]:
  """One arm against the reference: everything but the arms' own values."""
  main = {one.task: one for one in scores if one.main}
  pairs = {task: one.pair(arm, reference, one.complete(arm, reference)) for task, one in main.items()}
  p_values = np.array([float(significance.paired_p_value(*pair)) for pair in pairs.values()])
  tested = dict(zip(main, zip(p_values, significance.holm(p_values), strict=True), strict=True))
  found = _tables(scores, lambda one: _entry(one, arm, reference, tested[one.task] if one.main else None))
  outputs = {task: [one for one in scores if one.task == task and one.output] for task in found['outputs']}
  hurt = [task for task, one in main.items() if found['tasks'][task][one.metric]['verdict'] == significance.HURTS]
  return {
    **found,
    'delta_m': {
      **delta_m([one for one in scores if not one.output], arm, reference),
      'per_output': {task: delta_m(those, arm, reference) for task, those in outputs.items()},
    },
    'negative_transfer': {
      'shown': bool(hurt),
      'num_tasks': len(hurt),
      'num_tasks_tested': int(np.isfinite(p_values).sum()),
      'tasks': hurt,
    },
    'power': _power(pairs, {task: one.metric for task, one in main.items()}),
  }


def _entry(one: Scores, arm: str, reference: str, p_values: tuple[float, float] | None) -> dict[str, Any]:
  """Difference and interval; of a main metric also its p-value, plain and adjusted, and a verdict."""
  seeds = one.complete(arm, reference)
  values = one.pair(arm, reference, seeds)
  resampled = one.resampled_pair(arm, reference, seeds)
  found = significance.interval(*values, resampled=resampled, num_clusters=one.num_clusters)
  mean = _mean(values[0] - values[1])
  ci95 = [found.low, found.high] if found else None
  upwards = higher_is_better(one.metric)
  p_value, p_adjusted = map(finite, p_values or (np.nan, np.nan))
  verdict = significance.verdict(mean, p_adjusted, higher_is_better=upwards) if one.main else None
  return {
    'delta': {
      'mean': mean,
      'ci95': ci95,
      'p_value': p_value,
      'p_adjusted': p_adjusted,
      'num_pairs': int(seeds.sum()),
      'standard_error': {'seeds': found.seeds, 'images': found.images} if found else None,
    },
    'verdict': verdict,
    'disagreement': None if verdict is None else significance.disagreement(verdict, ci95),
    'main': one.main,
    'higher_is_better': upwards,
  }


def _power(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], metrics: Mapping[str, str]) -> dict[str, Any]:
  """The smallest differences this study would have found with 80 % power, at Holm's first and worst step and alone."""
  worst = significance.ALPHA / max(len(pairs), 1)
  tasks = {
    task: {
      'metric': metrics[task],
      'num_pairs': len(pair[0]),
      'smallest_difference': significance.detectable_difference(*pair, alpha=worst),
      'smallest_difference_alone': significance.detectable_difference(*pair, alpha=significance.ALPHA),
    }
    for task, pair in pairs.items()
  }
  by_metric: dict[str, list[float]] = {metric: [] for metric in metrics.values()}
  for task in tasks.values():
    by_metric[task['metric']] += [task['smallest_difference']] if task['smallest_difference'] is not None else []
  return {
    'power': significance.POWER,
    'alpha': significance.ALPHA,
    'alpha_worst_step': worst,
    'tasks': tasks,
    'smallest_difference': {
      metric: {'median': float(np.median(known)), 'largest': max(known)} if known else {'median': None, 'largest': None}
      for metric, known in by_metric.items()
    },
  }


def _values(values: np.ndarray) -> dict[str, Any]:
  """Each seed's value, and their mean."""
  return {'mean': _mean(values[np.isfinite(values)]), 'values': finite(values)}


def _mean(values: np.ndarray) -> float | None:
  return float(values.mean()) if len(values) else None
