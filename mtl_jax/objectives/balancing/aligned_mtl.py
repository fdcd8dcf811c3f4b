"""Aligned-MTL: task gradients made orthogonal and equally long, the shortest principal one's length. Class P (or R)."""

import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting, stateless


def aligned_mtl() -> GramWeighting:
  """`a = sqrt(s_min) V S^(-1/2) V' 1` with `G = V S V'`, over the eigenvalues that are not 0.

  Senushkin, Patakin, Kuznetsov, Konushin (2023), Independent Component Alignment for Multi-Task Learning. Orthogonal
  gradients of one length and equal gradients get 1 each (a *sum*), as does one task alone. An eigenvalue counts as 0
  below K float32 roundings of the largest. Class P.
  """

  def rule(gram, task):
    largest = jnp.diagonal(gram).max()
    values, vectors = jnp.linalg.eigh(gram / jnp.where(largest > 0, largest, 1))
    count = task.present.sum()
    kept = values > count * jnp.finfo(jnp.float32).eps * jnp.maximum(values[-1], 1e-30)
    shortest = jnp.where(kept, values, jnp.inf).min()
    shrink = jnp.where(kept, jnp.sqrt(shortest / jnp.where(kept, values, 1)), 0)
    # Without any gradient there is nothing to align: the sum.
    ones = task.present.astype(jnp.float32)
    return jnp.where(kept.any(), vectors @ (shrink * (vectors.T @ ones)), ones)

  return stateless(rule)
