"""Numbers per task that a loss weighting learns beside the network, with an Adam of their own in the method's state.

The published implementations give them to the network's optimizer; here its schedule, clipping and weight decay do not
reach them, so a method means the same whatever the network is trained with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float
from mtl_jax.objectives.weighting.adam import Adam


class Learned(NamedTuple):
  """The numbers `[K]` and their optimizer's state."""

  values: Float[Array, ' k']
  optimizer: Any


def begin(num_tasks: int, start: float, tx: Adam) -> Learned:
  """All numbers at their start."""
  values = jnp.full(num_tasks, start, jnp.float32)
  return Learned(values, tx.init(values))


def step(state: Learned, gradient: Float[Array, ' k'], *, present: Bool[Array, ' k'], tx: Adam) -> Learned:
  """One step of the optimizer; the numbers and moments of absent tasks stay as they are."""
  moved = Learned(*tx.step(state.values, jnp.where(present, gradient, 0), state.optimizer))
  return jax.tree.map(lambda new, old: jnp.where(present, new, old) if new.ndim else new, moved, state)


def learned(rule: Callable[..., Float[Array, ' k']], *, start: float, learning_rate: float) -> Objective:
  """The objective `sum_k rule(values, losses)[k]` over the tasks present, whose numbers descend it with the network."""
  tx = Adam(learning_rate)

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
