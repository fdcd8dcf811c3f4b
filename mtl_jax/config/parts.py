"""Finds a part of a run by its name in a table of built-in ones, or by the user's own file: `FILE.py:NAME`."""

import functools
import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.errors import ConfigError, one_line
from mtl_jax.kinds import choose
from mtl_jax.platform import user_file


def find(name: str, known: Mapping[str, Any], *, field: str) -> Any:
  """The part that a field names.

  Args:
    name: of a built-in part, or `FILE.py:NAME` or `package.module:NAME` for a function or class of one's own.
    known: the built-in parts.
    field: the field, for errors.

  Raises:
    ConfigError: for a name or file that there is not, or a file that fails.
  """
  if not is_own(name):
    return known[choose(name, tuple(known), field=field)]
  place, _, part = name.rpartition(':')
  if (path := own_file(name)) is not None:
    if not path.is_file():
      raise ConfigError(f'{field}: no file {path}')
    return _load(path, part, hashlib.sha256(path.read_bytes()).hexdigest(), field)
  try:
    found = getattr(importlib.import_module(place), part)
  except Exception as error:
    raise ConfigError(f'{field}: {name} cannot be imported: {type(error).__name__}: {one_line(error)}') from error
  return found


@functools.cache
def _load(path: Path, part: str, digest: str, field: str) -> Any:
  """Each content is run once: a class of a second run would be another one, and compile its programs again."""
  del digest
  return user_file.load(path, part, raises=ConfigError, blame=f'{field}: ')


def is_own(name: str) -> bool:
  """True for a part of the user's own."""
  return ':' in name


def own_file(name: str) -> Path | None:
  """The file of a part of the user's own; None for a built-in part, and for one of an installed module."""
  place = name.rpartition(':')[0]
  return Path(place).expanduser() if place.endswith('.py') else None
