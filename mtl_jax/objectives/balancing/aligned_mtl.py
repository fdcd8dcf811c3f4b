"""Aligned-MTL: task gradients made orthogonal and equally long, the shortest principal one's length. Class P (or R)."""

import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting, stateless
from mtl_jax.objectives.declared import Direction
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard


@on_gram
def aligned_mtl(preference: Direction = None) -> GramWeighting:
  """`a = sqrt(s_min) V S^(-1/2) V' 1` with `G = V S V'`, over the eigenvalues that are not 0.

  Senushkin, Patakin, Kuznetsov, Konushin (2023), Independent Component Alignment for Multi-Task Learning. Orthogonal
  gradients of one length and equal gradients get 1 each (a *sum*), as does one task alone. Class P.

  An eigenvalue counts as 0 below K float32 roundings of the largest, and what lies along its vector is dropped at once:
  the update is not continuous there. It is where the longest gradient is some 1 / sqrt(K 1.2e-7) times the shortest
  part of another (2,000 times for two tasks, 460 for forty): below that a small task is what all others are cut to,
  beyond it is not heard at all. Losses whose gradients lie so far apart need a scale first, such as weights.

  Args:
    preference: in the place of the ones, brought to a mean of 1; None: all alike.
  """
  preferred = guard.preference(preference)

  def rule(gram, task):
    largest = jnp.diagonal(gram).max()
    values, vectors = jnp.linalg.eigh(gram / jnp.where(largest > 0, largest, 1))
    count = task.present.sum()
    kept = values > count * jnp.finfo(jnp.float32).eps * jnp.maximum(values[-1], 1e-30)
    shortest = jnp.where(kept, values, jnp.inf).min()
    shrink = jnp.where(kept, jnp.sqrt(shortest / jnp.where(kept, values, 1)), 0)
    # Without any gradient there is nothing to align: the sum.
    ones = preferred(task.present) * guard.count(task.present)
    return jnp.where(kept.any(), vectors @ (shrink * (vectors.T @ ones)), ones)

  return stateless(rule)
