"""Loads configurations from Python files with `--config.a.b=v` overrides; converts to and from JSON, and compares."""

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from mtl_jax.config.check import check_fields, child, validate
from mtl_jax.config.fields import DEFAULTS, TREE, Tree
from mtl_jax.errors import ConfigError
from mtl_jax.kinds import OPTION, Kind, Partial, nearest, require, shown
from mtl_jax.platform import user_file
from mtl_jax.platform.address import local_path

_PRESETS = Path(__file__).parent.parent / 'configs'
# Where one of these is missing or empty a configuration is not old but spoilt.
ESSENTIAL = ('tasks', 'data', 'model', 'objective', 'optimizer', 'train')


Overrides: TypeAlias = str | Sequence[str] | Mapping[str, Any]


def load(source: str | Path | ConfigDict, overrides: Overrides = ()) -> ConfigDict:
  """Loads a configuration, applies the overrides to a copy of it, checks and locks it.

  Args:
    source: the name of a preset (see `presets`), a Python file with a `get_config()`, or a configuration.
    overrides: see `named`.

  Raises:
    ConfigError: for a source that there is not, and for a field that is unknown, ill-typed or out of range.
  """
  config = source.copy_and_resolve_references() if isinstance(source, ConfigDict) else _from_file(source)
  config.unlock()
  check_fields(config)
  for name, value in named(overrides):
    set_field(config, name, value)
  if isinstance(config.tasks, tuple):  # One way to write them, so that resuming sees no difference.
    config.tasks = ','.join(config.tasks)
  validate(config)
  return config.lock()


def presets() -> tuple[str, ...]:
  """The names of the configurations that come with the package."""
  return tuple(sorted(path.stem for path in _PRESETS.glob('*.py') if path.stem != '__init__'))


def _from_file(source: str | Path) -> ConfigDict:
  if not isinstance(source, str | Path):
    told = 'is the name of a preset, a Python file or a ConfigDict; values of single fields are overrides'
    raise ConfigError(f'--config {told}, not {shown(source)}')
  path = local_path(source)
  if str(source) in presets():
    path = _PRESETS / f'{source}.py'
  elif not path.is_file():
    what = 'preset' if re.fullmatch(r'\w+', str(source)) else 'file'
    raise ConfigError(f'--config: no {what} {source}; {nearest(path.stem, presets())}')
  config = user_file.call(path, 'get_config', raises=ConfigError, blame='--config: ')
  if not isinstance(config, ConfigDict):
    raise ConfigError(f'--config: get_config() of {path} gave {type(config).__name__}, not a ConfigDict')
  return config


def apply_override(config: ConfigDict, override: str) -> None:
  """Sets one field from text `a.b=value`; ConfigError if it cannot be."""
  set_field(config, *_parted(override))


def named(overrides: Overrides) -> list[tuple[str, Any]]:
  """The fields that overrides set, `a.b`, with their values.

  Args:
    overrides: texts `a.b=value`, as on the command line, one or several; or values by the fields' names, in which a
      group may be a dictionary of its fields.
  """
  if isinstance(overrides, Mapping):
    return [one for name, value in overrides.items() for one in _in_group(_plain(str(name)), value)]
  if isinstance(overrides, str) or not isinstance(overrides, Iterable):
    return [_parted(overrides)]
  return [_parted(text) for text in overrides]


def _in_group(name: str, value: Any) -> Iterator[tuple[str, Any]]:
  value = value.to_dict() if isinstance(value, ConfigDict) else value
  if not isinstance(value, Mapping) or not value:
    yield name, value
    return
  for key, field in value.items():
    yield from _in_group(f'{name}.{key}', field)


def _parted(override: str) -> tuple[str, str]:
  if not isinstance(override, str):
    raise ConfigError(f'overrides are texts a.b=value, or a dictionary of values by field, not {shown(override)}')
  name, equals, text = override.partition('=')
  if not equals:
    raise ConfigError(f'config.{_plain(name)} has no value; write --config.{_plain(name)}=VALUE')
  return _plain(name), text


def _plain(name: str) -> str:
  """A field's name without the prefix that it has on the command line."""
  return name.removeprefix('--').removeprefix('config.')


