"""Loads pretrained weights with torchvision's names into the variables of a backbone, and those into a model."""

import logging
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import safe_open

from mtl_jax.errors import ConfigError, DataError
from mtl_jax.models import torch_file
from mtl_jax.models.backbone import Backbone
from mtl_jax.models.torch_file import StoredTensor, wrap_errors

log = logging.getLogger('mtl_jax')

Variables = Mapping[str, Any]

KINDS = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
FIELD = 'config.model.weights'
LISTED = 8  # Names in a message; of more, the number.


def load(path: Path, backbone: Backbone, *, image_size: tuple[int, int]) -> dict[str, Any]:
  """The backbone's `params` and `batch_stats` from a file, as numpy arrays in float32.

  Args:
    path: torchvision's `.pth` or `.pt` in either format, or `.safetensors` with torchvision's names.
    backbone: what to load into.
    image_size: height and width of the images to come, in pixels.

  Raises:
    ConfigError: for a backbone that no such file fits.
    DataError: for a file that cannot be read or is of another architecture; the message lists what is missing.
  """
  if backbone.torchvision_names is None:
    raise ConfigError(f'{FIELD}: there are no pretrained weights of {_title(backbone)}; leave it empty')
  if getattr(backbone, 'norm', None) != (published := getattr(type(backbone), 'norm', None)):
    raise ConfigError(f'config.model.norm: pretrained weights of {_title(backbone)} are of {published} norm; '
                      'leave it at auto')  # fmt: skip
  found = {_modern(backbone, name): tensor for name, tensor in read(path).items()}
  wanted = expected(backbone, image_size)
  names = {key: torchvision_name(backbone, key) for key in wanted}
  _check(path, backbone, found, {names[key]: key for key in wanted})
  loaded = {}
  for key, leaf in wanted.items():
    stored, title = found[names[key]], f'{names[key]} of {_title(backbone)}'
    try:
      tensor = backbone.from_torchvision(key[-1], stored.read(), leaf.shape)
    except (IndexError, ValueError):  # Of too few axes.
      tensor = None
    if tensor is None or tensor.shape != leaf.shape:
      raise DataError(f'{path}: {title} has shape {stored.shape} in the file, not what {leaf.shape} here asks for')
    loaded[key] = finite(np.asarray(tensor, np.float32), f'{path}: {title}')
  unused = sorted(name for name in found.keys() - names.values() if not name.endswith('num_batches_tracked'))
  log.info('weights: %d tensors of %s; unused: %s', len(loaded), path, listed(unused))
  return {'params': {}, 'batch_stats': {}} | traverse_util.unflatten_dict(loaded)


def finite(weight: np.ndarray, name: str) -> np.ndarray:
  """The weight. Raises DataError, which names it, for NaN and infinity."""
  if not np.isfinite(weight).all():
    raise DataError(f'{name} holds NaN or infinite numbers; take a file of a run that did not diverge')
  return weight


def read(path: Path) -> dict[str, StoredTensor]:
  """All tensors of a file by name. Raises DataError for one that is damaged or no file of weights, as does `read`."""
  if not path.is_file():
    raise DataError(f'{FIELD}: no file {path}')
  if path.suffix != '.safetensors':
    return torch_file.tensors(path)

  def tensor(name: str) -> np.ndarray:
    with wrap_errors(path, f'a safetensors file ({name})'), safe_open(path, framework='numpy') as file:
      return file.get_tensor(name)

  with wrap_errors(path, 'a safetensors file'), safe_open(path, framework='numpy') as file:
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
  return {name: StoredTensor(shape, partial(tensor, name)) for name, shape in shapes.items()}


def expected(backbone: Backbone, image_size: tuple[int, int]) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Shapes of the backbone's variables by their path."""
  images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
  variables: Any = jax.eval_shape(partial(backbone.init, train=False), jax.random.key(0), images)
  flat: Any = traverse_util.flatten_dict(variables)
  return flat


def torchvision_name(backbone: Backbone, path: tuple[str, ...]) -> str:
  """Torchvision's name of the variable at `(collection, module, ..., kind)`."""
  return _renamed('.'.join((*path[1:-1], KINDS.get(path[-1], path[-1]))), backbone.torchvision_names or ())


def _modern(backbone: Backbone, name: str) -> str:
  """A name as today's torchvision has it, and without the wrapper of several GPUs."""
  return _renamed(name.removeprefix('module.'), backbone.torchvision_old_names)


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
  for pattern, replacement in rules:
    name = re.sub(pattern, replacement, name)
  return name


def _check(path: Path, backbone: Backbone, found: Mapping[str, StoredTensor], wanted: Mapping[str, Any]) -> None:
  missing = sorted(wanted.keys() - found.keys())
  if len(missing) > len(wanted) / 2:
    others = sorted(found.keys() - wanted.keys())
    raise DataError(
      f'{path}: is of another architecture: it holds {len(wanted) - len(missing)} of the {len(wanted)} tensors of '
      f'{_title(backbone)}, and {len(others)} others, such as {", ".join(others[:2])}'
    )
  if missing:
    raise DataError(f'{path}: {len(missing)} tensors of {_title(backbone)} are missing: {listed(missing)}')


def listed(names: list[str]) -> str:
  """The first few of some names, for a message."""
  more = f' and {len(names) - LISTED} more' if len(names) > LISTED else ''
  return (', '.join(names[:LISTED]) or 'none') + more


def _title(backbone: Backbone) -> str:
  return type(backbone).__name__
