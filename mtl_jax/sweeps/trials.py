"""Trials of a sweep: searches a space for one program, on validation, and picks the best by a rule."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import with_values
from mtl_jax.errors import ConfigError, DivergedError
from mtl_jax.evaluation import evaluate
from mtl_jax.objectives import loss_terms, options
from mtl_jax.platform import processes
from mtl_jax.studies import arms, space
from mtl_jax.studies.arms import Replica
from mtl_jax.studies.bench import Bench
from mtl_jax.studies.results import Result
from mtl_jax.studies.space import Space, Values, of_fields
from mtl_jax.sweeps import front, samplers
from mtl_jax.tasks import Task, find_metric

JOINT = 'joint'  # The program of all tasks.
OBJECTIVE = 'objective.name'
WHERE = 'config.sweep.space'


@dataclasses.dataclass(frozen=True)
class Trial:
  """A trial, and its outcome.

  Attributes:
    values: by field.
    score: the mean over its seeds of the sweep's metric on validation, greater is better; None where one of them
      diverged or was given up.
    goals: of the same of each goal, None with the score.
    scores: of its first seed, at each evaluation.
    seconds: of training, of all seeds.
    diverged_at: the first step of any seed whose loss was not finite, or 0.
    pruned_at: the first step that any seed was given up at, or 0.
  """

  values: Values
  score: float | None
  goals: tuple[float, ...] | None
  scores: tuple[float, ...]
  seconds: float
  diverged_at: int
  pruned_at: int


def space_of(config: ConfigDict) -> Space:
  """The space of the joint model."""
  asked = config.sweep
  found = of_fields(
    asked.space.to_dict(), where=WHERE, weights_of=tuple(asked.weights_of), weight_steps=asked.weight_steps
  )
  if not found.axes and not found.weights_of:
    raise ConfigError(f'{WHERE} is empty; name a field, as --{WHERE}.optimizer.learning_rate="log(3e-4,1e-2)"')
  if len(found.weights_of) == 1:
    raise ConfigError('config.sweep.weights_of must name at least two tasks or groups of tasks')
  for axis in found.axes:
    if axis.field.removeprefix(space.WEIGHTS) in found.weights_of:
      raise ConfigError(f'{WHERE}.{axis.field}: config.sweep.weights_of searches this weight already; leave one out')
  return found


def spaces_of(config: ConfigDict, programs: Mapping[str, ConfigDict], tasks: Sequence[Task]) -> dict[str, Space]:
  """The part of the space that each program is searched in; only the joint model has weights to choose.

  Args:
    config: the sweep's.
    programs: by name: JOINT, a task's (its single-task model), or a method's.
    tasks: of the joint model.

  Raises:
    ConfigError: for what matters to none of them.
  """
  found, names = space_of(config), {task.name for task in tasks}
  objectives = next((axis.choices for axis in found.axes if axis.field == OBJECTIVE), (config.objective.name,))
  of_joint = [with_values(config, {OBJECTIVE: one}) for one in objectives]

  def matters(field: str, name: str) -> bool:
    if field.startswith((OBJECTIVE, space.WEIGHTS)) and name != JOINT:
      return False
    if field.startswith('objective.matching.'):  # Between tasks; where it is searched the configuration may have 0.
      return name not in names
    return any(space.matters(field, one) for one in (of_joint if name == JOINT else [programs[name]]))

  with found.blamed():
    own = {name: tuple(axis for axis in found.axes if matters(axis.field, name)) for name in programs}
    if not all(matters(space.WEIGHTS + one, JOINT) for one in found.weights_of):
      raise ConfigError(f'config.sweep.weights_of: {objectives[0]} has no weights; set config.objective.name=fixed')
  weights_of = {JOINT: found.weights_of}
  spaces = {
    name: dataclasses.replace(found, axes=axes, weights_of=weights_of.get(name, ())) for name, axes in own.items()
  }
  space.check(found, list(spaces.values()), loss_terms.names(tasks, config.objective.grain))
  return spaces


def check_metric(metric: str, plain: Sequence[str], known: Mapping[str, Sequence[str]], *, field: str) -> None:
  """ConfigError unless a metric is a plain name, or `task/metric` of a task's known ones."""
  task, slash, kind = metric.rpartition('/')
  if slash:
    configs.choose(kind, known[configs.choose(task, tuple(known), field=field)], field=f'{field}: {task}')
  elif metric not in plain:
    first, those = next(iter(known.items()))
    raise ConfigError(
      f'{field}: no choice {metric!r}; choose from {", ".join(plain)}, or TASK/METRIC, such as {first}/{those[-1]}'
    )


