"""An objective from `config.objective`: its options are the method's own keyword parameters."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import parts
from mtl_jax.config.kinds import FLAG, NUMBER, OPTION, TEXT, Kind, either, options, several, whole
from mtl_jax.errors import ConfigError
from mtl_jax.objectives import OBJECTIVES
from mtl_jax.objectives.objective import Objective

FIELD = 'config.objective.options'
KINDS: dict[type, Kind] = {int: whole(-math.inf), float: NUMBER, bool: FLAG, str: TEXT}


def task_weights(settings: ConfigDict, names: Sequence[str]) -> list[float]:
  """Each loss's weight: its own, or its group's, or 1."""
  weights = settings.weights
  return [float(weights.get(name, weights.get(name.split('/')[0], 1.0))) for name in names]


def from_config(settings: ConfigDict, names: Sequence[str], *, steps_per_epoch: int = 1) -> Objective:
  """The objective that `config.objective` asks for.

  Args:
    settings: `config.objective`.
    names: of the losses it balances.
    steps_per_epoch: for the methods that count epochs.

  Raises:
    ConfigError: for an unknown name or option, an option that has not one number for each loss, or settings that the
      method cannot serve.
  """
  name, make = settings.name, parts.find(settings.name, OBJECTIVES, field='config.objective.name')
  for option, value in settings.options.items():
    if isinstance(value, tuple) and len(value) != len(names):
      listed = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
      raise ConfigError(f'{FIELD}.{option} has {len(value)} numbers for {len(names)} losses: {listed}')
  given = {'weights': task_weights(settings, names), 'steps_per_epoch': steps_per_epoch}
  return build(name, make, settings, given=given)


def build(name: str, make: Callable[..., Objective], settings: ConfigDict, *, given: Mapping[str, Any]) -> Objective:
  """The objective `name`.

  Args:
    make: what makes it.
    settings: `config.objective`.
    given: parameters that are no options, or whose default the run knows better, for the methods that have them.

  Raises:
    ConfigError: for an option that the method has not or that is of another kind, for settings of the Gram matrix with
      a method that has none at the parameters, and for weighted heads with one that has no weights.
  """
  parameters = inspect.signature(make).parameters
  known = {option: _kind(parameter) for option, parameter in parameters.items() if option != 'weights'}
  arguments = {key: value for key, value in given.items() if key in parameters}
  arguments |= options(settings.options, known, field=FIELD, owner=name)
  try:
    objective = make(**arguments)
  except (ValueError, ConfigError) as error:
    raise ConfigError(f'{FIELD} of {name!r}: {error}') from None
  if not isinstance(objective, Objective):
    raise ConfigError(f'config.objective.name: {name} gave {type(objective).__name__}, not an Objective')
  _check_gram(name, objective, settings)
  if settings.heads == 'weighted' and objective.needs != 'losses' and not hasattr(objective.init(1), 'weights'):
    raise ConfigError(f'config.objective.heads=weighted is for methods with a weight for each loss; {name!r} has none')
  return objective


def _kind(parameter: inspect.Parameter) -> Kind:
  """The kind of the default; a number for each loss as well where the parameter may be a sequence."""
  if 'Sequence' in str(parameter.annotation):
    numbers = several(NUMBER, 'one number for each loss,')
    return numbers if parameter.default is None else either(NUMBER, numbers)
  return KINDS.get(type(parameter.default), OPTION)


def _check_gram(name: str, objective: Objective, settings: ConfigDict) -> None:
  for field in ('gram_every_steps', 'gram_rows'):
    asked = settings[field] != (1 if field == 'gram_every_steps' else 0)
    if asked and (objective.weighting is None or objective.needs != 'parameters'):
      raise ConfigError(
        f'config.objective.{field} is for methods with a Gram matrix at the parameters; {name!r} has none'
      )
