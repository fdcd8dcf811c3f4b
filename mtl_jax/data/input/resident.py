"""The train split resident in device memory: whether it fits, placing it, and gathering batches inside the step."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int32, Int64

from mtl_jax.data.input.pipeline import Batch, Input, Split, streamed_input
from mtl_jax.data.input.sampler import Sampler
from mtl_jax.errors import ConfigError
from mtl_jax.platform import memory, sharding

Source = dict[str, Any]  # The rows on each device: inputs, such as image uint8 [r, h*w*3], labels, mask, example_id.
Rows = list[Int64[np.ndarray, ' r']]  # For each device along `data`, the positions of the rows it needs, sorted.


def train_input(split: Split, sampler: Sampler, mesh: Mesh, *, mode: str, share: float) -> Input:
  """The train split's input, resident or streamed as `choose` decides; both give bitwise identical batches.

  The sampler says which rows come to which places of a batch, and so which of them each device of the mesh needs.
  """
  rows = rows_of_devices(sampler, mesh)
  most = max(map(len, rows))
  needed = most * bytes_a_row(split)
  available = memory.least_of_processes(memory.available_bytes())
  resident, reason = choose(mode, share=share, needed=needed, part=most / len(split), available=available)
  return resident_input(split, rows, mesh, reason=reason) if resident else streamed_input(split, reason=reason)


def choose(mode: str, *, share: float, needed: int, part: float, available: int) -> tuple[bool, str]:
  """Decides if the split becomes resident, and gives the reason as a line for the log.

  Args:
    mode: auto, resident or streamed.
    share: of a device's memory that `auto` lets the split take.
    needed: bytes that it takes on a device.
    part: what part of the split that is.
    available: bytes that arrays can have of a device, 0 where it does not say.

  Raises:
    ConfigError: if `mode` is resident and a device needs more than its memory.
  """
  if mode == 'streamed':
    return False, 'streamed, as config.data.mode asks'
  size = f'{_size(needed)} on every device ({part:.0%} of the train split)'
  if mode == 'resident':
    if 0 < available < needed:
      raise ConfigError(
        f'config.data.mode=resident: takes {size}, but a device has {_size(available)}; choose streamed, or auto'
      )
    return True, f'resident, {size}, as config.data.mode asks'
  if not available:
    return False, 'streamed, the devices do not say how much memory they have'
  if needed > share * available:
    return False, f'streamed, {size} do not fit in {share:g} x {_size(available)}'
  return True, f'resident, {size}, of {_size(share * available)} allowed'


def _size(num: float) -> str:
  return f'{num / 1e9:.1f} GB' if num >= 1e9 else f'{num / 1e6:.1f} MB'


def rows_of_devices(sampler: Sampler, mesh: Mesh) -> Rows:
  """The rows that each device along `data` needs: those that can come to its places of a batch.

  A process takes its places of the batch in the order of processes, wherever the mesh has its devices.
  """
  processes = [device.process_index for device in mesh.devices[:, 0]]
  places = len(sampler.sets) // len(processes)  # Of a device.
  rows: Rows = []
  for number, process in enumerate(processes):
    before = sum(other < process for other in processes) + processes[:number].count(process)
    rows.append(sampler.reach(slice(before * places, (before + 1) * places)))
  return rows


def bytes_a_row(split: Split) -> int:
  """Bytes of a row of the split on a device, without the padding that some devices add."""
  return sum(values.nbytes // len(split) for values in jax.tree.leaves(_arrays(split)))


def _arrays(split: Split) -> Source:
  return {**split.inputs, 'labels': split.labels, 'mask': split.mask, 'example_id': split.example_id}


def row_shapes(split: Split) -> dict[str, Any]:
  """Shapes of one example's arrays, in a tree as theirs: on a device they lie flat."""
  return jax.tree.map(lambda values: values.shape[1:], _arrays(split))


def resident_input(split: Split, rows: Rows, mesh: Mesh, *, reason: str) -> Input:
  """Keeps the split in device memory and sends row numbers, 4 bytes an example; the step gathers the examples.

  That is a kilobyte for 256 of them, sent ahead by a thread; the device could make them itself only with 64-bit
  integers, which JAX does not have by default.
  """
  process = jax.process_index()
  own = [rows[i] for i, device in enumerate(mesh.devices[:, 0]) if device.process_index == process]
  numbers = np.full((len(own), len(split)), -1, np.int32)
  for device, held in enumerate(own):
    numbers[device, held] = np.arange(len(held))

  def read(positions: Int64[np.ndarray, '... b']) -> Int32[np.ndarray, '... b']:
    """This process's positions of batches as row numbers in the memory of the devices that take them."""
    size = positions.shape[-1]
    return numbers[np.arange(size) * len(own) // size, positions]

  return Input(
    reason=reason,
    place=partial(place, split, rows, mesh),
    read=read,
    fetch=partial(gather, mesh=mesh, shapes=row_shapes(split)),
  )


def place(split: Split, rows: Rows, mesh: Mesh) -> Source:
  """Places each device's rows in its memory, as a global array; a process reads only the rows of its own devices.

  Images are flat: kept as `[h, w, 3]` they would take 40 times their bytes on a TPU, where a last axis of 3 is padded
  to 128. Where devices need unequal numbers of rows, the last one fills up.
  """
  most = max(map(len, rows))

  def put(values: Any) -> jax.Array:
    shape = values.shape[1:] if len(values.shape) < 3 else (int(np.prod(values.shape[1:])),)

    whole = cache(lambda: values[:].reshape(-1, *shape))  # Devices that all hold everything read it once.

    def rows_of_device(index: Any) -> np.ndarray:
      held = rows[(index[0].start or 0) // most]
      if len(held) == len(values):
        return whole()
      return values.take(np.pad(held, (0, most - len(held)), mode='edge'), axis=0).reshape(-1, *shape)

    return jax.make_array_from_callback((len(rows) * most, *shape), sharding.by_rows(mesh), rows_of_device)

  source = _arrays(split)
  placed = {name: put(source.pop(name)) for name in split.inputs}  # Reads them, so that corrupt ones are known.
  split.mask_corrupt(np.unique(np.concatenate(rows)))
  return placed | jax.tree.map(put, source)


def take_rows(source: Source, numbers: Int32[Array, ' b'], *, shapes: Mapping[str, Any]) -> Batch:
  """Takes rows of a source on one device, and restores their shapes."""
  take = lambda values, shape: values.at[numbers].get(mode='promise_in_bounds').reshape(-1, *shape)  # noqa: E731
  return jax.tree.map(take, source, shapes)


def gather(source: Source, numbers: Int32[Array, ' b'], *, mesh: Mesh, shapes: Mapping[str, Any]) -> Batch:
  """Gathers a batch, divided by rows, as `Split.read` gives it; called inside a compiled step.

  Each device takes its rows from its own memory, so nothing travels between devices.
  """

  by_rows = PartitionSpec('data')
  own_rows = partial(take_rows, shapes=shapes)
  batch = jax.shard_map(own_rows, mesh=mesh, in_specs=by_rows, out_specs=by_rows)(source, numbers)
  # What follows must not be fused with the gather: it is then compiled as for a streamed batch, to the same bits.
  return jax.lax.optimization_barrier(batch)
