"""Gradient accumulation: the shared layers read a batch in micro-batches, with the activations of one at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64
from ml_collections import ConfigDict

from mtl_jax.errors import ConfigError

Apply = Callable[[Mapping[str, Any], Array], tuple[Any, Mapping[str, Any]]]


def scan(
  apply: Apply,
  variables: Mapping[str, Any],
  images: Float[Array, 'b ...'],
  *,
  part: Int64[np.ndarray, ' b'],
  num: int,
) -> tuple[Any, Mapping[str, Any]]:
  """Applies `apply` to `num` micro-batches in turn; returns their outputs as one batch, and what they have changed.

  Each is computed again in the backward pass, which adds its gradient to the others', so the activations of one
  micro-batch are in memory at a time, for a forward pass more: a third more work. Heads and losses still see the whole
  batch: labels are averaged over the global batch, however unequally the micro-batches have them, and all
  objectives, those that balance gradients too, do what they would do with the big batch.

  Without batch norm the result is that of one `apply` to all rows, to rounding. Batch norm takes its statistics from
  each micro-batch (over all devices), as for a batch of that size, and its running averages move `num` times.

  Args:
    apply: variables and rows to an output, a tree of arrays by rows, and the variables it has changed.
    variables: to begin with; what has changed is handed on from one micro-batch to the next.
    images: rows, whose number `num` divides.
    part: of each row, the micro-batch that reads it: see `batch_parts` in `objectives/loss_terms.py`.
    num: of micro-batches.
  """
  by_block = part.reshape(-1, num)  # In each block one row of every micro-batch, so that no row changes its device.
  pieces = _along(images.reshape(*by_block.shape, *images.shape[1:]), np.argsort(by_block, axis=1)).swapaxes(0, 1)
  changing = {name: variables[name] for name in jax.eval_shape(apply, variables, pieces[0])[1]}

  @jax.checkpoint
  def one(variables: Mapping[str, Any], changing: Mapping[str, Any], piece: Array) -> tuple[Mapping[str, Any], Any]:
    output, changed = apply({**variables, **changing}, piece)
    return changed, output

  changing, stacked = jax.lax.scan(lambda changing, piece: one(variables, changing, piece), changing, pieces)

  def in_order(leaf: Array) -> Array:
    return _along(leaf.swapaxes(0, 1), by_block).reshape(images.shape[0], *leaf.shape[2:])

  return jax.tree.map(in_order, stacked), changing


def _along(blocks: Float[Array, 'n p ...'], places: np.ndarray) -> Float[Array, 'n p ...']:
  """The rows of each block in another order."""
  places = places.reshape(*places.shape, *[1] * (blocks.ndim - 2))
  return jnp.take_along_axis(blocks, places, axis=1, mode='promise_in_bounds')


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
      f'config.model.norm_rows: {config.model.norm_rows} does not divide the {rows // num} rows that '
      'config.train.batch_size and accumulate leave a micro-batch'
    )
