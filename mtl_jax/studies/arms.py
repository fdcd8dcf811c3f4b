"""Arms of a study, each made of programs that together learn every task once, and the replicas that are trained."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import apply_override, choose, validate, with_fields
from mtl_jax.errors import ConfigError
from mtl_jax.studies import space
from mtl_jax.studies.space import Space, Values
from mtl_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Replica:
  """One run of a program: its seed, and the fields that set it apart from others, with their values."""

  seed: int
  values: tuple[tuple[str, Any], ...] = ()

  @classmethod
  def of(cls, seed: int, values: Mapping[str, Any]) -> 'Replica':
    return cls(seed, tuple(sorted(values.items())))

  def config(self, program: ConfigDict) -> ConfigDict:
    """Its own configuration, but for the seed; ConfigError for values that do not fit together."""
    return configs.load(program, dict(self.values))


@dataclasses.dataclass(frozen=True)
class Arm:
  """An arm of a study: one side of a comparison.

  Attributes:
    programs: by name the configuration of each program.
    first_seed: added to the study's seeds, so that an arm can be compared with itself.
  """

  programs: Mapping[str, ConfigDict]
  first_seed: int = 0


def single(config: ConfigDict, tasks: Sequence[Task]) -> Arm:
  """The single-task arm: a model for each task."""
  return Arm({task.name: with_fields(config, tasks=task.name) for task in tasks})


def joint(config: ConfigDict, tasks: Sequence[Task]) -> Arm:
  """The joint arm: one model for all tasks."""
  del tasks
  return Arm({'joint': config})


def joint_again(config: ConfigDict, tasks: Sequence[Task]) -> Arm:
  """The joint model with other seeds: a null check, in which any verdict but `no evidence` is a false alarm."""
  del tasks
  return Arm({'joint': config}, first_seed=NULL_SEED)


RATE = 'optimizer.learning_rate'
NULL_SEED = 500_000  # Away from the seeds of the other arms, and from those that values are chosen on.
TUNING_SEED = 900_000  # Values are chosen on seeds that are never tested. Both are added to train.seed.

# A new arm is a function here and a line: the study's config and tasks to an Arm.
ARMS: dict[str, Callable[[ConfigDict, Sequence[Task]], Arm]] = {
  'single': single,
  'joint': joint,
  'joint_again': joint_again,
}


def variant(config: ConfigDict, name: str, tasks: Sequence[Task]) -> Arm:
  """The joint model with the fields set that `config.study.variants` has under this name.

  Where `tasks=` stands several times, it is a network for each, which together learn every task once.
  """
  where, copy, divided = f'config.study.variants.{name}', with_fields(config), []
  for written in config.study.variants[name].split():
    override = written.removeprefix('--').removeprefix('config.')
    if override.startswith(('study.', 'train.seed=', 'data.dir')):
      raise ConfigError(f'{where}: {override} must be the same for all arms; leave it out')
    if override.startswith('tasks='):
      divided.append(override.removeprefix('tasks=').split(','))
      continue
    try:
      apply_override(copy, override)
      validate(copy)
    except ConfigError as error:
      raise ConfigError(f'{where}: {error}') from error
  if not divided:
    return Arm({name: copy})
  check_divided(divided, [task.name for task in tasks], where=where)
  return Arm({f'{name}_{i}': with_fields(copy, tasks=','.join(group)) for i, group in enumerate(divided, 1)})


def check_divided(divided: Sequence[Sequence[str]], names: Sequence[str], *, where: str) -> None:
  """ConfigError unless the groups have every one of these tasks once."""
  given = collections.Counter(itertools.chain.from_iterable(divided))
  for name in given:
    choose(name, names, field=f'{where}: tasks')
  repeated, left = [name for name in given if given[name] > 1], [name for name in names if name not in given]
  if repeated or left:
    wrong = f'{repeated[0]} stands twice' if repeated else f'no network learns {", ".join(left)}'
    raise ConfigError(f'{where}: {wrong}; name every task once: `tasks=a,b tasks=c` is two networks')


def seeds(config: ConfigDict, arm: Arm) -> list[int]:
  """The seeds that an arm is tested with."""
  first = config.train.seed + arm.first_seed
  return list(range(first, first + config.study.num_seeds))


def space_of(config: ConfigDict) -> Space:
  """The space that a program of a study is tuned in: of the study's grid the fields that matter to it.

  There is always a learning rate among them.
  """
  found = written(config)
  rates = tuple(sorted(set(config.study.learning_rates))) or (float(config.optimizer.learning_rate),)
  if all(axis.field != RATE for axis in found.axes):
    found = dataclasses.replace(found, axes=(space.Axis(RATE, configs.kind_of(RATE), rates), *found.axes))
  return dataclasses.replace(found, axes=tuple(axis for axis in found.axes if space.matters(axis.field, config)))


def written(config: ConfigDict) -> Space:
  """The study's grid."""
  return space.of_fields(config.study.grid.to_dict(), where='config.study.grid')


def grid(config: ConfigDict) -> list[Values]:
  """The values that a program of a study is tried with."""
  return space_of(config).grid()


def tuning_seeds(config: ConfigDict, num: int) -> list[int]:
  """The seeds that values are chosen on."""
  first = config.train.seed + TUNING_SEED
  return list(range(first, first + num))


def from_config(config: ConfigDict, tasks: Sequence[Task]) -> dict[str, Arm]:
  """The arms that `config.study.arms` names, in that order: of ARMS, or else of `config.study.variants`."""
  variants = config.study.variants
  if len(set(config.study.arms)) < 2:
    raise ConfigError('config.study.arms must name at least two arms, for there is nothing else to compare')
  if len(tasks) == 1 and {'single', 'joint'} <= set(config.study.arms):
    raise ConfigError(
      f'config.tasks: of {tasks[0].name} alone the arms single and joint are one model; name more tasks, or leave one '
      'of the two out of config.study.arms'
    )
  largest = 2**31 - 1 - TUNING_SEED - config.study.num_seeds - config.study.num_tuning_seeds
  if config.train.seed > largest:
    raise ConfigError(f'config.train.seed must be at most {largest} in a study, which counts its seeds from there')
  made = {name: variant(config, name, tasks) for name in variants}  # A wrong one is an error, named as an arm or not.
  names = {name: {name, *arm.programs} for name, arm in made.items()}
  taken = collections.Counter(itertools.chain(*names.values(), ARMS, (task.name for task in tasks)))
  for name, own in names.items():
    if any(taken[one] > 1 for one in own):
      raise ConfigError(f'config.study.variants.{name}: an arm or a task has this name already; choose another')
  for name in config.study.arms:
    choose(name, (*ARMS, *variants), field='config.study.arms')
  return {name: made[name] if name in made else ARMS[name](config, tasks) for name in config.study.arms}
