"""Ways of sharing a backbone between tasks: images to what each task's head reads."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mtl_jax.config import choose
from mtl_jax.errors import ConfigError
from mtl_jax.models.sharing.branch import Branch
from mtl_jax.models.sharing.cross_stitch import CrossStitch
from mtl_jax.models.sharing.dense import Dense
from mtl_jax.models.sharing.dselect_k import DselectK
from mtl_jax.models.sharing.hard import Hard
from mtl_jax.models.sharing.mmoe import Mmoe
from mtl_jax.models.sharing.mtan import Mtan
from mtl_jax.models.sharing.multilinear import Multilinear
from mtl_jax.models.sharing.ple import Cgc, Ple
from mtl_jax.models.sharing.separate import Separate
from mtl_jax.models.sharing.sluice import Sluice
from mtl_jax.models.sharing.soft import Soft
from mtl_jax.models.sharing.way import Sharing

# A new way is a file here and a line: a `Sharing`, whose own fields are its options.
SHARING: dict[str, type[Sharing]] = {
  'hard': Hard,
  'separate': Separate,
  'soft': Soft,
  'cross_stitch': CrossStitch,
  'sluice': Sluice,
  'dense': Dense,
  'mtan': Mtan,
  'mmoe': Mmoe,
  'dselect_k': DselectK,
  'cgc': Cgc,
  'ple': Ple,
  'branch': Branch,
  'multilinear': Multilinear,
}


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """The options of a way, of its fields' types.

  Raises:
    ConfigError: for one that it has not, or whose value cannot be.
  """
  inherited = {field.name for field in dataclasses.fields(Sharing)}
  known = {field.name: field.default for field in dataclasses.fields(SHARING[name]) if field.name not in inherited}
  result = {}
  for option, value in options.items():
    where = f'config.model.sharing_options.{option}'
    if not known:
      raise ConfigError(f'{where}: {name} has no options')
    default = known[choose(option, tuple(known), field='config.model.sharing_options')]
    if isinstance(default, str):
      wanted, right = 'text', isinstance(value, str)
    elif isinstance(default, int):
      wanted, right = 'a whole number from 1 on', type(value) is int and value >= 1
    else:
      wanted, right = 'a number from 0 on', type(value) in (int, float) and 0 <= value < math.inf
    if not right:
      raise ConfigError(f'{where} must be {wanted}, not {value!r}')
    result[option] = value
  return result
