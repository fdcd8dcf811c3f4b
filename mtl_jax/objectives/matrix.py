"""A method on a plain matrix of gradients, for tests and for teaching."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtl_jax import objectives
from mtl_jax.errors import ConfigError
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float


def aggregate(
  matrix: ArrayLike,
  method: str | Objective,
  *,
  losses: ArrayLike | None = None,
  present: ArrayLike | Sequence[bool] | None = None,
  key: Any = None,
  **options: Any,
) -> Float[Array, ' n']:
  """The update that a method makes of K gradients in its first step.

  >>> aggregate(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), 'upgrad').round(2)
  Array([0.29, 1.9 , 1.9 ], dtype=float32)

  Args:
    matrix: `[K, n]`, a gradient a row. A method that takes three batches is given the same in each.
    method: one of `OBJECTIVES`, whose `options` follow, or an objective.
    losses: `[K]`, of the tasks; ones by default. In class L the update is the sum of the rows times the slopes of the
      total.
    present: `[K]`, which rows count; all by default.
    key: for methods that draw; one of seed 0 by default.

  Raises:
    ValueError: the matrix is none, or another argument is not of K.
    ConfigError: there is no such method.
  """
  matrix = jnp.asarray(matrix, jnp.float32)
  if matrix.ndim != 2:
    raise ValueError(f'the matrix of gradients must be [K, n], not {list(matrix.shape)}')
  if isinstance(method, str) and method not in objectives.OBJECTIVES:
    raise ConfigError(f'method {method!r} is unknown; choose from {", ".join(objectives.OBJECTIVES)}')
  objective = objectives.OBJECTIVES[method](**options) if isinstance(method, str) else method
  state, key = objective.init(len(matrix), matrix[0]), jax.random.key(0) if key is None else key
  losses = jnp.ones(len(matrix)) if losses is None else jnp.asarray(losses, jnp.float32)
  if objective.needs == 'losses':
    slopes = jax.grad(lambda losses: objective.update(losses, state, present=present, key=key)[0])(losses)
    return slopes @ jnp.where(slopes[:, None] != 0, matrix, 0)
  rows = matrix if objective.parts == 1 else jnp.stack([matrix] * objective.parts)
  return objective.update(rows, state, losses=losses, present=present, key=key)[0]
