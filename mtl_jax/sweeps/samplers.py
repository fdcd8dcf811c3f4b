"""Samplers that propose points of the unit cube in batches, and pruners that stop trials early.

Random points are NumPy's, quasi-random ones SciPy's, and TPE, NSGA-II and both pruners Optuna's. All follow from a seed
and from the results they were given, so that an interrupted search proposes the same again.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc

from mtl_jax.errors import ConfigError

Points = Float[np.ndarray, 'n d']
Goals = Sequence[Sequence[float] | None]  # Of each point, greater is better; None of a trial that came to no end.


class Sampler(Protocol):
  """Proposes points of the unit cube."""

  def ask(self, num: int) -> Points:
    """Proposes `num` new points."""
    ...

  def tell(self, goals: Goals) -> None:
    """Takes the scores of the points that it was last asked for."""


class Fixed:
  """Points that follow from the seed alone: random, or spread evenly (Sobol 1967, Halton 1960; scrambled)."""

  def __init__(self, kind: str, num_axes: int, seed: int):
    random = np.random.default_rng(seed)
    if kind == 'random':
      self.ask = lambda num: random.random((num, num_axes))
    else:
      make = {'sobol': qmc.Sobol, 'halton': qmc.Halton}[kind]
      engine = make(num_axes, scramble=True, rng=random)
      self.ask = lambda num: _drawn(engine, num)

  def tell(self, goals: Goals) -> None:
    """Ignores the scores."""


def _drawn(engine: qmc.QMCEngine, num: int) -> Points:
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'The balance properties', UserWarning)  # Of no power of 2.
    return engine.random(num)


class Optuna:
  """TPE (Bergstra et al. 2011) for one goal, or NSGA-II (Deb et al. 2002) for several.

  Args:
    sizes: of each coordinate how many values it has; 0 where it is continuous.
    population: trials that are asked for at a time.
    num_goals: which all are to be great.
  """

  def __init__(self, kind: str, sizes: Sequence[int], *, seed: int, population: int, num_goals: int):
    optuna = imported(f'config.sweep.sampler={kind}')
    self._sizes, self._asked = sizes, []
    if kind == 'tpe':
      sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    else:
      sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=max(population, 2))
    self._study = optuna.create_study(directions=['maximize'] * num_goals, sampler=sampler)
    self._failed = optuna.trial.TrialState.FAIL

  def ask(self, num: int) -> Points:
    self._asked = [self._study.ask() for _ in range(num)]
    return np.array([[self._share(trial, i) for i in range(len(self._sizes))] for trial in self._asked])

  def _share(self, trial: Any, axis: int) -> float:
    name, size = f'axis{axis}', self._sizes[axis]
    return (trial.suggest_int(name, 0, size - 1) + 0.5) / size if size else trial.suggest_float(name, 0.0, 1.0)

  def tell(self, goals: Goals) -> None:
    for trial, reached in zip(self._asked, goals, strict=True):
      if reached is None:
        self._study.tell(trial, state=self._failed)
      else:
        self._study.tell(trial, list(reached))


def make(kind: str, sizes: Sequence[int], *, seed: int, population: int, num_goals: int) -> Sampler:
  """The sampler of `config.sweep.sampler`, of a space whose coordinates have these sizes."""
  if kind in ('tpe', 'nsga2'):
    return Optuna(kind, sizes, seed=seed, population=population, num_goals=num_goals)
  return Fixed(kind, len(sizes), seed)


class Pruner:
  """Stops trials that do worse at an evaluation than trials of earlier batches did.

  `median`: than half of them. `halving`: at the evaluations 1, 2, 4, ... than the better half (Li et al. 2018's
  asynchronous successive halving). Trials of one batch do not see each other, so neither their order nor the number of
  processes matters.
  """

  def __init__(self, kind: str):
    self._optuna = imported(f'config.sweep.pruner={kind}')
    pruners = self._optuna.pruners
    self._pruner = (
      pruners.MedianPruner(n_startup_trials=1)
      if kind == 'median'
      else pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    )
    self._ended: list[Any] = []

  def should_prune(self, scores: Sequence[float]) -> bool:
    """True for a trial with these scores at its evaluations so far."""
    return self._replayed(scores)[1]

  def tell(self, trials: Sequence[Sequence[float]]) -> None:
    """The scores at every evaluation of the trials of a batch that has ended."""
    self._ended += [self._replayed(scores)[0] for scores in trials if scores]

  def _replayed(self, scores: Sequence[float]) -> tuple[Any, bool]:
    """A trial that has reported these scores, beside those that have ended, and whether it is to go on."""
    study = self._optuna.create_study(direction='maximize', pruner=self._pruner)
    study.add_trials(self._ended)
    trial, pruned = study.ask(), False
    for step, score in enumerate(scores, 1):
      trial.report(score, step)
      pruned = trial.should_prune()
    return study.tell(trial, scores[-1]), pruned


def imported(field: str) -> Any:
  """Optuna, quiet; ConfigError, which names what asks for it, where it is not installed."""
  try:
    import optuna
  except ImportError as error:
    raise ConfigError(f"{field} needs Optuna; pip install 'mtl_jax[sweep]'") from error
  optuna.logging.set_verbosity(logging.WARNING)
  return optuna
