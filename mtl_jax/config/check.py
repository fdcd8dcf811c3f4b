"""Checks a configuration: unknown fields, values out of range, and fields that contradict each other."""

from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config.fields import TREE, Tree
from mtl_jax.errors import ConfigError
from mtl_jax.kinds import Kind, Open, Partial, nearest, require


def validate(config: ConfigDict) -> None:
  """Raises ConfigError, which names the field, for values or combinations of them that are not allowed."""
  check_fields(config)
  data = config.data
  if data.dir and data.dirs:
    raise ConfigError('config.data.dir and config.data.dirs are both set; name one set by dir, or several by dirs')
  if data.weights and len(data.weights) != len(data.dirs):
    raise ConfigError(f'config.data.weights holds {len(data.weights)} numbers for {len(data.dirs)} config.data.dirs')
  if data.balance == 'domain' and (data.weights or not data.dirs):
    raise ConfigError(
      'config.data.balance=domain is for several sets, given by config.data.dirs, without config.data.weights'
    )
  for width in config.model.trunk_features:  # Kept as 64.0 in all workdirs.
    if width != int(width):
      raise ConfigError(f'config.model.trunk_features must be whole numbers of at least 1, not {width:g}')


def check_fields(value: Any, node: Kind | Open | Tree = TREE, name: str = 'config') -> None:
  """Raises ConfigError for the first field that is missing, unknown, or not as it is declared."""
  if isinstance(node, Kind):
    return require(value, node, field=name)
  if not isinstance(value, ConfigDict):
    raise ConfigError(f'{name} must be a group of fields, not {value!r}')
  for key in node if isinstance(node, dict) and not isinstance(node, Partial) else ():
    if key not in value:
      raise ConfigError(f'{name}.{key} is missing; start from mtl_jax.configs.default')
  for key in value:
    check_fields(value[key], child(node, key, name), f'{name}.{key}')
  return None


def child(node: Kind | Open | Tree, part: str, name: str) -> Kind | Open | Tree:
  """The field or group `part` of the group `name`; else a ConfigError that names the nearest one."""
  if isinstance(node, Kind):
    raise ConfigError(f'{name} is a value and has no field {part!r}')
  if isinstance(node, dict) and part in node:
    return node[part]
  if isinstance(node, Open) and part:
    return node.each
  hint = nearest(part, tuple(node), cutoff=0.4) if isinstance(node, dict) else 'give it a name'
  raise ConfigError(f'{name} has no field {part!r}; {hint}')
