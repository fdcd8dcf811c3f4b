"""What a study compares: arms, each made of programs that together learn every task once."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Arm:
  """One side of the comparison.

  Attributes:
    programs: by name the configuration of each program.
    first_seed: added to the study's seeds, so that an arm can be compared with itself.
  """

  programs: Mapping[str, ConfigDict]
  first_seed: int = 0


def with_fields(config: ConfigDict, **fields: object) -> ConfigDict:
  """A copy of a configuration with some fields, `a.b` written `a__b`, set."""
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    copy.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
  return copy.lock()


def single(config: ConfigDict, tasks: Sequence[Task]) -> Arm:
  """A model of its own for each task."""
  return Arm({task.name: with_fields(config, tasks=task.name) for task in tasks})


def joint(config: ConfigDict, tasks: Sequence[Task]) -> Arm:
  """One model of all tasks."""
  del tasks
  return Arm({'joint': config})


def joint_again(config: ConfigDict, tasks: Sequence[Task]) -> Arm:
  """The joint model with other seeds: a null check, in which any verdict but `no evidence` is a false alarm."""
  del tasks
  return Arm({'joint': config}, first_seed=NULL_SEED)


NULL_SEED = 500_000  # Away from the seeds of the other arms, and from those that learning rates are chosen on.
TUNING_SEED = 900_000  # Learning rates are chosen on seeds that are never tested.

# A new arm is a function here and a line: the study's config and tasks to an Arm.
ARMS: dict[str, Callable[[ConfigDict, Sequence[Task]], Arm]] = {
  'single': single,
  'joint': joint,
  'joint_again': joint_again,
}


def from_config(config: ConfigDict, tasks: Sequence[Task]) -> dict[str, Arm]:
  """The arms that `config.study.arms` names, in that order."""
  return {name: ARMS[choose(name, tuple(ARMS), field='config.study.arms')](config, tasks) for name in config.study.arms}
