"""One mesh of all devices, and how arrays lie on it: the state on every device, batches split by rows."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtl_jax.errors import ConfigError

MAX_IN_FLIGHT = 16  # Dispatches that the host does not wait for; unbounded ones can deadlock simulated devices.


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
  """The devices, by default all of all processes, along `data`; `model` is for parameters too large for one."""
  devices = jax.devices() if devices is None else devices
  axis_types = (AxisType.Auto, AxisType.Auto)
  return jax.make_mesh((len(devices), 1), ('data', 'model'), devices=devices, axis_types=axis_types)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """An array split over `data` along one axis."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))


def local_rows(num_rows: int, *, field: str) -> slice:
  """The rows of a global batch that this process provides.

  Raises:
    ConfigError: if the devices cannot share the rows equally; `field` is the config field to blame.
  """
  if num_rows % jax.device_count():
    raise ConfigError(f'config.{field} is {num_rows}, which {jax.device_count()} devices cannot share equally')
  share = num_rows // jax.process_count()
  return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def to_global(tree: Any, sharding: NamedSharding) -> Any:
  """This process's rows, a tree of NumPy arrays, as global arrays on the mesh."""
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)  # All leaves in one call.

  def place(local: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(sharding, local)

  return jax.tree.map(place, tree)
