"""Cost of a model: its parameters, in a table, and the floating-point operations of a forward pass."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from flax import traverse_util

DEPTH = 3  # Of names in the table: shared, backbone, block.


def num_parameters(params: Any) -> int:
  """Numbers in a tree of arrays or of their shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


# A line of the table; its fields are the columns.
Row = dataclasses.make_dataclass('Row', [('part', str), ('arrays', int), ('parameters', int)])


def parameter_table(params: Mapping[str, Any]) -> str:
  """Counts the parameters of each part of the model: heads, and the blocks and layers of backbones."""
  sizes: dict[str, list[int]] = {}
  leaves: Any = traverse_util.flatten_dict(params)
  for path, leaf in leaves.items():
    part = path[:-1][:DEPTH] if path[0] == 'shared' else path[:1]
    sizes.setdefault('/'.join(part), []).append(leaf.size)
  return parameter_overview.make_table([Row(part, len(own), sum(own)) for part, own in sizes.items()])


def flops(
  outputs: Callable[[Any, Any], Any], variables: Mapping[str, Any], input_shape: tuple[int, ...]
) -> float | None:
  """Floating-point operations of `outputs(variables, inputs)` for one input, a multiply-add counting as two.

  As XLA counts them, of the program as it is traced, so nothing is compiled. None where the platform does not count.
  """
  images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  analysis: Any = jax.jit(outputs).lower(variables, images).cost_analysis()
  return analysis['flops'] if analysis and 'flops' in analysis else None
