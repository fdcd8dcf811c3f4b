"""Runs a sweep: searches fields and loss weights, confirms the best on other seeds, and computes the tasks' front.

Trials, single-task models and methods are searched alike, on validation and on seeds of their own. What was chosen is
trained again on seeds that the search did not see, and scored on the test split, where it is compared as in a study.
"""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import parts, with_values
from mtl_jax.errors import ConfigError, DivergedError
from mtl_jax.objectives import OBJECTIVES, loss_terms, options
from mtl_jax.platform import atomic_write, processes
from mtl_jax.run import workdir
from mtl_jax.studies import space, summary
from mtl_jax.studies.arms import Replica
from mtl_jax.studies.bench import Bench, Candidate
from mtl_jax.studies.space import Values
from mtl_jax.sweeps import best_file, front, presets
from mtl_jax.sweeps.trials import JOINT, Search, Trial, chosen, spaces_of
from mtl_jax.tasks import Task, higher_is_better
from mtl_jax.training.interrupt import Interruption

log = logging.getLogger('mtl_jax')

BASE, BEST, SINGLE = 'as configured', 'best', 'single'


def run(config: ConfigDict, directory: Path, *, allow_config_change: bool = False) -> dict[str, Any]:
  """Runs the sweep, or what is left of it, and writes `sweep.json`, `sweep.csv` and `best.py`.

  Returns:
    The content of `sweep.json`; of several processes in the first alone.

  Raises:
    UserError: for bad input, a search none of whose trials came through, or a request to stop.
  """
  config, store, facts = workdir.opened(presets.applied(configs.load(config)))
  tasks = facts.selected(config)
  check_names(config, tasks)
  check_rules(config, tasks)
  programs = programs_of(config, tasks)
  spaces = spaces_of(config, programs, tasks)
  held = workdir.resumed(directory, config, facts, holds='trials', allow_config_change=allow_config_change)
  with held, Interruption() as interruption:
    sweep = Sweep(config, tasks, Bench(programs, store, directory, interruption, kept_in='trials'), spaces)
    sweep.check()
    result = sweep.result()
    if processes.index():
      return {}
    workdir.write_json(directory / 'sweep.json', result)
    workdir.write_csv(directory / 'sweep.csv', [_row(trial) for trial in result['trials']])
    best = result['best']
    atomic_write.write(directory / 'best.py', best_file.source(config, best['values'], said=best['rule']))
  return result


def programs_of(config: ConfigDict, tasks: Sequence[Task]) -> dict[str, ConfigDict]:
  """The joint model, and where a front or gains are asked for a model of each task and of each method."""
  found = {JOINT: config}
  if draws_front(config) or config.sweep.best == 'gains':
    found |= {task.name: with_values(config, {'tasks': task.name}) for task in tasks}
    found |= {name: with_values(config, {'objective.name': name}) for name in config.sweep.methods}
  return found


def check_names(config: ConfigDict, tasks: Sequence[Task]) -> None:
  """Raises ConfigError for names in the sweep's fields that there are not, or that stand twice."""
  asked, names = config.sweep, [task.name for task in tasks]
  losses = loss_terms.names(tasks, config.objective.grain)
  for field, known in (('weights_of', losses), ('gains', names), ('methods', ()), ('goals', ())):
    for name, count in collections.Counter(asked[field]).items():
      if known:
        configs.choose(name, space.weighable(known), field=f'config.sweep.{field}')
      if field != 'gains' and count > 1:
        raise ConfigError(f'config.sweep.{field}: {name} stands twice; name it once')
  for method in asked.methods:
    parts.find(method, OBJECTIVES, field='config.sweep.methods')
    if method == config.objective.name:
      raise ConfigError(f'config.sweep.methods: {method} is the objective of the joint model already; leave it out')
    if method in names:
      raise ConfigError(f'config.sweep.methods: {method} is the name of a task, too; rename the task')


