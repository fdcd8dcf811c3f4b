"""Configurations from a Python file with `--config.a.b=v` overrides, to JSON and back, and differences of two."""

import json
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config.check import check_fields, child, validate
from mtl_jax.config.fields import DEFAULTS, TREE, Tree
from mtl_jax.config.kinds import OPTION, Kind
from mtl_jax.errors import ConfigError
from mtl_jax.platform import user_file

# Where one of these is missing or empty a configuration is not old but spoilt.
ESSENTIAL = ('tasks', 'data', 'model', 'objective', 'optimizer', 'train')


def load(path: Path, overrides: Sequence[str] = ()) -> ConfigDict:
  """The configuration of a file's `get_config()`, with overrides `a.b=value` applied, locked and checked."""
  if not path.is_file():
    raise ConfigError(f'--config: no file {path}; variants lie in the folder configs/')
  config = user_file.call(path, 'get_config', raises=ConfigError, blame='--config: ')
  if not isinstance(config, ConfigDict):
    raise ConfigError(f'--config: get_config() of {path} gave {type(config).__name__}, not a ConfigDict')
  check_fields(config)
  for override in overrides:
    apply_override(config, override)
  if isinstance(config.tasks, tuple):  # One way to write them, so that resuming sees no difference.
    config.tasks = ','.join(config.tasks)
  validate(config)
  return config.lock()


def apply_override(config: ConfigDict, override: str) -> None:
  """Sets one field from text `a.b=value`, read as the field is declared; ConfigError if it cannot be."""
  name, equals, text = override.partition('=')
  if not equals:
    raise ConfigError(f'config.{name} has no value; write --config.{name}=VALUE')
  node, where, parent = TREE, 'config', config
  *groups, leaf = name.split('.')
  for part in (*groups, leaf):
    node, where = child(node, part, where), f'{where}.{part}'
  if not isinstance(node, Kind):
    fields = f'; set one of its fields: {", ".join(node)}' if isinstance(node, dict) else ''
    raise ConfigError(f'{where} is a group{fields}')
  try:
    value = node.read(text)
  except (ValueError, KeyError):
    raise ConfigError(f'{where} must be {node.words}, not {text!r}') from None
  for group in groups:
    parent = parent[group]
  with parent.unlocked():
    if node is OPTION and leaf in parent:
      delattr(parent, leaf)  # Its type binds nobody.
    parent[leaf] = value


def with_fields(config: ConfigDict, **fields: object) -> ConfigDict:
  """A copy of a configuration with some fields, `a.b` written `a__b`, set."""
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    copy.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
  return copy.lock()


def to_json(config: ConfigDict) -> dict[str, Any]:
  """Plain nested dictionaries with JSON's types."""
  return json.loads(json.dumps(config.to_dict()))


def from_json(value: dict[str, Any]) -> ConfigDict:
  """The configuration `to_json` wrote, in this version or one before: a field that is newer takes its default."""
  complete = _with_newer(value, TREE, DEFAULTS) if all(value.get(name) for name in ESSENTIAL) else value
  config = ConfigDict(_lists_to_tuples(complete))
  validate(config)
  return config.lock()


def _with_newer(value: dict[str, Any], tree: Tree, default: dict[str, Any]) -> dict[str, Any]:
  filled = default | value
  for key, node in tree.items():
    if isinstance(node, dict) and isinstance(filled[key], dict):
      filled[key] = _with_newer(filled[key], node, default[key])
  return filled


def _lists_to_tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _lists_to_tuples(item) for key, item in value.items()}
  return tuple(value) if isinstance(value, list) else value


def differences(
  old: dict[str, Any], new: dict[str, Any], *, ignore: Container[str] = (), group: str = ''
) -> Iterator[str]:
  """One text `config.a.b: old -> new` for each field in which two configurations differ, but for some by name."""
  for key in sorted(old.keys() | new.keys()):
    name, before, after = f'{group}{key}', old.get(key), new.get(key)
    if isinstance(before, dict) and isinstance(after, dict):
      yield from differences(before, after, ignore=ignore, group=f'{name}.')
    elif before != after and name not in ignore:
      yield f'config.{name}: {before!r} -> {after!r}'
