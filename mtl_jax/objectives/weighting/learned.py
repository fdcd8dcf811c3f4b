"""Learned loss weights: parameters per task, with an Adam of their own in the method's state.

The published implementations give them to the network's optimizer; here its schedule, clipping and weight decay do not
reach them, so a method means the same whatever the network is trained with, and objectives need no optimizer library.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting, stateful
from mtl_jax.objectives.declared import AtLeast0, Exponent, NumberOrEach, declared, number
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float, Int32
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard

FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8
# The numbers stay between its negative and this. Their exponentials are factors from 2e-9 to 5e8, right for losses of
# these sizes; a task that is learned exactly would ask for ever larger ones, until float32 overflows.
FARTHEST = 20.0
STEEPEST = 1e18  # Of a slope that Adam squares.
OFFSET = 1e-8  # Of FAMO's losses.
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


class FamoState(NamedTuple):
  """The logits of the weights with their optimizer, and the logarithms of the losses before the step."""

  logits: Learned
  log_losses: Float[Array, ' k']


@declared
def famo(gamma: AtLeast0 = 1e-3, learning_rate: AtLeast0 = 0.025, least_loss: NumberOrEach = 0.0) -> Objective:
  """`sum_k z_k log D_k / sg(sum_k z_k / D_k)`, `z = softmax(w)`, `D = L - least_loss + 1e-8`.

  Fast adaptive multitask optimization (Liu et al. 2023, arXiv:2306.03792), class L with one forward pass more. After
  the step, on the same batch, `w` descends along `J_softmax^T (log D_old - log D_new)`: a task that gained more than
  the others weighs less next time.

  Args:
    gamma: weight decay of `w`, added to its gradient; 0.001 is the paper's on CelebA.
    learning_rate: of the Adam that moves `w`.
    least_loss: the smallest value that a loss can take, one for all or one for each.
  """
  adam = Adam(learning_rate, decay=gamma)

  def logarithms(losses, present):
    least = guard.per_task(least_loss, len(losses), name='least_loss')
    return jnp.log(jnp.where(present, jnp.maximum(losses - least, 0) + OFFSET, 1))

  def start(num_tasks, like=None):
    return FamoState(adam.begin(num_tasks), jnp.zeros(num_tasks))

  def update(losses, state, *, present, key):
    logs = logarithms(losses, present)
    weights = guard.softmax(state.logits.values, present)
    unit = guard.total(weights * jnp.exp(-jax.lax.stop_gradient(logs)), present)
    total = (weights * logs).sum() / jnp.where(unit > 0, unit, 1)
    return total, state._replace(log_losses=jax.lax.stop_gradient(logs))

  def after(losses, state, *, present):
    gain = jnp.where(present, state.log_losses - logarithms(losses, present), 0)
    _, pullback = jax.vjp(lambda values: guard.softmax(values, present), state.logits.values)
    (gradient,) = pullback(gain.astype(state.logits.values.dtype))
    return state._replace(logits=adam.step(state.logits, gradient, present=present))

  return Objective(start, update, after=after)


class GradNormState(NamedTuple):
  """The logits of the weights with their optimizer, and each task's first loss, NaN before there is one."""

  logits: Learned
  first: Float[Array, ' k']


@partial(on_gram, at='representation')
def gradnorm(alpha: Exponent = 1.5, learning_rate: AtLeast0 = 0.025) -> GramWeighting:
  """`w = K softmax(s)`; s descends `sum_k | |w_k g_k| - sg(mean_j |w_j g_j| * r_k^alpha) |`.

  Chen et al. 2018, arXiv:1711.02257; class R by default, or P. `r_k = (L_k / L_k(0)) / mean` is how slowly a task
  learns. The paper takes the gradients at the last shared layer's weights and renormalises w after each step; at the
  representation they cost next to nothing, and the softmax is LibMTL's. The norms are the roots of the Gram matrix's
  diagonal. In the paper heads get the gradients times w too: `heads='weighted'`; not in LibMTL.

  Args:
    alpha: how strongly slow tasks are sped up; 0 makes all norms equal.
    learning_rate: of the Adam that moves s (0.025 is the paper's for w).
  """
  adam = Adam(learning_rate)

  def init(num_tasks):
    return GradNormState(adam.begin(num_tasks), jnp.full(num_tasks, jnp.nan))

  def rule(gram, state, task):
    present = task.present
    first = jnp.where(present & jnp.isnan(state.first), task.losses, state.first)
    rates = guard.safe(task.losses, present) / guard.safe(jnp.where(jnp.isnan(first), 1, first), present)
    rates = rates / guard.mean(rates, present)
    norms = task.unit * jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))

    def weigh(logits):
      return guard.count(present) * guard.softmax(logits, present)

    found = weigh(state.logits.values)
    target = guard.mean(found * norms, present) * rates**alpha
    gradient = jax.grad(lambda logits: guard.total(jnp.abs(weigh(logits) * norms - target), present))
    return found, GradNormState(adam.step(state.logits, gradient(state.logits.values), present=present), first)

  return stateful(init, rule)
