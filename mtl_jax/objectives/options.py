"""Makes an objective from `config.objective`, whose options are the method's keyword arguments."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from mtl_jax.config import parts
from mtl_jax.errors import ConfigError
from mtl_jax.kinds import options
from mtl_jax.objectives import OBJECTIVES
from mtl_jax.objectives.declared import kinds_of
from mtl_jax.objectives.objective import Objective

FIELD = 'config.objective.options'


def task_weights(settings: ConfigDict, names: Sequence[str]) -> list[float]:
  """Each loss's weight, which may be traced: its own, or its group's, or 1."""
  weights = settings.weights
  return [weights.get(name, weights.get(name.split('/')[0], 1.0)) for name in names]


def from_config(settings: ConfigDict, names: Sequence[str], *, steps_per_epoch: int = 1) -> Objective:
  """The objective that `config.objective` asks for.

  Numbers among its weights and options may be traced: see `objectives/declared.py`.

  Args:
    settings: `config.objective`.
    names: of the losses it balances.
    steps_per_epoch: for the methods that count epochs.

  Raises:
    ConfigError: for an unknown name or option, one out of its range or without a number for each loss, for settings of
      the Gram matrix with a method that has none at the parameters, and for weighted heads with one without weights.
  """
  name, make = settings.name, parts.find(settings.name, OBJECTIVES, field='config.objective.name')
  kinds = kinds_of(make)
  given = {'weights': task_weights(settings, names), 'steps_per_epoch': steps_per_epoch}
  arguments = {key: value for key, value in given.items() if key in kinds}
  known = {option: kind for option, kind in kinds.items() if option != 'weights'}
  arguments |= options(settings.options, known, field=FIELD, owner=name)
  for option, value in settings.options.items():
    if isinstance(value, tuple) and len(value) != len(names):
      listed = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
      raise ConfigError(f'{FIELD}.{option} has {len(value)} numbers for {len(names)} losses: {listed}')
  try:
    with parts.wrap_errors(name, field='config.objective.name'):
      objective = make(**arguments)
  except (ValueError, ConfigError) as error:
    raise ConfigError(f'{FIELD} of {name!r}: {error}') from None
  if not isinstance(objective, Objective):
    raise ConfigError(f'config.objective.name: {name} gave {type(objective).__name__}, not an Objective')
  for field, plain in (('gram_every_steps', 1), ('gram_rows', 0)):
    if settings[field] != plain and (objective.weighting is None or objective.needs != 'parameters'):
      raise ConfigError(
        f'config.objective.{field} is for methods with a Gram matrix at the parameters; {name!r} has none'
      )
  if settings.heads == 'weighted' and objective.needs != 'losses' and not hasattr(objective.init(1), 'weights'):
    raise ConfigError(f'config.objective.heads=weighted is for methods with a weight for each loss; {name!r} has none')
  return objective