def set_field(config: ConfigDict, name: str, value: Any) -> None:
  """Sets the field `a.b`; text is read as the field is declared. ConfigError for a field or value that cannot be."""
  node, where, parent = kind_of(name), f'config.{name}', config
  *groups, leaf = name.split('.')
  try:
    value = node.read(value) if isinstance(value, str) else node.convert(_plain_value(value))
  except (ValueError, KeyError):
    raise ConfigError(f'{where} must be {node.words}, not {shown(value)}') from None
  require(value, node, field=where)
  for group in groups:
    if group not in parent:  # Of a `Partial` one.
      with parent.unlocked():
        parent[group] = ConfigDict()
    parent = parent[group]
  with parent.unlocked():
    if node is OPTION and leaf in parent:
      delattr(parent, leaf)  # Its type binds nobody.
    parent[leaf] = value


def kind_of(name: str) -> Kind:
  """The kind of the field `a.b`; ConfigError if there is no such field."""
  node, where = TREE, 'config'
  for part in name.split('.'):
    node, where = child(node, part, where), f'{where}.{part}'
  if not isinstance(node, Kind):
    fields = ', '.join(node) if isinstance(node, dict) else f'{name}.NAME'
    raise ConfigError(f'{where} is a group; set one of its fields: {fields}')
  return node


def with_fields(config: ConfigDict, **fields: object) -> ConfigDict:
  """A copy of a configuration with some fields set; `a.b` is written `a__b`."""
  return with_values(config, {name.replace('__', '.'): value for name, value in fields.items()})


def with_values(config: ConfigDict, values: Mapping[str, object]) -> ConfigDict:
  """A copy of a configuration, locked, with some fields set by their names `a.b`."""
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    copy.update_from_flattened_dict(dict(values))
  return copy.lock()


def to_json(config: ConfigDict) -> dict[str, Any]:
  """Plain nested dictionaries with JSON's types."""
  return json.loads(json.dumps(config.to_dict()))


def from_json(value: dict[str, Any]) -> ConfigDict:
  """The configuration `to_json` wrote, in this version or one before: a field that is newer takes its default."""
  complete = _with_newer(value, TREE, DEFAULTS) if all(value.get(name) for name in ESSENTIAL) else value
  config = ConfigDict(_plain_value(complete))
  validate(config)
  return config.lock()


def _with_newer(value: dict[str, Any], tree: Tree, default: dict[str, Any]) -> dict[str, Any]:
  filled = default | value
  for key, node in tree.items():
    if isinstance(node, dict) and not isinstance(node, Partial) and isinstance(filled[key], dict):
      filled[key] = _with_newer(filled[key], node, default[key])
  return filled


def _plain_value(value: Any) -> Any:
  """A value as a configuration keeps it: tuples for lists and arrays, Python's numbers for NumPy's, text for paths."""
  if isinstance(value, dict):
    return {key: _plain_value(item) for key, item in value.items()}
  value = value.tolist() if hasattr(value, 'tolist') else value
  value = str(value) if isinstance(value, Path) else value
  return tuple(map(_plain_value, value)) if isinstance(value, list | tuple) else value


def flat(value: Mapping[str, Any], group: str = '') -> dict[str, Any]:
  """Nested fields by their dotted names."""
  fields: dict[str, Any] = {}
  for key, field in value.items():
    fields |= flat(field, f'{group}{key}.') if isinstance(field, dict) else {f'{group}{key}': field}
  return fields


def differences(old: dict[str, Any], new: dict[str, Any], *, ignore: Container[str] = ()) -> Iterator[str]:
  """One text `config.a.b: old -> new` for each field in which two configurations differ.

  Args:
    old: as `to_json` has it.
    new: likewise.
    ignore: names of fields that do not count, and of groups whose fields do not.
  """
  before, after = flat(old), flat(new)
  for name in sorted(before.keys() | after.keys()):
    if before.get(name) != after.get(name) and not any(part in ignore for part in _parts(name)):
      yield f'config.{name}: {before.get(name)!r} -> {after.get(name)!r}'


def _parts(name: str) -> Iterator[str]:
  """A field's name and those of its groups: `a.b`, `a`."""
  while name:
    yield name
    name = name.rpartition('.')[0]
