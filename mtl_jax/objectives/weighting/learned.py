"""Numbers per task that a loss weighting learns beside the network, with an Adam of their own in the method's state.

The published implementations give them to the network's optimizer; here its schedule, clipping and weight decay do not
reach them, so a method means the same whatever the network is trained with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from mtl_jax.objectives.objective import Objective


class Learned(NamedTuple):
  """The numbers `[K]` and their optimizer's state."""

  values: Float[Array, ' k']
  optimizer: Any


def begin(num_tasks: int, start: float, tx: optax.GradientTransformation) -> Learned:
  """All numbers at their start."""
  values = jnp.full(num_tasks, start, jnp.float32)
  return Learned(values, tx.init(values))


def step(
  state: Learned, gradient: Float[Array, ' k'], *, present: Bool[Array, ' k'], tx: optax.GradientTransformation
) -> Learned:
  """One step of the optimizer; the numbers and moments of absent tasks stay as they are."""
  updates, optimizer = tx.update(jnp.where(present, gradient, 0), state.optimizer, state.values)
  moved = Learned(optax.apply_updates(state.values, updates), optimizer)  # pyright: ignore[reportArgumentType]
  return jax.tree.map(lambda new, old: jnp.where(present, new, old) if new.ndim else new, moved, state)


def learned(rule: Callable[..., Float[Array, ' k']], *, start: float, learning_rate: float) -> Objective:
  """The objective `sum_k rule(values, losses)[k]` over the tasks present, whose numbers descend it with the network."""
  tx = optax.adam(learning_rate)

  def total(values, losses, present):
    return jnp.where(present, rule(values, losses), 0).sum()

  def init(num_tasks, like=None):
    del like
    return begin(num_tasks, start, tx)

  def update(losses, state, *, present, key):
    del key
    gradient = jax.grad(total)(state.values, jax.lax.stop_gradient(losses), present)
    return total(state.values, losses, present), step(state, gradient, present=present, tx=tx)

  return Objective(init, update)
