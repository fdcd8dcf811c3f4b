"""Arithmetic over the tasks that are present, finite where a loss is zero."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.objectives.shapes import Array, Bool, Float

LEAST_LOSS = 1e-8  # Smaller losses count as this where a rule takes a logarithm or divides.
NEVER = -1e30  # Logit of an absent task: infinity would make NaN where all are absent.


def safe(losses: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """The losses, at least `LEAST_LOSS` and without gradient below it; 1 for absent tasks."""
  return jnp.where(present, jnp.maximum(losses, LEAST_LOSS), 1)


def count(present: Bool[Array, ' k']) -> Float[Array, '']:
  """The number of tasks present, at least 1."""
  return jnp.maximum(present.sum(), 1).astype(jnp.float32)


def mean(values: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, '']:
  """Mean over the tasks present; 0 if there is none."""
  return total(values, present) / count(present)


def softmax(logits: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """Softmax over the tasks present, 0 for the others."""
  return jnp.where(present, jax.nn.softmax(jnp.where(present, logits, NEVER)), 0)


def share_out(weights: Float[Array, ' k'], held: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """Weights that sum to 1 over the tasks present, times what those held before: absent tasks keep their share.

  Otherwise the sum would grow with every batch that lacks a task, which would pay for it when it is there again.
  """
  return jnp.where(present, weights * total(held, present), held)


def per_task(values: float | Sequence[float], num: int, *, name: str) -> Float[Array, '...']:
  """A number for all tasks, or one for each of `num`, as an array that fits `[K]`.

  Raises:
    ValueError: for another number of them.
  """
  array = jnp.asarray(values, jnp.float32)
  if array.ndim and array.shape != (num,):
    raise ValueError(f'{name} has {array.size} numbers for {num} losses')
  return array


def drawn_with(key: Any) -> Any:
  """The key of a method that draws at random.

  Raises:
    TypeError: there is none.
  """
  if key is None:
    raise TypeError('this method draws at random: give key=jax.random.key(...), another one each step')
  return key


def normalized(values: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """Values of 0 or more, brought to a sum of 1 over the tasks present; 0 for the others."""
  values = jnp.where(present, values, 0)
  return values / jnp.where(values.sum() > 0, values.sum(), 1)


def equal(present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """`1 / K` for each of the K tasks present; 0 for the others."""
  return present / count(present)


def preference(values: Sequence[float] | None) -> Callable[[Bool[Array, ' k']], Float[Array, ' k']]:
  """A user's preference, or equal numbers, as a function of the tasks present, over which they sum to 1."""
  if values is None:
    return equal
  return lambda present: normalized(per_task(values, len(present), name='preference'), present)


def total(values: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, '']:
  """The sum over the tasks present."""
  return jnp.where(present, values, 0).sum()


def length(vector: Float[Array, ' k'], *, least: float = 0.0) -> Float[Array, '']:
  """`sqrt(|vector|^2 + least^2)` without overflow; where it is 0 its gradient is 0."""
  unit = jnp.maximum(jax.lax.stop_gradient(jnp.abs(vector).max(initial=0)), least)
  safe_unit = jnp.where(unit > 0, unit, 1)
  square = jnp.square(vector / safe_unit).sum() + jnp.square(least / safe_unit)
  return unit * jnp.sqrt(jnp.where(unit > 0, square, 1))
