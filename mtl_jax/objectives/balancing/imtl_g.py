"""IMTL-G: the update whose projections on all task gradients are equal. Class P (or R at the representation)."""

import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting, cosines, stateless


def imtl_g() -> GramWeighting:
  """`a = G+ d / (1' G+ d)` with `d_k = |g_k|`.

  Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang (2021), Towards Impartial Multi-task Learning. The weights sum to 1 (a
  mean): one task, or equal tasks, give the gradient itself. They may be negative. The paper takes the gradients to be
  independent; then a is found from the cosines, however unlike the norms are. Otherwise it is the shortest
  least-squares solution (the pseudo-inverse, as in Quinton and Rey 2024). No update equal to all exists for opposing
  gradients: the weights are 0, as for gradients that are 0. Class P.
  """

  def rule(gram, task):
    matrix, norms, live = cosines(gram, task.present)
    unit = jnp.where(live, norms, 0).max()
    lengths = jnp.where(live, norms / jnp.where(unit > 0, unit, 1), 0)
    eps = jnp.finfo(jnp.float32).eps * len(norms)
    values, vectors = jnp.linalg.eigh(jnp.stack([matrix, matrix * lengths[:, None] * lengths[None, :]]))
    kept = values > eps * values.max(axis=1, keepdims=True)
    inverses = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    ones = live.astype(jnp.float32)
    equal = vectors[0] @ (inverses[0] * (vectors[0].T @ ones)) * (unit / norms)
    least = vectors[1] @ (inverses[1] * (vectors[1].T @ lengths))
    found = jnp.where(live, jnp.where(kept[0].all(), equal, least), 0)
    total = found.sum()
    solved = jnp.abs(total) > 10 * eps * jnp.abs(found).sum()
    return jnp.where(solved, found / jnp.where(solved, total, 1), 0)

  return stateless(rule)
