"""Ways of sharing a backbone between tasks, from images to the input of each task's head."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtl_jax.errors import ConfigError
from mtl_jax.kinds import FLAG, TEXT, Kind, options, real, whole
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


KINDS: dict[type, Kind] = {str: TEXT, int: whole(1), float: real(0), bool: FLAG}


def check_options(way: type[Sharing], given: Mapping[str, Any], *, name: str) -> dict[str, Any]:
  """The options of a way, of its fields' types; errors call it by its name.

  Raises:
    ConfigError: for one that it has not, or whose value cannot be; for a way whose fields cannot be options.
  """
  inherited = {field.name for field in dataclasses.fields(Sharing)}
  own = {field.name: field.default for field in dataclasses.fields(way) if field.name not in inherited}
  if other := [option for option, default in own.items() if type(default) not in KINDS]:
    raise ConfigError(f'config.model.sharing: {name}: {other[0]} needs a default: a number, true or false, or text')
  known = {option: KINDS[type(default)] for option, default in own.items()}
  return options(given, known, field='config.model.sharing_options', owner=name)
