"""What a training step cannot do without, and what the device reaches at all: the floor under a step."""

import dataclasses
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from workload import Workload

from mtl_jax.models.cost import num_parameters


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a training step cannot do without.

  Attributes:
    flops: of its products: three times the forward pass's, a multiply-add counting as two.
    bytes: each map that a convolution or dense layer reads or writes moves once forward and twice backward, in the
      type of the computation; parameters are read twice, their gradient, and both moments of Adam read and written.
      Everything else (normalisation, activations, sums) is taken to ride along.
  """

  flops: float
  bytes: float


def cost_of(workload: Workload) -> Cost:
  """Counted from the traced forward pass; nothing is compiled."""
  state = jax.eval_shape(workload.make_state)
  images = jax.ShapeDtypeStruct((workload.batch, workload.size, workload.size, 3), jnp.float32)
  apply = partial(workload.model.module.apply, train=True, mutable=['batch_stats'])
  with _as_on_an_accelerator():
    traced: Any = jax.make_jaxpr(apply)(dict(state.variables), images)
  flops, moved = _products(traced.jaxpr)
  itemsize = jnp.dtype(workload.dtype).itemsize
  return Cost(3.0 * flops, 3.0 * moved * itemsize + num_parameters(state.variables['params']) * (2 * itemsize + 4 * 8))


def _as_on_an_accelerator() -> Any:
  """Convolutions in their native form, whose operands are the maps themselves."""
  return mock.patch.object(jax, 'default_backend', return_value='gpu')


def _products(jaxpr: Any) -> tuple[float, float]:
  """FLOPs of all convolutions and matrix products, and numbers in the maps that go in and out of them."""
  flops = moved = 0.0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name in ('conv_general_dilated', 'dot_general'):
      lhs, rhs, out = (np.prod(v.aval.shape) for v in (*eqn.invars[:2], eqn.outvars[0]))
      if name == 'dot_general':
        (contracted, _), _ = eqn.params['dimension_numbers']
        terms = np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
      else:
        terms = rhs / eqn.outvars[0].aval.shape[eqn.params['dimension_numbers'].out_spec[1]]
      flops, moved = flops + 2.0 * out * terms, moved + lhs + out
    for inner in _inner(eqn.params):
      more = _products(inner)
      flops, moved = flops + more[0], moved + more[1]
  return flops, moved


def _inner(params: Mapping[str, Any]) -> list[Any]:
  """The programs inside an equation."""
  found = []
  for value in params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if hasattr(one, 'jaxpr'):
        found.append(one.jaxpr)
      elif hasattr(one, 'eqns'):
        found.append(one)
  return found


def matmul_flops_per_sec(dtype: str) -> float:
  """The best of several matrix products of random numbers: what this device reaches at all."""
  on_cpu = jax.default_backend() == 'cpu'
  size, times = (1024, 2) if on_cpu else (8192, 20)
  a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
  product = jax.jit(jnp.matmul)
  return 2.0 * size**3 * times / _best_secs(lambda: [product(a, b) for _ in range(times)])


def copy_bytes_per_sec() -> float:
  """Bytes read and written in a second by a pass over an array too large for any cache."""
  rows, times = (2**24, 2) if jax.default_backend() == 'cpu' else (2**29, 20)
  x = jnp.arange(rows, dtype=jnp.float32)
  plus_one = jax.jit(lambda x: x + 1)
  return 8.0 * rows * times / _best_secs(lambda: [plus_one(x) for _ in range(times)])


def _best_secs(work: Any, rounds: int = 5) -> float:
  jax.block_until_ready(work())
  best = math.inf
  for _ in range(rounds):
    began = time.perf_counter()
    jax.block_until_ready(work())
    best = min(best, time.perf_counter() - began)
  return best
