"""Summarizes replicas' scores in study.json and study.csv: tests, intervals, verdicts, delta-m, transfer, power."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.studies import significance
from mtl_jax.studies.delta_m import delta_m
from mtl_jax.studies.scores import Pair, TaskScores
from mtl_jax.tasks import higher_is_better


def summarize(tasks: Mapping[str, TaskScores], *, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
  """The study JSON but for its cost, which is no statistic.

  `arms[0]` is the reference, the single-task models, and `arms[1]` the arm that `delta`, `verdict`, `delta_m`,
  `negative_transfer` and `power` at the top are about; with more arms than two `comparisons` holds these for each. The
  family over which p-values are adjusted is one arm's main metrics, one a task. Only they (`main` is true) have
  p-values and a verdict: other metrics, and the single outputs of a task under `outputs`, are descriptive, with a
  difference and an interval and None for the rest.

  An arm's `mean` is over its own finite `values`; `delta` over the seeds that both arms have (`num_pairs`). Replicas
  without a finite main metric are listed under `dropped`.

  Raises:
    ValueError: for scores that are not one for each arm and seed.
  """
  for name, task in tasks.items():
    counts = {arm: len(task.scores.get(arm, ())) for arm in arms}
    if set(counts.values()) != {len(seeds)}:
      raise ValueError(f'task {name!r} has scores of {counts} replicas, not one for each of {len(seeds)} seeds')
  reference, first, *more = arms
  compared = {arm: _compare(tasks, arm, reference) for arm in arms[1:]}
  top = compared[first]
  outputs = {name: tasks[name].outputs() for name in top['outputs']}
  result = {
    'arms': list(arms),
    'seeds': list(seeds),
    'tasks': {name: _with_values(task, top['tasks'][name], arms) for name, task in tasks.items()},
    'outputs': {
      name: {output: _with_values(part, top['outputs'][name][output], arms) for output, part in parts.items()}
      for name, parts in outputs.items()
    },
    **{key: top[key] for key in ('delta_m', 'negative_transfer', 'power')},
    'dropped': _dropped(tasks, arms, seeds),
    'alpha': significance.ALPHA,
  }
  return {**result, 'comparisons': compared} if more else result


def csv_rows(study: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Rows of study.csv: one an arm other than the reference, task, output and metric; empty where there is no value."""
  reference, *arms = study['arms']
  rows = []
  for arm in arms:
    compared = study['comparisons'][arm] if 'comparisons' in study else study
    table = [(task, '', study['tasks'][task], found) for task, found in compared['tasks'].items()]
    for task, outputs in compared['outputs'].items():
      table += [(task, output, study['outputs'][task][output], found) for output, found in outputs.items()]
    rows += [
      _csv_row(task, output, metric, reference, arm, values=values[metric], found=found[metric])
      for task, output, values, found in table
      for metric in found
    ]
  return rows


