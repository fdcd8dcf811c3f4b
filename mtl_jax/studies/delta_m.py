"""Delta-m: how much worse an arm is than the reference in per cent, averaged over tasks and metrics.

    delta_m = 100 * mean over tasks and metrics of (-1)^(higher is better) (arm - reference) / reference

(Maninis et al. 2019, equation 4; over metrics too, as Liu et al. 2021.) *Lower is better*; negative says that the arm
gained. `arm` and `reference` are means over seeds, so a rare attribute's F1 in one unlucky seed is no denominator.
Small denominators dominate the mean all the same: the median over tasks and each metric alone stand beside it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.studies.scores import Pair, Scores
from mtl_jax.studies.significance import interval
from mtl_jax.tasks import find_metric, higher_is_better, plain


def delta_m(scores: Sequence[Scores], arm: str, reference: str) -> dict[str, Any]:
  """Delta-m over all tasks and metrics and of each metric alone, ready for JSON.

  Of each task, or output, the metrics that are declared for it count; the first where none is. A seed in which any of
  the terms is missing is left out of all of them; a term without a single complete pair, or whose reference is 0 on
  average, is left out and named in `left_out`.

  Args:
    scores: of tasks, or of the outputs of one task, each of which then counts as a task.
    arm: whose Delta-m it is.
    reference: the arm it is compared with.

  Returns:
    `mean`, `ci95` (a t interval over seeds alone), `ci95_people` (over seeds and people together, None without
    resamples of every term, or where a seed is left out), `values` (of each seed, None where left out), `median` (over
    tasks, of each task's mean over metrics), `num_tasks`, `num_terms`, `left_out`, and the same of each metric under
    `per_metric`. Everything in per cent; `mean`, `ci95` and `median` are None where nothing is left.
  """
  groups: dict[str, list[Scores]] = {}
  for one in scores:
    groups.setdefault(_name(one), []).append(one)
  terms: list[Scores] = []
  for group in groups.values():
    declared = [one for one in group if (metric := find_metric(one.metric)) and metric.in_delta_m]
    terms += declared or group[:1]
  metrics = dict.fromkeys(plain(one.metric) for one in terms)
  own = {name: [one for one in terms if plain(one.metric) == name] for name in metrics}
  per_metric = {name: _summary(those, arm, reference) for name, those in own.items()}
  return {**_summary(terms, arm, reference), 'per_metric': per_metric}


def _name(one: Scores) -> str:
  return one.output or one.task


def _summary(terms: Sequence[Scores], arm: str, reference: str) -> dict[str, Any]:
  kept = [one for one in terms if one.complete(arm, reference).any()]
  left_out = [_left_out(one, 'no seed has both values') for one in terms if one not in kept]
  seeds = np.logical_and.reduce([one.complete(arm, reference) for one in kept]) if kept else np.zeros(0, bool)
  if seeds.any():
    zero = [one for one in kept if one.values[reference][seeds].mean() == 0]
    left_out += [_left_out(one, 'the reference is 0') for one in zero]
    kept = [one for one in kept if one not in zero]
  summary = {'mean': None, 'ci95': None, 'ci95_people': None, 'median': None, 'values': [None] * len(seeds)}
  if kept and seeds.any():
    percent = np.array([_percent(one, one.pair(arm, reference, seeds)) for one in kept])  # [terms, S'].
    by_seed = percent.mean(0)
    by_task = [percent[[_name(one) == name for one in kept]].mean() for name in dict.fromkeys(map(_name, kept))]
    values = iter(by_seed.tolist())
    summary = {
      'mean': float(by_seed.mean()),
      'ci95': _ends(by_seed),
      'ci95_people': _over_people(kept, arm, reference, by_seed) if seeds.all() else None,
      'median': float(np.median(by_task)),
      'values': [next(values) if seed else None for seed in seeds],
    }
  num_tasks = len({_name(one) for one in kept})
  return {**summary, 'num_tasks': num_tasks, 'num_terms': len(kept), 'left_out': left_out}


def _over_people(terms: Sequence[Scores], arm: str, reference: str, by_seed: np.ndarray) -> list[float] | None:
  """The interval over seeds and people of the mean over terms, from each term's resamples."""
  pairs = [one.resampled_pair(arm, reference, np.ones(len(by_seed), bool)) for one in terms]
  if any(pair is None for pair in pairs):
    return None
  with np.errstate(divide='ignore', invalid='ignore'):  # A resample without a value of some term is left out.
    percent = np.mean([_percent(one, pair) for one, pair in zip(terms, pairs, strict=True) if pair], axis=0)
  return _ends(
    by_seed, resampled=(percent, np.zeros_like(percent)), num_clusters=max(one.num_clusters for one in terms)
  )


def _ends(by_seed: np.ndarray, **resamples: Any) -> list[float] | None:
  found = interval(by_seed, np.zeros_like(by_seed), **resamples)
  return [found.low, found.high] if found else None


def _percent(one: Scores, pair: Pair) -> np.ndarray:
  """A term of each seed, `[..., S]`; their mean is the term of the mean values."""
  arm, reference = pair
  sign = -1 if higher_is_better(one.metric) else 1
  return 100 * sign * (arm - reference) / reference.mean(axis=-1, keepdims=True)


def _left_out(one: Scores, reason: str) -> dict[str, str]:
  return {'task': _name(one), 'metric': one.metric, 'reason': reason}
