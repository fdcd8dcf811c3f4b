"""Finds a part of a run by its name in a table of built-in ones, or by the user's own file: `FILE.py:NAME`."""

import contextlib
import functools
import hashlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config.fields import FIELDS
from mtl_jax.errors import ConfigError, UserError, one_line
from mtl_jax.kinds import PART, Open, choose
from mtl_jax.platform import user_file
from mtl_jax.platform.address import local_path


def find(name: str, known: Mapping[str, Any], *, field: str, base: type | None = None) -> Any:
  """The part that a field names.

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


def _own(name: str, field: str) -> Any:
  place, _, part = name.rpartition(':')
  if (path := own_file(name)) is None:
    try:
      return getattr(importlib.import_module(place), part)
    except Exception as error:
      raise ConfigError(f'{field}: {name} cannot be imported: {type(error).__name__}: {one_line(error)}') from error
  if not path.is_file():
    raise ConfigError(f'{field}: no file {path}')
  return _load(path, part, hashlib.sha256(path.read_bytes()).hexdigest(), field)


@functools.cache
def _load(path: Path, part: str, digest: str, field: str) -> Any:
  """Each content is run once: a class of a second run would be another one, and compile its programs again."""
  del digest
  return user_file.load(path, part, raises=ConfigError, blame=f'{field}: ')


@contextlib.contextmanager
def made(name: str, *, field: str) -> Iterator[None]:
  """Tells an error of the user's own part, while it is made, in one line."""
  try:
    yield
  except Exception as error:
    if isinstance(error, UserError) or not is_own(name):
      raise
    raise ConfigError(f'{field}: {name} failed: {type(error).__name__}: {one_line(error)}') from error


def own(config: ConfigDict) -> dict[str, str]:
  """The fields of a configuration that name a part of the user's own, with their values."""
  values: dict[str, str] = {}
  for field in FIELDS.values():
    if field.kind == PART:
      values[field.name] = _value(config, field.name)
    elif isinstance(field.kind, Open) and field.kind.each == PART:
      values |= {f'{field.name}.{name}': value for name, value in _value(config, field.name).items()}
  return {name: value for name, value in values.items() if is_own(value)}


def _value(config: ConfigDict, name: str) -> Any:
  return functools.reduce(lambda group, part: group[part], name.split('.'), config)


def is_own(name: str) -> bool:
  """True for a part of the user's own."""
  return ':' in name


def title(name: str) -> str:
  """A part's name without the place of its file, which is of no use elsewhere."""
  return name.rpartition(':')[2]


def own_file(name: str) -> Path | None:
  """The file of a part of the user's own; None for a built-in part, and for one of an installed module."""
  place = name.rpartition(':')[0]
  return local_path(place) if place.endswith('.py') else None