def _csv_row(
  task: str, output: str, metric: str, reference: str, arm: str, *, values: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
  delta = found['delta']
  low, high = delta['ci95'] or (None, None)
  row = {
    'task': task,
    'output': output,
    'metric': metric,
    'main': found['main'],
    'higher_is_better': found['higher_is_better'],
    'reference': reference,
    'arm': arm,
    'reference_mean': values[reference]['mean'],
    'arm_mean': values[arm]['mean'],
    'delta': delta['mean'],
    'ci95_low': low,
    'ci95_high': high,
    'p_value': delta['p_value'],
    'p_adjusted': delta['p_adjusted'],
    'verdict': found['verdict'],
    'num_pairs': delta['num_pairs'],
  }
  return {key: '' if value is None else value for key, value in row.items()}


def _compare(tasks: Mapping[str, TaskScores], arm: str, reference: str) -> dict[str, Any]:
  """One arm against the reference: everything but the arms' own values."""
  pairs = {name: _complete(task.pair(arm, reference, task.main_metric)) for name, task in tasks.items()}
  p_values = np.array([float(significance.paired_p_value(*pair)) for pair in pairs.values()])
  tested = dict(zip(tasks, zip(p_values, significance.holm(p_values), strict=True), strict=True))
  outputs = {name: task.outputs() for name, task in tasks.items()}
  outputs = {name: parts for name, parts in outputs.items() if parts}
  found = {name: _entries(task, arm, reference, p_values=tested[name]) for name, task in tasks.items()}
  hurt = [name for name, task in tasks.items() if found[name][task.main_metric]['verdict'] == significance.HURTS]
  return {
    'tasks': found,
    'outputs': {
      name: {output: _entries(part, arm, reference) for output, part in parts.items()}
      for name, parts in outputs.items()
    },
    'delta_m': {
      **_delta_m(tasks, arm, reference),
      'per_output': {name: _delta_m(parts, arm, reference) for name, parts in outputs.items()},
    },
    'negative_transfer': {
      'shown': bool(hurt),
      'num_tasks': len(hurt),
      'num_tasks_tested': int(np.isfinite(p_values).sum()),
      'tasks': hurt,
    },
    'power': _power(pairs, {name: task.main_metric for name, task in tasks.items()}),
  }


def _entries(
  task: TaskScores, arm: str, reference: str, *, p_values: tuple[float, float] | None = None
) -> dict[str, dict[str, Any]]:
  """Difference and interval of each metric; of the main one also `p_values` (plain and adjusted) and a verdict."""
  return {
    metric: _entry(task, arm, reference, metric, p_values=p_values if metric == task.main_metric else None)
    for metric in task.metrics
  }


def _entry(
  task: TaskScores, arm: str, reference: str, metric: str, *, p_values: tuple[float, float] | None
) -> dict[str, Any]:
  pair = task.pair(arm, reference, metric)
  both = np.isfinite(pair[0]) & np.isfinite(pair[1])
  values = pair[0][both], pair[1][both]
  resampled = task.resampled_pair(arm, reference, metric, seeds=both)
  found = significance.interval(*values, resampled=resampled, num_clusters=task.num_clusters)
  mean = float((values[0] - values[1]).mean()) if both.any() else None
  ci95 = [found.low, found.high] if found else None
  upwards = higher_is_better(metric)
  p_value, p_adjusted = (_number(p) for p in p_values or (np.nan, np.nan))
  tested = p_values is not None
  verdict = significance.verdict(mean, p_adjusted, higher_is_better=upwards) if tested else None
  return {
    'delta': {
      'mean': mean,
      'ci95': ci95,
      'p_value': p_value,
      'p_adjusted': p_adjusted,
      'num_pairs': int(both.sum()),
      'standard_error': {'seeds': found.seeds, 'images': found.images} if found else None,
    },
    'verdict': verdict,
    'disagreement': None if verdict is None else significance.disagreement(verdict, ci95),
    'main': tested,
    'higher_is_better': upwards,
  }


def _delta_m(tasks: Mapping[str, TaskScores], arm: str, reference: str) -> dict[str, Any]:
  values = {name: {m: task.pair(arm, reference, m) for m in task.metrics} for name, task in tasks.items()}
  resampled = {
    name: {m: task.resampled_pair(arm, reference, m, seeds=np.isfinite(pair[0])) for m, pair in values[name].items()}
    for name, task in tasks.items()
  }
  return delta_m(
    values,
    main_metrics={name: task.main_metric for name, task in tasks.items()},
    resampled=resampled,
    num_clusters=max((task.num_clusters for task in tasks.values()), default=0),
  )


def _power(pairs: Mapping[str, Pair], main: Mapping[str, str]) -> dict[str, Any]:
  """The smallest differences this study would have found with 80 % power, at Holm's first and worst step and alone."""
  worst = significance.ALPHA / max(len(pairs), 1)
  tasks = {
    name: {
      'metric': main[name],
      'num_pairs': len(pair[0]),
      'smallest_difference': significance.detectable_difference(*pair, alpha=worst),
      'smallest_difference_alone': significance.detectable_difference(*pair, alpha=significance.ALPHA),
    }
    for name, pair in pairs.items()
  }
  metrics = {}
  for metric in dict.fromkeys(main.values()):
    known = [task['smallest_difference'] for task in tasks.values() if task['metric'] == metric]
    known = [difference for difference in known if difference is not None]
    metrics[metric] = {
      'median': float(np.median(known)) if known else None,
      'largest': max(known) if known else None,
    }
  return {
    'power': significance.POWER,
    'alpha': significance.ALPHA,
    'alpha_worst_step': worst,
    'tasks': tasks,
    'smallest_difference': metrics,
  }


def _with_values(
  task: TaskScores, found: Mapping[str, Mapping[str, Any]], arms: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Each metric's entry with every arm's mean and its value at each seed before it."""
  result = {}
  for metric, entry in found.items():
    sides = {arm: task.values(arm, metric) for arm in arms}
    result[metric] = {
      **{arm: {'mean': _mean(values), 'values': [_number(v) for v in values]} for arm, values in sides.items()},
      **entry,
    }
  return result


def _dropped(tasks: Mapping[str, TaskScores], arms: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
  return [
    {'task': name, 'arm': arm, 'seed': seed}
    for name, task in tasks.items()
    for arm in arms
    for seed, value in zip(seeds, task.values(arm, task.main_metric), strict=True)
    if np.isnan(value)
  ]


def _complete(pair: Pair) -> Pair:
  """Without the seeds that one of the two lacks."""
  both = np.isfinite(pair[0]) & np.isfinite(pair[1])
  return pair[0][both], pair[1][both]


def _mean(values: np.ndarray) -> float | None:
  """Mean of the values there are."""
  known = values[np.isfinite(values)]
  return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
  """A value for JSON: None for NaN."""
  return float(value) if np.isfinite(value) else None
