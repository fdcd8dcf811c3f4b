"""Initializes a model from another run's weights, layer by layer, where layers are frozen or shared otherwise too."""

import collections
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from safetensors import safe_open

from mtl_jax.errors import DataError
from mtl_jax.models import pretrained, torch_file
from mtl_jax.models.pretrained import FIELD, listed

log = logging.getLogger('mtl_jax')

STEM = 'mtl_jax_stem'  # The key of a file's metadata.
FILE = 'model.safetensors'  # In a folder that `export` has written.

Path = tuple[str, ...]


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """A model's arrays by names that do not depend on what is frozen: `params/backbone/conv1/kernel`."""
  return {'/'.join(_plain(path)): leaf for path, leaf in traverse_util.flatten_dict(variables).items()}


def of_backbone(variables: Mapping[str, Any]) -> dict[str, Any]:
  """A backbone's variables by the names that they have in a model of one."""
  return flatten({kind: {'backbone': tree} for kind, tree in variables.items()})


def read(path: pathlib.Path) -> dict[str, Any]:
  """The arrays of a `.safetensors` file of ours, by the names of `flatten`; none for a file of other names.

  Raises:
    DataError: for a file that is damaged, or holds NaN.
  """
  found = pretrained.read(path) if path.suffix == '.safetensors' else {}
  if not any(name.startswith('params/') for name in found):
    return {}
  return {name: pretrained.finite(tensor.read(), f'{path}: {name}') for name, tensor in found.items()}


def stem(path: pathlib.Path) -> str:
  """The `model.stem` that a file of ours is of; `auto` for others, which do not say."""
  if path.suffix != '.safetensors' or not path.is_file():
    return 'auto'
  with torch_file.wrap_errors(path, 'a safetensors file'), safe_open(path, framework='numpy') as file:
    found = (file.metadata() or {}).get(STEM)
  return found if found in ('small', 'imagenet') else 'auto'


def place(variables: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
  """The variables with each layer that `weights` holds under its name and in its shapes; logs what is new or left over.

  Where a model holds several copies of the backbone, each starts from the weights' one, if they have one alone.

  Args:
    variables: of the model, before its first step.
    weights: as `flatten` gives them, of another model or of a backbone alone.

  Raises:
    DataError: if none of the encoder fits.
  """
  flat: dict[Path, Any] = traverse_util.flatten_dict(variables)
  sources = _sources(flat, weights)
  taken = {name for name in sources.values() if name is not None}
  new = ['/'.join(_plain(path)) for path, name in sources.items() if name is None]
  result = {
    path: leaf if (name := sources[path]) is None else jnp.broadcast_to(weights[name], leaf.shape).astype(leaf.dtype)
    for path, leaf in flat.items()
  }
  if not any('/backbone' in name for name in taken) and any('/backbone' in name for name in weights):
    raise DataError(f'{FIELD} holds nothing of this model; is it of another backbone or width?')
  log.info(
    'weights: %d of %d arrays are taken; new here: %s; left over there: %s',
    len(taken), len(weights), listed(_modules(new)), listed(_modules(weights.keys() - taken)),
  )  # fmt: skip
  return traverse_util.unflatten_dict(result)


def fitting(variables: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
  """Those of the weights that `place` takes for these variables."""
  taken = set(_sources(traverse_util.flatten_dict(variables), weights).values())
  return {name: leaf for name, leaf in weights.items() if name in taken}


def _sources(variables: Mapping[Path, Any], weights: Mapping[str, Any]) -> dict[Path, str | None]:
  """The name of the weight that each variable takes; None for all of a layer unless all of it fits all of another."""
  names = {path: '/'.join(_plain(path)) for path in variables}
  sources = {path: _source(names[path], leaf, weights) for path, leaf in variables.items()}
  here, there = collections.defaultdict(set), collections.defaultdict(set)
  for path, name in names.items():
    here[_layer(name)].add(sources[path])
  for name in weights:
    there[_layer(name)].add(name)
  whole = {layer for layer, found in here.items() if None not in found and found == there[_layer(next(iter(found)))]}
  return {path: name if _layer(names[path]) in whole else None for path, name in sources.items()}


def _source(name: str, variable: Any, weights: Mapping[str, Any]) -> str | None:
  """The name of the weight that fits a variable, if one does."""
  return next((one for one in (name, _of_one_copy(name)) if _fits(variable, weights.get(one))), None)


def _layer(name: str) -> str:
  """The layer that an array is of: a head is one, and so is each array that a backbone itself holds."""
  kind, module, *rest = f'{name}/'.split('/')
  if module.startswith('head_'):
    return f'{kind}/{module}'
  return name if len(rest) < 3 and module.startswith('backbone') else name.rpartition('/')[0]


def _fits(variable: Any, weight: Any) -> bool:
  """True for a weight of the variable's shape, or of one of the copies that are stacked in it."""
  return weight is not None and weight.shape in (variable.shape, variable.shape[1:])


def _plain(path: Path) -> Path:
  """A path without the frame of frozen stages, of the shared part, and of a backbone's remainder."""
  if path[0] == 'frozen':
    path = path[path.index('variables') + 1 :]
  kept = [path[0]]
  for part in path[1:]:
    if part != 'shared' and not (part == 'backbone' and kept[-1].startswith('backbone')):
      kept.append(part)
  return tuple(kept)


def _of_one_copy(name: str) -> str:
  return re.sub(r'/backbone_\w+/', '/backbone/', name)


def _modules(names: Any) -> list[str]:
  """The modules of arrays: their names without the collection and the array's own."""
  return sorted({'/'.join(name.split('/')[1:-1]) for name in names})
