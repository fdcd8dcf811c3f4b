"""Arithmetic over the tasks that are present, finite where a loss is zero."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.objectives.shapes import Array, Bool, Float

LEAST_LOSS = 1e-8  # Smaller losses count as this where a rule takes a logarithm or divides.
NEVER = -1e30  # Logit of an absent task: infinity would make NaN where all are absent.


def safe(losses: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """The losses, at least `LEAST_LOSS` and without gradient below it; 1 for absent tasks."""
  return jnp.where(present, jnp.maximum(losses, LEAST_LOSS), 1)


def count(present: Bool[Array, ' k']) -> Float[Array, '']:
  """How many tasks are present, at least 1."""
  return jnp.maximum(present.sum(), 1).astype(jnp.float32)


def mean(values: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, '']:
  """Mean over the tasks present; 0 if there is none."""
  return jnp.where(present, values, 0).sum() / count(present)


def softmax(logits: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """Softmax over the tasks present, 0 for the others."""
  return jnp.where(present, jax.nn.softmax(jnp.where(present, logits, NEVER)), 0)


def share_out(weights: Float[Array, ' k'], held: Float[Array, ' k'], present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """Weights that sum to 1 over the tasks present, times what those held before: absent tasks keep their share.

  Otherwise the sum would grow with every batch that lacks a task, which would pay for it when it is there again.
  """
  return jnp.where(present, weights * jnp.where(present, held, 0).sum(), held)


def per_task(values: float | Sequence[float], num: int, *, name: str) -> Float[Array, '...']:
  """A number for all tasks, or one for each of `num`, as an array that fits `[K]`.

  Raises:
    ValueError: for another number of them.
  """
  array = jnp.asarray(values, jnp.float32)
  if array.ndim and array.shape != (num,):
    raise ValueError(f'{name} has {array.size} numbers for {num} losses')
  return array


def check_preference(preference: Sequence[float] | None, *, name: str) -> None:
  """Raises ConfigError for a preference below 0 anywhere, or above 0 nowhere."""
  if preference is not None and (min(preference) < 0 or max(preference) <= 0):
    raise ConfigError(f'{name}: preference is {tuple(preference)}; give numbers of 0 or more, not all 0')


def preferred(preference: Sequence[float] | None, present: Bool[Array, ' k']) -> Float[Array, ' k']:
  """The preference, or equal numbers, so that they sum to 1 over the tasks present; 0 for the others."""
  if preference is None:
    return present / count(present)
  values = jnp.where(present, per_task(preference, len(present), name='preference'), 0)
  return values / jnp.where(values.sum() > 0, values.sum(), 1)
