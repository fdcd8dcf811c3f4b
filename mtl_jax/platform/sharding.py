"""The mesh of all devices and the shardings on it: state on every device or divided, batches split by rows."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtl_jax.errors import ConfigError

MAX_IN_FLIGHT = 16  # Dispatches that the host does not wait for; unbounded ones can deadlock simulated devices.


def limit_in_flight(dispatched: Sequence[Any]) -> None:
  """Waits until no more than MAX_IN_FLIGHT of the results dispatched so far are under way."""
  if len(dispatched) > MAX_IN_FLIGHT:
    jax.block_until_ready(dispatched[-MAX_IN_FLIGHT])


DIVIDED_FROM = (
  2**14
)  # Elements of the least array that is divided over `model`; less costs more to gather than to keep.


def make_mesh(devices: Sequence[Any] | None = None, *, model: int = 1) -> Mesh:
  """Makes the mesh of all devices of all processes: `data` by `model`, the latter sharing parameters between them.

  Those that share parameters also share the rows of a batch, so they are neighbours in one process.

  Raises:
    ConfigError: if the devices of each process cannot be grouped so.
  """
  devices = jax.devices() if devices is None else devices
  axis_types = (AxisType.Auto, AxisType.Auto)
  if model == 1:
    return jax.make_mesh((len(devices), 1), ('data', 'model'), devices=devices, axis_types=axis_types)
  by_process = sorted(devices, key=lambda device: (device.process_index, device.id))
  processes = [device.process_index for device in by_process]
  if any(processes.count(process) % model for process in set(processes)):
    raise ConfigError(
      f'config.train.model_devices is {model}, which does not divide the {processes.count(processes[0])} devices of a '
      'process; checkpoints restore under any other'
    )
  return Mesh(np.array(by_process).reshape(-1, model), ('data', 'model'), axis_types=axis_types)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def of_state(mesh: Mesh, make_state: Callable[[], Any]) -> Any:
  """Shardings of the state of `make_state`: replicated on every device, unless the axis `model` is used.

  Then each large array, of parameters, their averages and the optimizer alike, is divided along its largest axis that
  the number of devices divides (the last such of several). The rule looks at shapes alone, so a parameter and its
  moments lie alike.
  """
  num = mesh.shape['model']
  if num == 1:
    return replicated(mesh)

  def of_leaf(leaf: Any) -> NamedSharding:
    axes = [axis for axis, size in enumerate(leaf.shape) if size % num == 0]
    if len(leaf.shape) < 2 or math.prod(leaf.shape) < DIVIDED_FROM or not axes:
      return replicated(mesh)
    largest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, 'model'))

  return jax.tree.map(of_leaf, jax.eval_shape(make_state))


def bytes_of_state(mesh: Mesh, make_state: Callable[[], Any]) -> tuple[int, int]:
  """Bytes that the state takes on each device, and in all."""
  shapes = jax.tree.leaves(jax.eval_shape(make_state))
  placed = of_state(mesh, make_state)
  shardings = [placed] * len(shapes) if isinstance(placed, NamedSharding) else jax.tree.leaves(placed)
  held = [math.prod(where.shard_shape(leaf.shape)) for leaf, where in zip(shapes, shardings, strict=True)]
  sizes = [leaf.dtype.itemsize for leaf in shapes]
  on_each = sum(num * size for num, size in zip(held, sizes, strict=True))
  return on_each, sum(leaf.size * size for leaf, size in zip(shapes, sizes, strict=True))


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
