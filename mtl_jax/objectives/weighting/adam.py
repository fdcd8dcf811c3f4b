"""Adam for the few numbers that a weighting learns, so that objectives need no optimizer library."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mtl_jax.objectives.shapes import Array, Int32

FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
  """Steps taken, and the averages of the gradient and of its square."""

  count: Int32[Array, '']
  mu: Array
  nu: Array


class Adam(NamedTuple):
  """Adam (Kingma and Ba 2015, arXiv:1412.6980) with its paper's decay rates.

  Its numbers are Optax's to the bit, and so is its state's structure, empty parts included: a checkpoint of either
  restores into the other.

  Attributes:
    rate: the learning rate.
    decay: times the values, added to their gradient; None adds nothing.
  """

  rate: float
  decay: float | None = None

  def init(self, values: Array) -> Any:
    """The state before the first step."""
    adam = (Moments(jnp.zeros((), jnp.int32), jnp.zeros_like(values), jnp.zeros_like(values)), ())
    return adam if self.decay is None else ((), adam)

  def step(self, values: Array, gradient: Array, state: Any) -> tuple[Array, Any]:
    """The values after one step, and the next state."""
    (moments, _) = state if self.decay is None else state[1]
    if self.decay is not None:
      gradient = gradient + self.decay * values
    count = moments.count + 1
    mu = (1 - FIRST) * gradient + FIRST * moments.mu
    nu = (1 - SECOND) * gradient**2 + SECOND * moments.nu
    size = jnp.sqrt(nu / (1 - SECOND**count)) + EPSILON
    adam = (Moments(count, mu, nu), ())
    return values + -self.rate * (mu / (1 - FIRST**count) / size), adam if self.decay is None else ((), adam)
