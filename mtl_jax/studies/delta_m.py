"""Delta-m: how much worse an arm is than the reference in per cent, averaged over tasks and metrics.

    delta_m = 100 * mean over tasks and metrics of (-1)^(higher is better) (arm - reference) / reference

(Maninis et al. 2019, equation 4; over metrics too, as Liu et al. 2021.) *Lower is better*; negative says that the arm
gained. `arm` and `reference` are means over seeds, so a rare attribute's F1 in one unlucky seed is no denominator.
Small denominators dominate the mean all the same: the median over tasks and each metric alone stand beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mtl_jax.studies.scores import Pair
from mtl_jax.studies.significance import interval
from mtl_jax.tasks import find_metric, higher_is_better, plain


def delta_m(
  values: Mapping[str, Mapping[str, Pair]],
  *,
  main_metrics: Mapping[str, str],
  resampled: Mapping[str, Mapping[str, Pair | None]] | None = None,
  num_clusters: int = 0,
) -> dict[str, Any]:
  """Delta-m over all tasks and metrics and of each metric alone, ready for JSON.

  A seed in which any of the terms is missing is left out of all of them; a term without a single complete pair, or
  whose reference is 0 on average, is left out and named in `left_out`.

  Args:
    values: for each task and metric the arm's and the reference's values, `[S]` each; NaN where there is none.
    main_metrics: of each task.
    resampled: the same values over the same resamples of the test split's people, `[B, S]` each, None where there are
      none.
    num_clusters: how many people were resampled.

  Returns:
    `mean`, `ci95` (a t interval over seeds alone), `ci95_people` (over seeds and people together, None without
    resamples of every term, or where a seed is left out), `values` (of each seed, None where left out), `median` (over
    tasks, of each task's mean over metrics), `num_tasks`, `num_terms`, `left_out`, and the same of each metric under
    `per_metric`. Everything in per cent; `mean`, `ci95` and `median` are None where nothing is left.
  """
  terms = {
    (task, metric): pair for task, metrics in values.items() for metric, pair in _chosen(metrics, main_metrics[task])
  }
  samples = {(task, metric): pair for task, metrics in (resampled or {}).items() for metric, pair in metrics.items()}
  people = partial(_people, samples, num_clusters)
  per_metric = {
    name: _summary({key: pair for key, pair in terms.items() if plain(key[1]) == name}, people)
    for name in dict.fromkeys(plain(metric) for _, metric in terms)
  }
  return {**_summary(terms, people), 'per_metric': per_metric}


def _chosen(metrics: Mapping[str, Pair], main_metric: str) -> list[tuple[str, Pair]]:
  """The metrics of a task that Delta-m reads; its main metric where there are none."""
  found = {metric: find_metric(metric) for metric in metrics}
  listed = [(metric, metrics[metric]) for metric, declared in found.items() if declared and declared.in_delta_m]
  return listed or [(metric, pair) for metric, pair in metrics.items() if metric == main_metric]


def _summary(terms: Mapping[tuple[str, str], Pair], people: Callable[..., list[float] | None]) -> dict[str, Any]:
  complete = {key: np.isfinite(arm) & np.isfinite(reference) for key, (arm, reference) in terms.items()}
  left_out = [_why(key, 'no seed has both values') for key, seeds in complete.items() if not seeds.any()]
  kept = {key: pair for key, pair in terms.items() if complete[key].any()}
  seeds = np.logical_and.reduce([complete[key] for key in kept]) if kept else np.zeros(0, bool)
  zero = [key for key, (_, reference) in kept.items() if seeds.any() and reference[seeds].mean() == 0]
  left_out += [_why(key, 'the reference is 0') for key in zero]
  kept = {key: pair for key, pair in kept.items() if key not in zero}
  summary = {'mean': None, 'ci95': None, 'ci95_people': None, 'median': None, 'values': [None] * len(seeds)}
  if kept and seeds.any():
    percent = {key: _percent(key[1], *(side[seeds] for side in pair)) for key, pair in kept.items()}
    by_seed = np.mean(list(percent.values()), axis=0)
    tasks = dict.fromkeys(task for task, _ in kept)
    by_task = [np.mean([values.mean() for key, values in percent.items() if key[0] == task]) for task in tasks]
    found = interval(by_seed, np.zeros_like(by_seed))
    each = iter(by_seed.tolist())
    summary = {
      'mean': float(by_seed.mean()),
      'ci95': [found.low, found.high] if found else None,
      'ci95_people': people(list(kept), by_seed) if seeds.all() else None,
      'median': float(np.median(by_task)),
      'values': [next(each) if seed else None for seed in seeds],
    }
  return {
    **summary,
    'num_tasks': len({task for task, _ in kept}),
    'num_terms': len(kept),
    'left_out': left_out,
  }


def _people(
  samples: Mapping[tuple[str, str], Pair | None],
  num_clusters: int,
  terms: Sequence[tuple[str, str]],
  by_seed: np.ndarray,
) -> list[float] | None:
  """The interval over seeds and people of the mean over terms, from each term's resamples."""
  pairs = [(metric, samples.get((task, metric))) for task, metric in terms]
  if not pairs or any(pair is None for _, pair in pairs):
    return None
  with np.errstate(divide='ignore', invalid='ignore'):  # A resample without a value of some term is left out.
    percent = np.mean([_percent(metric, *pair) for metric, pair in pairs if pair is not None], axis=0)
  zeros = np.zeros_like(percent)
  found = interval(by_seed, np.zeros_like(by_seed), resampled=(percent, zeros), num_clusters=num_clusters)
  return [found.low, found.high] if found else None


def _percent(metric: str, arm: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """One term of each seed, `[..., S]`; their mean is the term of the mean values."""
  sign = -1 if higher_is_better(metric) else 1
  return 100 * sign * (arm - reference) / reference.mean(axis=-1, keepdims=True)


def _why(key: tuple[str, str], reason: str) -> dict[str, str]:
  return {'task': key[0], 'metric': key[1], 'reason': reason}
