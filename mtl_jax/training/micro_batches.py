"""Gradient accumulation: the shared part reads a batch in micro-batches, and keeps one's activations at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mtl_jax.errors import ConfigError
from mtl_jax.objectives import grain

Apply = Callable[[Mapping[str, Any], Array], tuple[Any, Mapping[str, Any]]]


def in_turn(
  apply: Apply, variables: Mapping[str, Any], images: Float[Array, 'b ...'], *, num: int
) -> tuple[Any, Mapping[str, Any]]:
  """`apply` to `num` micro-batches one after the other; their outputs as one batch, and what they have changed.

  Each is computed again in the backward pass, which adds its gradient to the others', so the activations of one
  micro-batch are in memory at a time, for a forward pass more: a third more work. Heads and losses still see the whole
  batch: labels are averaged over the global batch, however unequally the micro-batches have them, and all
  objectives, those that balance gradients too, do what they would do with the big batch.

  Without batch norm the result is that of one `apply` to all rows, to rounding. Batch norm takes its statistics from
  each micro-batch (over all devices), as for a batch of that size, and its running averages move `num` times.

  Micro-batch i is part i of `objectives/grain.py:batch_parts`.

  Args:
    apply: variables and rows to an output, a tree of arrays by rows, and the variables it has changed.
    variables: to begin with; what has changed is handed on from one micro-batch to the next.
    images: rows, whose number `num` divides.
    num: of micro-batches.
  """
  devices = grain.parts_by_device(len(images), num)
  runs = images.reshape(devices, num, -1, *images.shape[1:])
  pieces = _moved_on(runs, by=-1).swapaxes(0, 1).reshape(num, -1, *images.shape[1:])
  changing = {name: variables[name] for name in jax.eval_shape(apply, variables, pieces[0])[1]}

  @jax.checkpoint
  def one(variables: Mapping[str, Any], changing: Mapping[str, Any], piece: Array) -> tuple[Mapping[str, Any], Any]:
    output, changed = apply({**variables, **changing}, piece)
    return changed, output

  changing, stacked = jax.lax.scan(lambda changing, piece: one(variables, changing, piece), changing, pieces)

  def in_order(leaf: Array) -> Array:
    by_device = leaf.reshape(num, devices, -1, *leaf.shape[2:]).swapaxes(0, 1)
    return _moved_on(by_device, by=1).reshape(images.shape[0], *leaf.shape[2:])

  return jax.tree.map(in_order, stacked), changing


def _moved_on(runs: Float[Array, 'd n ...'], *, by: int) -> Float[Array, 'd n ...']:
  """Reorders rows so that place j of device d holds its run `j + by * d`, in turn: no row changes its device."""
  devices, num = runs.shape[:2]
  places = (np.arange(num) + by * np.arange(devices)[:, None]) % num
  return jnp.take_along_axis(runs, places.reshape(devices, num, *[1] * (runs.ndim - 2)), axis=1)


def check(config: ConfigDict) -> None:
  """Raises ConfigError if the batch does not divide into micro-batches, or these among devices."""
  rows, num = config.train.batch_size, config.train.accumulate
  if num > 1 and rows % (num * jax.device_count()):
    raise ConfigError(
      f'config.train.accumulate: a batch of {rows} has no {num} micro-batches that {jax.device_count()} devices can '
      'share equally; choose another train.batch_size or train.accumulate'
    )
  if config.model.norm_rows and (rows // num) % config.model.norm_rows:
    raise ConfigError(
      f'config.model.norm_rows: {config.model.norm_rows} does not divide a micro-batch of {rows // num} rows, which '
      'config.train.accumulate makes'
    )
