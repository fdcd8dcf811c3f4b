"""Losses, and the ways to make one objective of several."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.weighting.fixed import fixed

__all__ = ['OBJECTIVES', 'Objective', 'fixed', 'from_config', 'task_weights']


def task_weights(config: ConfigDict, task_names: Sequence[str]) -> list[float]:
  """Each task's weight: its own, or its group's, or 1."""
  weights = config.objective.weights
  return [float(weights.get(name, weights.get(name.split('/')[0], 1.0))) for name in task_names]


# A new objective is a file in weighting/ or balancing/ and a line here: config and task names to an Objective.
OBJECTIVES: dict[str, Callable[[ConfigDict, Sequence[str]], Objective]] = {
  'fixed': lambda config, task_names: fixed(task_weights(config, task_names)),
}


def from_config(config: ConfigDict, task_names: Sequence[str]) -> Objective:
  """The objective that `config.objective.name` asks for."""
  name = choose(config.objective.name, tuple(OBJECTIVES), field='config.objective.name')
  return OBJECTIVES[name](config, task_names)