def check_rules(config: ConfigDict, tasks: Sequence[Task]) -> None:
  """Raises ConfigError for fields of the sweep that contradict each other, or would have no effect."""
  asked, names = config.sweep, [task.name for task in tasks]
  by_gains, drawn = asked.best == 'gains', draws_front(config)
  no_gain = by_gains and not any(gain_weight(config, name) for name in names)
  others = asked.goals and list(asked.goals) != [f'{task.name}/{task.main_metric}' for task in tasks]
  no_weights = 'weights' not in options.known_options(config.objective.name)
  never = asked.pruner != 'none' and not 0 < config.eval.every_steps < config.train.steps
  for wrong, said in (
    (config.eval.patience, 'eval.patience: a sweep trains every trial to its end; set it to 0'),
    (no_gain, 'sweep.gains is 0 for all tasks, so that nothing would be best; weigh one above 0'),
    (asked.gains and not by_gains, 'sweep.gains says what is best by gains alone; set config.sweep.best=gains'),
    (others and by_gains, 'sweep.goals: gains are of the main metric of each task; leave the goals out'),
    (asked.methods and not asked.front_points, 'sweep.methods stand beside the front, but sweep.front_points is 0'),
    (never, 'sweep.pruner needs evaluations before the end of a trial; set eval.every_steps below train.steps'),
    (
      drawn and no_weights,
      f'objective.name: the front is of fixed weights, and {config.objective.name} has none; set fixed, and name it in '
      'sweep.methods',
    ),
    (
      (drawn or by_gains) and len(tasks) < 2,
      f'tasks: a front and gains are between tasks, and {names[0]} is the only one; name more',
    ),
  ):
    if wrong:
      raise ConfigError(f'config.{said}')


def gain_weight(config: ConfigDict, task: str) -> float:
  """The weight of a task's gain: its own, or its group's, or 1."""
  gains = config.sweep.gains
  return gains.get(task, gains.get(task.partition('/')[0], 1.0))


def draws_front(config: ConfigDict) -> bool:
  """True where the front of fixed weights is drawn."""
  return bool(config.sweep.front_points and (config.sweep.weights_of or config.sweep.methods))


