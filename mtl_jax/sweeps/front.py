"""The Pareto front of joint training: gains over single-task models, hypervolume, and methods beyond it.

A point is an arm's gain in each goal, in per cent of the single-task model's value, greater is better: the single-task
models lie at 0. Every figure is a function of the seeds' points, and has a jackknife interval over seeds (Tukey 1958).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize

from mtl_jax.errors import DivergedError
from mtl_jax.platform.json_file import finite
from mtl_jax.studies import significance
from mtl_jax.studies.scores import Scores
from mtl_jax.tasks import higher_is_better

ABOVE, ON, BELOW = 'above', 'on', 'below'
Gains = Float[np.ndarray, 'p g']  # Of points, in goals.


def goals_of(tasks: Sequence[str]) -> dict[str, list[str]]:
  """The tasks of each goal: tasks of a group, as `attributes/Smiling`, are one goal together."""
  goals: dict[str, list[str]] = {}
  for task in tasks:
    goals.setdefault(task.partition('/')[0], []).append(task)
  return goals


def gain(values: np.ndarray, reference: np.ndarray, metric: str) -> np.ndarray:
  """Gains of values over those of single-task models, in per cent of the mean of these."""
  sign = 1 if higher_is_better(metric) else -1
  return 100 * sign * (np.asarray(values) - reference) / np.mean(reference)


def gains_by_seed(scores: Sequence[Scores], arms: Sequence[str], reference: str) -> Float[np.ndarray, 'a g s']:
  """Each arm's gain in each goal with each seed: the mean over the goal's tasks, of their main metrics.

  A seed in which any arm has no value is left out.
  """
  main = {one.task: one for one in scores if one.main}
  whole = np.logical_and.reduce([one.complete(arm, reference) for one in main.values() for arm in arms])
  if not whole.any():
    raise DivergedError('no seed of the confirmation came through with every arm; lower the learning rate')
  by_task = {
    task: np.stack([gain(one.values[arm][whole], one.values[reference][whole], one.metric) for arm in arms])
    for task, one in main.items()
  }
  return np.stack([np.mean([by_task[task] for task in tasks], axis=0) for tasks in goals_of(list(main)).values()], 1)


def nondominated(points: Gains) -> Bool[np.ndarray, ' p']:
  """True for points that no other is as good as in all goals and better in one."""
  no_worse = (points[:, None] >= points[None]).all(-1)
  better = (points[:, None] > points[None]).any(-1)
  return np.logical_not((no_worse & better).any(0))


def spread(points: Gains, num: int) -> list[int]:
  """At most so many points far from each other, the best of each goal first."""
  span = np.ptp(points, axis=0)
  scaled = (points - points.min(0)) / np.where(span > 0, span, 1)
  chosen = list(dict.fromkeys(map(int, points.argmax(0))))[:num]
  while len(chosen) < min(num, len(points)):
    away = np.linalg.norm(scaled[:, None] - scaled[chosen], axis=-1).min(1)
    if away.max() == 0:
      break
    chosen.append(int(away.argmax()))
  return sorted(chosen, key=lambda i: tuple(points[i]))


def knee(points: Gains) -> int:
  """The point of the front nearest to what is best in each goal, each goal's range on the front taken as 1."""
  on = np.flatnonzero(nondominated(points))
  own = points[on]
  span = np.ptp(own, axis=0)
  away = (own.max(0) - own) / np.where(span > 0, span, 1)
  return int(on[np.linalg.norm(away, axis=-1).argmin()])


def hypervolume(points: Gains, reference: Float[np.ndarray, ' g']) -> float:
  """The volume of what some point is at least as good as, above a reference (Zitzler and Thiele 1999)."""
  points = points[(points > reference).all(-1)]
  if not len(points):
    return 0.0
  if points.shape[1] == 1:
    return float(points.max() - reference[0])
  points = points[np.argsort(-points[:, -1])]
  heights = points[:, -1] - np.append(points[1:, -1], reference[-1])
  slabs = [hypervolume(points[: i + 1, :-1], reference[:-1]) for i in range(len(points))]
  return float(heights @ np.array(slabs))


def gap(point: Float[np.ndarray, ' g'], front: Gains, *, mixed: bool) -> float:
  """The margin by which the front is better than a point in all goals at once; negative where the point is beyond it.

  The additive epsilon indicator of Zitzler et al. (2003), of the front's points, or `mixed` of the straight lines
  (planes) between them too.
  """
  if not mixed:
    return float((front - point).min(1).max())
  num, goals = front.shape
  # Maximises t such that shares of the front's points, which sum to 1, are better by t in each goal.
  found = optimize.linprog(
    c=np.append(np.zeros(num), -1.0),
    A_ub=np.column_stack([-(front - point).T, np.ones(goals)]),
    b_ub=np.zeros(goals),
    A_eq=np.append(np.ones(num), 0.0)[None],
    b_eq=[1.0],
    bounds=[(0, None)] * num + [(None, None)],
  )
  return float(found.x[-1])


