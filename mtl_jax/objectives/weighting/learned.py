"""Weights that are learned beside the network, by numbers per task with an Adam of their own in the method's state.

The published implementations give them to the network's optimizer; here its schedule, clipping and weight decay do not
reach them, so a method means the same whatever the network is trained with, and objectives need no optimizer library.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, declared, number
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float, Int32
from mtl_jax.objectives.weighting import guard

FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8
# The numbers stay between its negative and this. Their exponentials are factors from 2e-9 to 5e8, right for losses of
# these sizes; a task that is learned exactly would ask for ever larger ones, until float32 overflows.
FARTHEST = 20.0
STEEPEST = 1e18  # Of a slope that Adam squares.
Start = Annotated[float, number(-FARTHEST, FARTHEST)]


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


@declared
def uncertainty(start: Start = -0.5, learning_rate: AtLeast0 = 1e-3) -> Objective:
  """`sum_k L_k / (2 exp(s_k)) + s_k / 2`, where `s_k`, the logarithm of a task's noise variance, is learned.

  Uncertainty weighting (Kendall, Gal and Cipolla 2018, arXiv:1705.07115); the form and start are LibMTL's.

  Args:
    start: every `s_k` at first.
    learning_rate: of the Adam that learns `s`; the paper and LibMTL give it to the network's own optimizer.
  """

  def total(s, losses, present):
    return guard.total(losses / (2 * jnp.exp(s)) + s / 2, present)

  return learned(total, start=start, learning_rate=learning_rate)


@declared
def imtl_l(learning_rate: AtLeast0 = 1e-3) -> Objective:
  """`sum_k exp(s_k) L_k - s_k` with `s` learned from 0: at its optimum every scaled loss is 1.

  IMTL-L (Liu et al. 2021, "Towards Impartial Multi-Task Learning").

  Args:
    learning_rate: of the Adam that learns `s`; the paper gives it to the network's own optimizer.
  """
  return learned(
    lambda s, losses, present: guard.total(jnp.exp(s) * losses - s, present), start=0.0, learning_rate=learning_rate
  )


@declared
def ldc_mtl(lam: AtLeast0 = 0.01, learning_rate: AtLeast0 = 1e-3) -> Objective:
  """`sum_k w_k L_k / sg(sum_k w_k) + lam sum_k |w_k L_k - w_(k+1) L_(k+1)|`, `w = sigmoid(s)`, s learned with the net.

  Loss discrepancy control (Xiao et al. 2025, arXiv:2502.08585), s from 1. The paper's bilevel problem, the weights'
  upper level being the second term, as the single-loop first-order method that its authors run on CelebA. The
  differences are between neighbours, so the order of the tasks matters: with lam large all `w_k L_k` become equal
  whatever it is. (On dense prediction their weights are a small network of the features instead, and losses are first
  divided by their first values or taken as logarithms.) Their CelebA runs, though set in one table with FAMO's, take a
  learning rate of 1e-3 that falls to 0.3 times every 3 epochs.

  Args:
    lam: how much the differences count; the authors take 0.01 on CelebA, 0.05 on NYUv2, 0.1 on Cityscapes.
    learning_rate: of the Adam that learns s; the authors give it to the network's own optimizer.
  """

  def total(logits, losses, present):
    weights = jnp.where(present, jax.nn.sigmoid(logits), 0)
    balanced = jnp.where(present, weights * losses, 0)
    mean = balanced.sum() / jnp.maximum(jax.lax.stop_gradient(weights).sum(), guard.LEAST_LOSS)
    order = jnp.argsort(~present, stable=True)  # Neighbours among those that are present.
    left, right = order[:-1], order[1:]
    return mean + lam * jnp.where(present[right], jnp.abs(balanced[left] - balanced[right]), 0).sum()

  return learned(total, start=1.0, learning_rate=learning_rate)
