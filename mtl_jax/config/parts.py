"""Finds a part of a run by its name in a table of built-in ones, or by the user's own file: `FILE.py:NAME`."""

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config.fields import FIELDS
from mtl_jax.config.load import with_values
from mtl_jax.errors import ConfigError, UserError, one_line
from mtl_jax.kinds import PART, PARTS, Open, choose
from mtl_jax.platform import user_file
from mtl_jax.platform.address import local_path

# Files by their digest: each content is run once, for a class of a second run, or of a copy, would be another one.
_LOADED: dict[str, ModuleType] = {}


def find(name: str, known: Mapping[str, Any], *, field: str, base: type | None = None) -> Any:
  """Finds the part that a field names.

  Args:
    name: of a built-in part, or `FILE.py:NAME` or `package.module:NAME` for a function or class of one's own.
    known: the built-in parts.
    field: the field, for errors.
    base: the class of which one's own must be a subclass, if it must be.

  Raises:
    ConfigError: for a name or file that there is not, or a file that fails.
  """
  if not is_own(name):
    return known[choose(name, tuple(known), field=field)]
  found = _own(name, field)
  if base and not (isinstance(found, type) and issubclass(found, base)):
    raise ConfigError(f'{field}: {name} must be a subclass of {base.__module__}.{base.__name__}')
  return found


def classes(name: str, base: type, *, field: str) -> list[type]:
  """The subclasses of `base` that a file or module of one's own defines, or the one that `FILE.py:NAME` names.

  Raises:
    ConfigError: as `find`, and where there are none.
  """
  name = _with_part(name)
  if not name.endswith(':'):
    return [find(name, {}, field=field, base=base)]
  module = _module(name, field)
  found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
  if own := [value for value in found if value.__module__ == module.__name__]:
    return own
  raise ConfigError(f'{field}: {name[:-1]} defines no subclass of {base.__module__}.{base.__name__}')


def _own(name: str, field: str) -> Any:
  part = name.rpartition(':')[2]
  if not callable(found := getattr(_module(name, field), part, None)):
    raise ConfigError(f'{field}: {name} cannot be imported: there is no function or class {part}')
  return found


def _module(name: str, field: str) -> ModuleType:
  """The file or the installed module that a part is in."""
  if (path := own_file(name)) is None:
    try:
      return importlib.import_module(name.rpartition(':')[0])
    except Exception as error:
      raise ConfigError(f'{field}: {name} cannot be imported: {type(error).__name__}: {one_line(error)}') from error
  if not path.is_file():
    raise ConfigError(f'{field}: no file {path}')
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  if digest not in _LOADED:
    _LOADED[digest] = user_file.module(path, raises=ConfigError, blame=f'{field}: ')
  return _LOADED[digest]


@contextlib.contextmanager
def wrap_errors(name: str, *, field: str, hint: str = '') -> Iterator[None]:
  """Turns an error of the user's own part into a ConfigError; those of a built-in part pass. `hint` ends the line."""
  try:
    yield
  except Exception as error:
    if isinstance(error, UserError) or not is_own(name):
      raise
    said = user_file.described(error, own_file(name) or Path())
    raise ConfigError(f'{field}: {name} failed: {said}{hint and f"; {hint}"}') from error


def own(config: ConfigDict) -> dict[str, str]:
  """The fields that name a part of the user's own, with their values; those of a field of several as `field.0`."""
  values: dict[str, str] = {}
  for field in FIELDS.values():
    value: Any = functools.reduce(lambda group, part: group[part], field.name.split('.'), config)
    if field.kind == PART:
      values[field.name] = value
    elif field.kind == PARTS:
      values |= {f'{field.name}.{i}': _with_part(one) for i, one in enumerate(value)}
    elif isinstance(field.kind, Open) and field.kind.each == PART:
      values |= {f'{field.name}.{name}': one for name, one in value.items()}
  return {name: value for name, value in values.items() if is_own(value)}


def with_own(config: ConfigDict, values: Mapping[str, str]) -> ConfigDict:
  """A copy of a configuration with other parts of the user's own, by field as `own` has them."""
  plugins = {'plugins': tuple(values.get(f'plugins.{i}', old) for i, old in enumerate(config.plugins))}
  return with_values(config, {name: value for name, value in values.items() if name[:8] != 'plugins.'} | plugins)


def _with_part(name: str) -> str:
  """A plug-in's name in the form `FILE.py:NAME`, with an empty NAME for all of the file."""
  return name if is_own(name) else f'{name}:'


def is_own(name: str) -> bool:
  """True for a part of the user's own."""
  return ':' in name


def title(name: str) -> str:
  """A part's name without the path of its file."""
  return name.rpartition(':')[2]


def own_file(name: str) -> Path | None:
  """The file of a part of the user's own; None for a built-in part, and for one of an installed module."""
  place = name.rpartition(':')[0]
  return local_path(place) if place.endswith('.py') else None
