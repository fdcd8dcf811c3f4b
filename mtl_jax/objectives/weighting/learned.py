"""Numbers per task that a loss weighting learns beside the network, with an Adam of their own in the method's state.

The published implementations give them to the network's optimizer; here its schedule, clipping and weight decay do not
reach them, so a method means the same whatever the network is trained with, and objectives need no optimizer library.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float, Int32

FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
  """Steps taken, and the averages of the gradient and of its square."""

  count: Int32[Array, '']
  mu: Array
  nu: Array


class Learned(NamedTuple):
  """The numbers `[K]` and their optimizer's state."""

  values: Float[Array, ' k']
  optimizer: Any


class Adam(NamedTuple):
  """Adam (Kingma and Ba 2015, arXiv:1412.6980) with its paper's decay rates, for numbers per task.

  Its results are Optax's to the bit, and so is its state's structure, empty parts included: a checkpoint of either
  restores into the other.

  Attributes:
    rate: the learning rate.
    decay: times the values, added to their gradient; None adds nothing.
  """

  rate: float
  decay: float | None = None

  def begin(self, num_tasks: int, start: float = 0.0) -> Learned:
    """All numbers at their start."""
    values = jnp.full(num_tasks, start, jnp.float32)
    adam = (Moments(jnp.zeros((), jnp.int32), jnp.zeros_like(values), jnp.zeros_like(values)), ())
    return Learned(values, adam if self.decay is None else ((), adam))

  def step(self, state: Learned, gradient: Float[Array, ' k'], *, present: Bool[Array, ' k']) -> Learned:
    """The next numbers; those of absent tasks, and their moments, stay as they are."""
    values, gradient = state.values, jnp.where(present, gradient, 0)
    old, _ = state.optimizer if self.decay is None else state.optimizer[1]
    if self.decay is not None:
      gradient = gradient + self.decay * values
    count = old.count + 1
    mu = (1 - FIRST) * gradient + FIRST * old.mu
    nu = (1 - SECOND) * gradient**2 + SECOND * old.nu
    size = jnp.sqrt(nu / (1 - SECOND**count)) + EPSILON
    new = values + -self.rate * (mu / (1 - FIRST**count) / size)
    kept = Moments(count, jnp.where(present, mu, old.mu), jnp.where(present, nu, old.nu))
    return Learned(jnp.where(present, new, values), (kept, ()) if self.decay is None else ((), (kept, ())))


def learned(total: Callable[..., Float[Array, '']], *, start: float, learning_rate: float) -> Objective:
  """The objective `total(values, losses, present)`, whose numbers, one a task, descend it with the network."""
  adam = Adam(learning_rate)

  def init(num_tasks, like=None):
    return adam.begin(num_tasks, start)

  def update(losses, state, *, present, key):
    gradient = jax.grad(total)(state.values, jax.lax.stop_gradient(losses), present)
    return total(state.values, losses, present), adam.step(state, gradient, present=present)

  return Objective(init, update)
