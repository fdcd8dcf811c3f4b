"""GradNorm (Chen et al. 2018, arXiv:1711.02257). Class R by default, or P."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.objectives.declared import AtLeast0, Exponent
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.learned import Adam, Learned


class State(NamedTuple):
  """The logits of the weights with their optimizer, and each task's first loss, NaN before there is one."""

  logits: Learned
  first: Float[Array, ' k']


@partial(on_gram, at='representation')
def gradnorm(alpha: Exponent = 1.5, learning_rate: AtLeast0 = 0.025) -> GramWeighting:
  """`w = K softmax(s)`; s descends `sum_k | |w_k g_k| - sg(mean_j |w_j g_j| * r_k^alpha) |`.

  `r_k = (L_k / L_k(0)) / mean` is how slowly a task learns. The paper takes the gradients at the last shared layer's
  weights and renormalises w after each step; at the representation they cost next to nothing, and the softmax is
  LibMTL's. The norms are the roots of the Gram matrix's diagonal. In the paper heads get the gradients times w too:
  `heads='weighted'`; not in LibMTL.

  Args:
    alpha: how strongly slow tasks are sped up; 0 makes all norms equal.
    learning_rate: of the Adam that moves s (0.025 is the paper's for w).
  """
  adam = Adam(learning_rate)

  def init(num_tasks):
    return State(adam.begin(num_tasks), jnp.full(num_tasks, jnp.nan))

  def weights(gram, state, *, losses, present, key, unit=1.0):
    first = jnp.where(present & jnp.isnan(state.first), losses, state.first)
    rates = guard.safe(losses, present) / guard.safe(jnp.where(jnp.isnan(first), 1, first), present)
    rates = rates / guard.mean(rates, present)
    norms = unit * jnp.sqrt(jnp.where(present, jnp.maximum(jnp.diagonal(gram), 0), 0).astype(jnp.float32))

    def weigh(logits):
      return guard.count(present) * guard.softmax(logits, present)

    found = weigh(state.logits.values)
    target = guard.mean(found * norms, present) * rates**alpha
    gradient = jax.grad(lambda logits: guard.total(jnp.abs(weigh(logits) * norms - target), present))
    return found, State(adam.step(state.logits, gradient(state.logits.values), present=present), first)

  return GramWeighting(init, weights)
