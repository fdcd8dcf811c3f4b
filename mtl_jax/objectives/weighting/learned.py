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
# The numbers stay between its negative and this. Their exponentials are factors from 2e-9 to 5e8, right for losses of
# these sizes; a task that is learned exactly would ask for ever larger ones, until float32 overflows.
FARTHEST = 20.0
STEEPEST = 1e18  # Of a slope that Adam squares.


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
  """Adam (Kingma and Ba 2015, arXiv:1412.6980) with its paper's decay rates, for numbers per task up to `FARTHEST`.

  Up to there its results are Optax's to the bit, and so is its state's structure, empty parts included: a checkpoint of
  either restores into the other.

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
    values, gradient = state.values, jnp.clip(jnp.where(present, gradient, 0), -STEEPEST, STEEPEST)
    old, _ = state.optimizer if self.decay is None else state.optimizer[1]
    if self.decay is not None:
      gradient = gradient + self.decay * values
    count = old.count + 1
    mu = (1 - FIRST) * gradient + FIRST * old.mu
    nu = (1 - SECOND) * gradient**2 + SECOND * old.nu
    size = jnp.sqrt(nu / (1 - SECOND**count)) + EPSILON
    new = jnp.clip(values + -self.rate * (mu / (1 - FIRST**count) / size), -FARTHEST, FARTHEST)
    kept = Moments(count, jnp.where(present, mu, old.mu), jnp.where(present, nu, old.nu))
    return Learned(jnp.where(present, new, values), (kept, ()) if self.decay is None else ((), (kept, ())))


def learned(total: Callable[..., Float[Array, '']], *, start: float, learning_rate: float) -> Objective:
  """The objective `total(values, losses, present)`, whose numbers, one a task, descend it with the network."""
  adam = Adam(learning_rate)

  def update(losses, state, *, present, key):
    gradient = jax.grad(total)(state.values, jax.lax.stop_gradient(losses), present)
    return total(state.values, losses, present), adam.step(state, gradient, present=present)

  return Objective(lambda num_tasks, like=None: adam.begin(num_tasks, start), update)