def jackknife(figure: Callable[[np.ndarray], float], by_seed: np.ndarray) -> np.ndarray:
  """Pseudo-values `[s]` of a figure of means over seeds, the last axis, whose mean and spread are the figure's."""
  num = by_seed.shape[-1]
  whole = figure(by_seed.mean(-1))
  if num < 2:
    return np.full(num, whole)
  without = [figure(np.delete(by_seed, seed, axis=-1).mean(-1)) for seed in range(num)]
  return num * whole - (num - 1) * np.array(without)


def estimate(figure: Callable[[np.ndarray], float], by_seed: np.ndarray) -> dict[str, Any]:
  """A figure of the means over seeds, with a 95 % interval from its jackknife; None where there is one seed."""
  values = jackknife(figure, by_seed)
  found = significance.interval(values, np.zeros_like(values))
  return {'mean': figure(by_seed.mean(-1)), 'ci95': [found.low, found.high] if found else None}


def positions(methods: Mapping[str, np.ndarray], front: Float[np.ndarray, 'p g s']) -> dict[str, dict[str, Any]]:
  """The place of each method, whose gains are `[g, s]`, with regard to the front of fixed weights.

  A method is above where it is beyond the front even with straight lines between its points, and below where one point
  of the front is better in every goal; between the two it is on it. Either is tested over seeds, p-values are adjusted
  over methods (Holm), and without evidence at 5 % it counts as on the front.
  """
  found, p_values = {}, []
  for name, own in methods.items():
    both = np.concatenate([front, own[None]])
    beyond, behind = (lambda means, mixed=mixed: gap(means[-1], means[:-1], mixed=mixed) for mixed in (True, False))
    above, below = (estimate(figure, both) for figure in (beyond, behind))
    entry, figure = (above, beyond) if above['mean'] < 0 else (below, behind)
    between = above['mean'] >= 0 >= below['mean']
    values = jackknife(figure, both)
    p_values.append(1.0 if between else float(significance.paired_p_value(values, np.zeros_like(values))))
    found[name] = {'gap': entry, 'p_value': p_values[-1]}
  for entry, adjusted in zip(found.values(), significance.holm(np.array(p_values)), strict=True):
    shown = adjusted < significance.ALPHA
    entry |= finite({'p_value': entry['p_value'], 'p_adjusted': adjusted})
    entry['position'] = (ABOVE if entry['gap']['mean'] < 0 else BELOW) if shown else ON
  return found


def summarize(scores: Sequence[Scores], kinds: Mapping[str, str], *, reference: str) -> dict[str, Any]:
  """The front as JSON: goals, every arm's gains with intervals, hypervolumes, and the places of methods.

  Args:
    scores: of all arms.
    kinds: by arm `weights` (a point of the front of fixed weights), `method`, or another kind, which is only shown.
    reference: the arm of single-task models.
  """
  arms = list(kinds)
  gains = gains_by_seed(scores, arms, reference)
  metrics = {one.task: one.metric for one in scores if one.main}
  goals = goals_of(list(metrics))
  of_kind = {kind: gains[[i for i, arm in enumerate(arms) if kinds[arm] == kind]] for kind in ('weights', 'method')}
  zero, none = np.zeros(len(goals)), np.full(len(goals), -100.0)
  measured = {'fixed weights': of_kind['weights'], 'methods': of_kind['method']}
  return {
    'goals': [{'name': name, 'tasks': own, 'metric': metrics[own[0]]} for name, own in goals.items()],
    'num_seeds': int(gains.shape[-1]),
    'points': [
      {
        'arm': arm,
        'kind': kinds[arm],
        'gains': {name: estimate(float, gains[i, g]) for g, name in enumerate(goals)},
      }
      for i, arm in enumerate(arms)
    ],
    'hypervolume': {
      name: {
        'beyond_single': estimate(lambda means: hypervolume(means, zero) / 100 ** len(goals), own),
        'of_single': estimate(lambda means: hypervolume(means, none) / 100 ** len(goals), own),
      }
      for name, own in measured.items()
      if len(own)
    },
    'positions': positions({arm: gains[i] for i, arm in enumerate(arms) if kinds[arm] == 'method'}, of_kind['weights'])
    if len(of_kind['weights'])
    else {},
  }
