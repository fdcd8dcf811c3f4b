"""The configuration of a run: declares, loads, checks and describes its fields."""

from mtl_jax.config.check import validate
from mtl_jax.config.fields import FIELDS, RESUMABLE, get_config
from mtl_jax.config.load import (
  apply_override,
  differences,
  flat,
  from_json,
  kind_of,
  load,
  named,
  presets,
  to_json,
  with_fields,
  with_values,
)
from mtl_jax.kinds import choose

__all__ = [
  'FIELDS',
  'RESUMABLE',
  'apply_override',
  'choose',
  'differences',
  'flat',
  'from_json',
  'get_config',
  'kind_of',
  'load',
  'named',
  'presets',
  'to_json',
  'validate',
  'with_fields',
  'with_values',
]
