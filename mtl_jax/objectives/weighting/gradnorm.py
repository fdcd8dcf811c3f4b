"""GradNorm (Chen et al. 2018, arXiv:1711.02257). Class R by default, or P."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.adam import Adam
from mtl_jax.objectives.weighting.learned import Learned, begin, step


class State(NamedTuple):
  """The logits of the weights with their optimizer, and each task's first loss, NaN before there is one."""

  logits: Learned
  first: Float[Array, ' k']


def gradnorm(alpha: float = 1.5, learning_rate: float = 0.025) -> GramWeighting:
  """`w = K softmax(s)`; s descends `sum_k | |w_k g_k| - sg(mean_j |w_j g_j| * r_k^alpha) |`.

  `r_k = (L_k / L_k(0)) / mean` is how slowly a task learns. The paper takes the gradients at the last shared layer's
  weights and renormalises w after each step; at the representation they cost next to nothing, and the softmax is
  LibMTL's. The norms are the roots of the Gram matrix's diagonal.

  Args:
    alpha: how strongly slow tasks are sped up; 0 makes all norms equal.
    learning_rate: of the Adam that moves s (0.025 is the paper's for w).
  """
  tx = Adam(learning_rate)

  def init(num_tasks):
    return State(begin(num_tasks, 0.0, tx), jnp.full(num_tasks, jnp.nan))

  def weights(gram, state, *, losses, present, key):
    del key
    first = jnp.where(present & jnp.isnan(state.first), losses, state.first)
    rates = guard.safe(losses, present) / guard.safe(jnp.where(jnp.isnan(first), 1, first), present)
    rates = rates / guard.mean(rates, present)
    norms = jnp.sqrt(jnp.where(present, jnp.maximum(jnp.diagonal(gram), 0), 0).astype(jnp.float32))

    def scaled(logits):
      return guard.count(present) * guard.softmax(logits, present) * norms

    target = guard.mean(scaled(state.logits.values), present) * rates**alpha
    gradient = jax.grad(lambda logits: jnp.where(present, jnp.abs(scaled(logits) - target), 0).sum())
    found = guard.count(present) * guard.softmax(state.logits.values, present)
    return found, State(step(state.logits, gradient(state.logits.values), present=present, tx=tx), first)

  return GramWeighting(init, weights)
