"""The train split resident in device memory: whether it fits, placing it, and gathering batches inside the step."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int32, Int64

from mtl_jax.data.pipeline import Batch, Input, Split, streamed_input
from mtl_jax.errors import ConfigError
from mtl_jax.training import sharding

Source = dict[str, Any]  # image uint8 [n, h*w*3], labels, mask, example_id: the whole split, see `arrays`.


def train_input(split: Split, mesh: Mesh, *, mode: str, share: float) -> Input:
  """How the train split's batches come to the step; both ways give the same bits.

  Args:
    split: the train split.
    mesh: the devices of all processes.
    mode: auto, resident or streamed.
    share: of a device's memory that `auto` lets the split take.

  Raises:
    ConfigError: if `mode` is resident and the split is larger than a device's memory.
  """
  resident, reason = choose(mode, share=share, needed=num_bytes(split), memory=agreed_memory())
  return resident_input(split, mesh, reason=reason) if resident else streamed_input(split, reason=reason)


def choose(mode: str, *, share: float, needed: int, memory: int) -> tuple[bool, str]:
  """Whether the split becomes resident, and why, in a line for the log.

  Args:
    mode: auto, resident or streamed.
    share: of a device's memory that `auto` lets the split take.
    needed: bytes that the split takes on every device.
    memory: bytes that a device has, 0 where it does not say.

  Raises:
    ConfigError: if `mode` is resident and the split is larger than a device's memory.
  """
  if mode == 'streamed':
    return False, 'streamed, as config.data.mode asks'
  if mode == 'resident':
    if 0 < memory < needed:
      raise ConfigError(
        f'config.data.mode=resident: the train split takes {_size(needed)} on every device, which has '
        f'{_size(memory)}; choose streamed, or auto'
      )
    return True, f'resident, {_size(needed)} a device, as config.data.mode asks'
  if not memory:
    return False, 'streamed, the devices do not say how much memory they have'
  if needed > share * memory:
    return False, f'streamed, {_size(needed)} on every device do not fit in {share:g} x {_size(memory)}'
  return True, f'resident, {_size(needed)} a device of {_size(share * memory)} allowed'


def _size(num: float) -> str:
  return f'{num / 1e9:.1f} GB' if num >= 1e9 else f'{num / 1e6:.1f} MB'


def agreed_memory() -> int:
  """The least memory of a device of any process, in bytes, so that all processes choose the same way."""
  memory = device_memory()
  if jax.process_count() > 1:  # In MiB, because bytes would be cut to 32 bits.
    memory = int(multihost_utils.process_allgather(np.int32(memory >> 20)).min()) << 20
  return memory


def device_memory() -> int:
  """Bytes of memory for arrays of a device of this process; a CPU device has its part of the host's; 0 if unknown."""
  devices = jax.local_devices()
  if devices[0].platform == 'cpu':
    return host_memory() // len(devices)
  return min(int((device.memory_stats() or {}).get('bytes_limit', 0)) for device in devices)


def host_memory() -> int:
  """Bytes of the host's memory that can be had without swapping; 0 if unknown."""
  try:
    lines = Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return 0
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')), 0)


def arrays(split: Split) -> Source:
  """The split as it is placed: a batch of all rows, but for images that are flat, uint8 `[n, h*w*3]`.

  An image kept as `[h, w, 3]` would take 40 times its bytes on a TPU, where a last axis of 3 is padded to 128.
  """
  images = split.images.reshape(len(split), -1)  # A view: the file stays mapped.
  return {'image': images, 'labels': split.labels, 'mask': split.mask, 'example_id': split.example_id}


def num_bytes(split: Split) -> int:
  """What the split takes on every device, without the padding that some devices add."""
  return sum(values.nbytes for values in jax.tree.leaves(arrays(split)))


def resident_input(split: Split, mesh: Mesh, *, reason: str) -> Input:
  """Positions travel to the devices, 4 bytes an example; the step takes the examples from memory."""
  return Input(
    reason=reason,
    place=partial(place, split, mesh),
    read=_positions_32,
    fetch=partial(gather, mesh=mesh, image_shape=split.images.shape[1:]),
  )


def _positions_32(positions: Int64[np.ndarray, ' b']) -> Int32[np.ndarray, ' b']:
  return positions.astype(np.int32)


def place(split: Split, mesh: Mesh) -> Source:
  """The whole split on every device of the mesh; every process reads it for its own devices."""
  whole = sharding.replicated(mesh)

  def put(values: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(values.shape, whole, lambda index: values[index])

  return jax.tree.map(put, arrays(split))


def gather(source: Source, positions: Int32[Array, ' b'], *, mesh: Mesh, image_shape: tuple[int, ...]) -> Batch:
  """The batch at these positions, split by rows, as `Split.read` gives it; to be called inside a compiled step.

  Each device takes its rows from its own copy of the split, so nothing travels between devices.
  """

  def own_rows(source: Source, positions: Int32[Array, ' b']) -> Batch:
    batch = jax.tree.map(lambda values: values.at[positions].get(mode='promise_in_bounds'), source)
    return batch | {'image': batch['image'].reshape(-1, *image_shape)}

  by_rows = PartitionSpec('data')
  batch = jax.shard_map(own_rows, mesh=mesh, in_specs=(PartitionSpec(), by_rows), out_specs=by_rows)(source, positions)
  # What follows must not be fused with the gather: it is then compiled as for a streamed batch, to the same bits.
  return jax.lax.optimization_barrier(batch)