@dataclasses.dataclass(frozen=True)
class Search:
  """Searches the spaces of a sweep's programs, all of whose trials the bench trains."""

  config: ConfigDict
  tasks: Sequence[Task]
  bench: Bench
  spaces: Mapping[str, Space]

  def check(self) -> None:
    """Raises UserError for values and metrics that cannot be, before the first step."""
    for name, searched in self.spaces.items():
      self.bench.check(name, searched, map(self._linked, searched.covering()))
    run = next(iter(self.bench.built.values())).run  # The joint model's.
    assert run.val is not None  # `program.build` has looked.
    known = {}
    for task, found in evaluate.baseline_metrics(run.label_stats, run.val, self.tasks).items():
      known[task] = ['loss', *(kind for kind, one in found.items() if type(one) in (int, float) and find_metric(kind))]
    known['*'] = list(dict.fromkeys(itertools.chain(*known.values())))
    check_metric(self.config.sweep.metric, ('loss',), known, field='config.sweep.metric')
    for goal in self.config.sweep.goals:
      check_metric(goal, ('score', 'speed'), known, field='config.sweep.goals')

  def search(self, name: str) -> list[Trial]:
    """Every trial of a program; of a sampler that learns, and with a pruner, batch by batch."""
    searched = self.spaces[name]
    asked, of_methods = self.config.sweep, self.config.sweep.method_trials or self.config.sweep.trials
    num = asked.trials if name == JOINT else of_methods
    pruner = samplers.Pruner(asked.pruner) if asked.pruner != 'none' else None
    learns = pruner is not None or asked.sampler in ('tpe', 'nsga2')
    fixed: list[Values] = []
    sampler = None
    if not searched.sizes:
      fixed, num = [{}], 1
    elif asked.sampler == 'grid':
      fixed = searched.grid()
      num = len(fixed)
    else:
      more = {'population': asked.batch, 'num_goals': len(self.goals(name)) if asked.sampler == 'nsga2' else 1}
      sampler = samplers.make(asked.sampler, searched.sizes, seed=self.config.train.seed, **more)
    seeds = arms.tuning_seeds(self.config, asked.num_seeds)
    trials: list[Trial] = []
    while len(trials) < num:
      size = min(asked.batch if learns else num, num - len(trials))
      points = [searched.at(point) for point in sampler.ask(size)] if sampler else fixed[len(trials) :][:size]
      values = [self._linked(one) for one in points]
      wanted = {name: [Replica.of(seed, one) for one in values for seed in seeds]}
      title = 'searching' if name == JOINT else f'searching for {name}'
      give_up = (lambda _, result, pruner=pruner: pruner.should_prune(self.scores(name, result))) if pruner else None
      self.bench.train(wanted, test=False, title=title, give_up=give_up, score_of=lambda one: self.reached(name, one))
      found = [self._trial(name, one, [Replica.of(seed, one) for seed in seeds]) for one in values]
      trials += found
      if sampler:
        of_one = [None if one.score is None else (one.score,) for one in found]
        sampler.tell([one.goals for one in found] if asked.sampler == 'nsga2' else of_one)
      if pruner:
        pruner.tell([one.scores for one in found])
    return trials

  def _trial(self, name: str, values: Values, replicas: Sequence[Replica]) -> Trial:
    """A trial from what its replicas left, as process 0 sees it."""
    found = [self.bench.results.get(name, one) for one in replicas] if processes.index() == 0 else []
    sound = [one for one in found if one.score is not None and not one.diverged_at and not one.pruned_at]
    whole = bool(found) and len(sound) == len(found)
    facts = {
      'score': float(np.mean([self.reached(name, one) or 0.0 for one in sound])) if whole else None,
      'goals': np.mean([self._goals(name, one) for one in found], axis=0).tolist() if whole else None,
      'scores': self.scores(name, found[0]) if found else [],
      'seconds': sum(one.seconds for one in found),
      'diverged_at': min((one.diverged_at for one in found if one.diverged_at), default=0),
      'pruned_at': min((one.pruned_at for one in found if one.pruned_at), default=0),
    }
    facts = processes.from_first('trial', facts)
    for key in ('goals', 'scores'):
      facts[key] = facts[key] and tuple(facts[key])
    return Trial(values, **facts)

  def goals(self, name: str) -> list[str]:
    """The goals of a program: of a single-task model its main metric, else those of the sweep."""
    alone = [task for task in self.tasks if task.name == name]
    main = [f'{task.name}/{task.main_metric}' for task in alone or self.tasks]
    return main if alone else list(self.config.sweep.goals) or main

  def reached(self, name: str, result: Result) -> float | None:
    """The sweep's metric of a result's best step, greater is better; of a single-task model its main metric."""
    if result.score is None:
      return None
    return self._at(name, result, result.history['step'].index(float(result.best_step)))

  def scores(self, name: str, result: Result) -> tuple[float, ...]:
    """The same at every evaluation."""
    count = min((len(values) for key, values in result.history.items() if key.startswith('val/')), default=0)
    return tuple(self._at(name, result, place) for place in range(count))

  def _at(self, name: str, result: Result, place: int, metric: str = '') -> float:
    alone = any(task.name == name for task in self.tasks)
    metric = metric or (self.goals(name)[0] if alone else self.config.sweep.metric)
    values: dict[str, dict[str, Any]] = {}
    for key, logged in result.history.items():
      if key.startswith('val/') and key != 'val/loss':
        task, _, kind = key.removeprefix('val/').rpartition('/')
        values.setdefault(task, {})[kind] = logged[place]
    weights = options.task_weights(self.config.objective, list(values))
    total = sum(weight * of['loss'] for weight, of in zip(weights, values.values(), strict=True) if of.get('loss'))
    return float(evaluate.score(metric, total_loss=total, metrics=values))

  def _goals(self, name: str, result: Result) -> list[float]:
    """The goals of a result's best step, all of which are to be great."""
    place, found = result.history['step'].index(float(result.best_step)), []
    for goal in self.goals(name):
      if goal == 'speed':
        found.append(result.images / max(result.seconds, 1e-9))
      else:
        found.append(self._at(name, result, place, '' if goal == 'score' else goal))
    return found

  def _linked(self, values: Values) -> Values:
    """The values with the steps that see as many images, where trials have images alike."""
    train, batch_size = self.config.train, values.get('train.batch_size')
    if self.config.sweep.match == 'steps' or not batch_size:
      return values
    share = train.batch_size / batch_size
    every, warmup = self.config.eval.every_steps, self.config.optimizer.warmup_steps
    return values | {
      'train.steps': max(1, round(train.steps * share)),
      'eval.every_steps': every and max(1, round(every * share)),
      'optimizer.warmup_steps': round(warmup * share),
    }


def chosen(trials: Sequence[Trial], rule: str, gains: Mapping[str, Mapping[str, float]], name: str) -> Trial:
  """The best trial by a rule; DivergedError where none came to its end."""
  whole = [one for one in trials if one.score is not None]
  if not whole:
    raise DivergedError(f'every trial of {name} diverged; lower the learning rates of {WHERE}')
  points = np.array([one.goals for one in whole])
  if rule == 'knee':
    return whole[front.knee(points)]
  if rule == 'gains':
    reference = np.array([one['value'] for one in gains.values()])
    weights = np.array([one['weight'] for one in gains.values()])
    return whole[int(((points - reference) / np.abs(reference) @ weights).argmax())]
  return max(whole, key=lambda one: -math.inf if one.score is None else one.score)