class Sweep(Search):
  """A sweep under way: searches all programs, confirms what is best, and compares it."""

  def result(self) -> dict[str, Any]:
    """Searches, confirms and compares; the JSON of `sweep.json`, in process 0."""
    config, bench = self.config, self.bench
    trials = {name: self.search(name) for name in self.spaces}
    singles = [task.name for task in self.tasks if task.name in trials]
    single = {name: chosen(trials[name], 'metric', {}, name) for name in singles}
    gains = {
      task: {'value': (trial.goals or (0.0,))[0], 'weight': gain_weight(config, task)} for task, trial in single.items()
    }
    best = chosen(trials[JOINT], config.sweep.best, gains, JOINT)
    seeds = [config.train.seed + i for i in range(config.sweep.confirm_seeds)]
    sides, kinds = {}, {}

    def enter(name: str, kind: str, programs: Mapping[str, Values]) -> None:
      sides[name], kinds[name] = Candidate(programs, seeds), kind

    if singles:
      enter(SINGLE, 'single', {name: trial.values for name, trial in single.items()})
    enter(BASE, 'base', {JOINT: self._base(best.values)})
    enter(BEST, 'best', {JOINT: best.values})
    if draws_front(config):
      for number, trial in enumerate(self._on_front(trials[JOINT]), 1):
        enter(f'fixed {number}', 'weights', {JOINT: trial.values})
      for name in config.sweep.methods:
        enter(name, 'method', {name: chosen(trials[name], config.sweep.best, gains, name).values})
    wanted: dict[str, list[Replica]] = {}
    for side in sides.values():
      for name in side.programs:
        wanted.setdefault(name, []).extend(side.replicas(name))
    bench.train(wanted, test=True, title='confirming on other seeds')
    if processes.index():
      return {}
    sides, lost = self._sound(sides)
    kinds = {name: kinds[name] for name in sides}
    scores, compared = bench.compare(self.tasks, sides)
    made_of = {name: compared[name] for name in ('data', 'device', 'versions', 'date')}
    return {
      'trials': [self._row(name, number, one) for name, those in trials.items() for number, one in enumerate(those)],
      'best': {
        'rule': best_file.RULES[config.sweep.best].format(metric=config.sweep.metric),
        'values': best.values,
        'score_of_the_search': best.score,
        'edges': self.spaces[JOINT].ends(best.values),
        'confirmed': summary.summarize(scores, arms=[BASE, BEST], seeds=seeds),
      },
      'front': self._front(scores, kinds, sides, compared) if draws_front(config) else None,
      'diverged_arms': lost,
      'cost': self._cost(trials, sides),
      **made_of,
    }

  def _sound(self, sides: Mapping[str, Candidate]) -> tuple[dict[str, Candidate], list[str]]:
    """The arms of which some seed did not diverge, and the names of the others, of which there is nothing to show."""

    def ended(name: str, one: Replica) -> bool:
      return not self.bench.results.get(name, one).diverged_at

    lost = [
      arm
      for arm, side in sides.items()
      if not all(any(ended(name, one) for one in side.replicas(name)) for name in side.programs)
    ]
    if needed := [arm for arm in lost if arm in (SINGLE, BASE, BEST)]:
      raise DivergedError(f'{needed[0]} diverged with every seed of the confirmation; lower the learning rate')
    for arm in lost:
      log.warning('warning: %s diverged with every seed of the confirmation, and is left out', arm)
    return {arm: side for arm, side in sides.items() if arm not in lost}, lost

  def _base(self, like: Values) -> Values:
    """The configuration as it is, in the fields that were searched, so that it shares their compiled step."""
    flat = configs.flat(self.config.to_dict())
    weights = self.config.objective.weights
    return {
      field: flat[field] if field in flat else weights.get(field.split('.')[-1].split('/')[0], 1.0)
      for field in like
      if field in flat or field.startswith('objective.weights.')
    }

  def _on_front(self, trials: Sequence[Trial]) -> list[Trial]:
    """Trials of the joint model that no other betters in all goals, at most as many as are drawn."""
    whole = [one for one in trials if one.goals is not None]
    points = np.array([one.goals for one in whole])
    on = np.flatnonzero(front.nondominated(points))
    kept = front.spread(points[on], self.config.sweep.front_points)
    return [whole[on[i]] for i in kept]

  def _front(self, scores: Sequence[Any], kinds: Mapping[str, str], sides: Any, compared: Mapping[str, Any]) -> Any:
    """The front, with what every arm was given and what it scored, in the metrics' own units."""
    shown = {name: kind for name, kind in kinds.items() if kind != 'single'}
    found = front.summarize(scores, shown, reference=SINGLE)
    for point in found['points']:
      programs = sides[point['arm']].programs
      point['values'] = next(iter(programs.values()))
      point['seconds'] = sum(self.bench.seconds(name, sides[point['arm']].replicas(name)) for name in programs)
    return found | {'compared': {key: compared[key] for key in ('arms', 'seeds', 'tasks', 'comparisons', 'dropped')}}

  def _row(self, program: str, number: int, trial: Trial) -> dict[str, Any]:
    names = self.goals(program)
    goals = dict(zip(names, trial.goals or [None] * len(names), strict=True))
    shown = {name: _unsigned(name, value) for name, value in goals.items()}
    own = dataclasses.asdict(trial) | {'goals': shown}
    del own['scores']
    return {'program': program, 'trial': number, **own}

  def _cost(self, trials: Mapping[str, Sequence[Trial]], sides: Mapping[str, Candidate]) -> dict[str, Any]:
    """Trials, seconds and FLOPs of the search, beside those of one run, and the compiled steps of this call."""
    own = self.bench.program(JOINT, Replica.of(0, trials[JOINT][0].values))
    searched = {name: sum(one.seconds for one in those) for name, those in trials.items()}
    confirmed = {
      name: self.bench.seconds(
        name, {one for side in sides.values() if name in side.programs for one in side.replicas(name)}
      )
      for name in trials
    }
    flops = 3 * own.flops_trained()  # A backward pass is two forward passes.
    return {
      'trials': {name: len(those) for name, those in trials.items()},
      'search_seconds': searched,
      'confirm_seconds': confirmed,
      'seconds_a_trial': float(np.mean([one.seconds for one in trials[JOINT]])),
      'flops_a_run': flops,
      'flops_of_the_search': flops * len(trials[JOINT]) * self.config.sweep.num_seeds,
      'compiled_steps': sum(self.bench.compiled),
    }


def _unsigned(goal: str, value: float | None) -> float | None:
  """A goal in its metric's own direction."""
  metric = goal.rpartition('/')[2]
  return -value if value is not None and '/' in goal and not higher_is_better(metric) else value


def _row(trial: Mapping[str, Any]) -> dict[str, Any]:
  """A row of sweep.csv."""
  rest = {key: trial[key] for key in ('seconds', 'diverged_at', 'pruned_at')}
  found = {'program': trial['program'], 'trial': trial['trial'], 'score': trial['score'], **rest}
  found['values'] = ' '.join(f'{field}={value}' for field, value in trial['values'].items())
  found['goals'] = ' '.join(f'{goal}={value}' for goal, value in trial['goals'].items() if value is not None)
  return {key: '' if value is None else value for key, value in found.items()}
