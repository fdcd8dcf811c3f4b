"""Makes an objective from `config.objective`, whose options are the method's keyword arguments."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.core import Tracer
from ml_collections import ConfigDict

from mtl_jax.config import parts
from mtl_jax.errors import ConfigError
from mtl_jax.kinds import Kind, options
from mtl_jax.objectives import OBJECTIVES
from mtl_jax.objectives.declared import kinds_of
from mtl_jax.objectives.objective import Objective

NAME, FIELD = 'config.objective.name', 'config.objective.options'


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
  name, kinds = settings.name, known_options(settings.name)
  given = {'weights': task_weights(settings, names), 'steps_per_epoch': steps_per_epoch}
  arguments = {key: value for key, value in given.items() if key in kinds}
  known = {option: kind for option, kind in kinds.items() if option != 'weights'}
  arguments |= options(settings.options, known, field=FIELD, owner=name)
  for option, value in settings.options.items():
    if isinstance(value, tuple) and len(value) != len(names):
      listed = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
      raise ConfigError(f'{FIELD}.{option} has {len(value)} numbers for {len(names)} losses: {listed}')
  make = parts.find(name, OBJECTIVES, field=NAME)
  if missing := [one for one in _required(make) if one not in arguments]:
    raise ConfigError(
      f'{NAME}: {name} needs {missing[0]!r}, which {FIELD} does not give; '
      'what is named is a function of such options, each with a default, that returns an Objective'
    )
  with parts.wrap_errors(name, field=NAME):
    try:
      objective = make(**arguments)
    except (ValueError, ConfigError) as error:
      raise ConfigError(f'{FIELD} of {name!r}: {error}') from None
    if not isinstance(objective, Objective):
      raise ConfigError(f'{NAME}: {name} gave {type(objective).__name__}, not an Objective: see of_losses')
  objective = _Own.of(objective, name) if parts.is_own(name) else objective
  if isinstance(objective, _Own) and objective.is_constant(len(names)):
    raise ConfigError(f'{NAME}: {name}: its total does not depend on the losses, so nothing would train')
  for field, plain in (('gram_every_steps', 1), ('gram_rows', 0)):
    if settings[field] != plain and (objective.weighting is None or objective.needs != 'parameters'):
      raise ConfigError(
        f'config.objective.{field} is for methods with a Gram matrix at the parameters; {name!r} has none'
      )
  if settings.heads == 'weighted' and objective.needs != 'losses' and not hasattr(objective.init(1), 'weights'):
    raise ConfigError(f'config.objective.heads=weighted is for methods with a weight for each loss; {name!r} has none')
  return objective


def known_options(name: str) -> dict[str, Kind]:
  """The options of a method, built-in or the user's own, with their kinds; ConfigError if there is no such method."""
  with parts.wrap_errors(name, field=NAME):
    return kinds_of(parts.find(name, OBJECTIVES, field=NAME))


def _required(make: Callable[..., Objective]) -> list[str]:
  """The arguments of a maker that have no default."""
  parameters = inspect.signature(make).parameters.values()
  named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
  return [one.name for one in named if one.default is one.empty]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Own(Objective):
  """An objective of the user's own, whose errors, which show when a step is traced, name its file."""

  made: Objective
  name: str

  @classmethod
  def of(cls, made: Objective, name: str) -> Self:
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(Objective)}
    return cls(**fields, made=made, name=name)

  def init(self, num_losses: int, like: Any = None) -> Any:
    with parts.wrap_errors(self.name, field=NAME):
      return self.made.init(num_losses, like)

  def update(self, *arguments: Any, **named: Any) -> tuple[Any, Any]:
    with parts.wrap_errors(self.name, field=NAME):
      return self.made.update(*arguments, **named)

  def is_constant(self, num: int) -> bool:
    """True where a total without memory has slopes of 0 at losses small and large."""
    if self.needs != 'losses' or jax.tree.leaves(state := self.init(num)):
      return False
    losses, key = 0.5 + jnp.arange(num, dtype=jnp.float32), jax.random.key(0)
    slopes = jax.grad(lambda losses: self.update(losses, state, key=key)[0])
    found = [slopes(scale * losses) for scale in (0.1, 1.0, 10.0)]
    return not any(isinstance(one, Tracer) or one.any() for one in found)
