"""FAMO: fast adaptive multitask optimization (Liu et al. 2023, arXiv:2306.03792). Class L, one forward pass more."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, NumberOrEach, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.learned import Adam, Learned

OFFSET = 1e-8


class State(NamedTuple):
  """The logits of the weights with their optimizer, and the logarithms of the losses before the step."""

  logits: Learned
  log_losses: Float[Array, ' k']


@declared
def famo(gamma: AtLeast0 = 1e-3, learning_rate: AtLeast0 = 0.025, least_loss: NumberOrEach = 0.0) -> Objective:
  """`sum_k z_k log D_k / sg(sum_k z_k / D_k)`, `z = softmax(w)`, `D = L - least_loss + 1e-8`.

  After the step, on the same batch, `w` descends along `J_softmax^T (log D_old - log D_new)`: a task that gained more
  than the others weighs less next time.

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
    return State(adam.begin(num_tasks), jnp.zeros(num_tasks))

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
