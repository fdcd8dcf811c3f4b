"""An objective from its name and `config.objective`: its options are the method's own keyword parameters."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.errors import ConfigError
from mtl_jax.objectives.objective import Objective

FIELD = 'config.objective.options'
KINDS = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a name'}


def build(name: str, make: Callable[..., Objective], settings: ConfigDict, *, given: Mapping[str, Any]) -> Objective:
  """The objective `name`.

  Args:
    make: what makes it.
    settings: `config.objective`.
    given: parameters that are no options, or whose default the run knows better, for the methods that have them.

  Raises:
    ConfigError: for an option that the method has not or that is of another kind, and for settings of the Gram matrix
      with a method that has none at the parameters.
  """
  parameters = inspect.signature(make).parameters
  options = {option: parameter.default for option, parameter in parameters.items() if option != 'weights'}
  arguments = {key: value for key, value in given.items() if key in parameters}
  for option, value in settings.options.items():
    if not options:
      raise ConfigError(f'{FIELD}.{option}: the objective {name!r} has no options')
    choose(option, tuple(options), field=f'{FIELD} of {name!r}')
    arguments[option] = _checked(option, value, options[option])
  try:
    objective = make(**arguments)
  except (ValueError, ConfigError) as error:
    raise ConfigError(f'{FIELD} of {name!r}: {error}') from None
  _check_gram(name, objective, settings)
  return objective


def _checked(option: str, value: Any, default: Any) -> Any:
  """The value as the type of its default."""
  wanted = type(default)
  if wanted is int and isinstance(value, float) and value.is_integer():
    value = int(value)
  if wanted is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if type(value) is not wanted and wanted in KINDS:
    raise ConfigError(f'{FIELD}.{option} must be {KINDS[wanted]}, not {value!r}')
  if not all(
    math.isfinite(item) for item in (value if isinstance(value, tuple) else (value,)) if wanted in (int, float)
  ):
    raise ConfigError(f'{FIELD}.{option} must be finite, not {value}')
  return value


def _check_gram(name: str, objective: Objective, settings: ConfigDict) -> None:
  for field in ('gram_every_steps', 'gram_rows'):
    asked = settings[field] != (1 if field == 'gram_every_steps' else 0)
    if asked and (objective.weighting is None or objective.needs != 'parameters'):
      raise ConfigError(
        f'config.objective.{field} is for methods with a Gram matrix at the parameters; {name!r} has none'
      )
