"""IMTL: IMTL-G, whose projections on all task gradients are equal, alone or with IMTL-L. Class P (or R).

Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang (2021), Towards Impartial Multi-task Learning.
"""

import dataclasses

import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting, cosines, least_squares, stateless
from mtl_jax.objectives.declared import AtLeast0, Point, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.task_gradients import balanced, on_gram
from mtl_jax.objectives.weighting.learned import Adam


@on_gram
def imtl_g() -> GramWeighting:
  """`a = G+ d / (1' G+ d)` with `d_k = |g_k|`.

  The weights sum to 1 (a mean): one task, or equal tasks, give the gradient itself. They may be negative. The paper
  takes the gradients to be independent; then a is found from the cosines, however unlike the norms are. Otherwise it is
  the shortest least-squares solution (the pseudo-inverse, as in Quinton and Rey 2024). No update equal to all exists
  for opposing gradients: the weights are 0, as for gradients that are 0. Where two gradients are nearly one, the
  weights are off by float32's rounding of the Gram matrix times the cosines' condition number: 1 % at 1e5. Class P.
  """

  def rule(gram, task):
    matrix, norms, live = cosines(gram, task)
    unit = jnp.where(live, norms, 0).max()
    lengths = jnp.where(live, norms / jnp.where(unit > 0, unit, 1), 0)
    eps = jnp.finfo(jnp.float32).eps * len(norms)
    equal, independent = least_squares(matrix, live.astype(jnp.float32))
    least, _ = least_squares(matrix * lengths[:, None] * lengths[None, :], lengths)
    found = jnp.where(live, jnp.where(independent, equal * (unit / norms), least), 0)
    total = found.sum()
    solved = jnp.abs(total) > 10 * eps * jnp.abs(found).sum()
    return jnp.where(solved, found / jnp.where(solved, total, 1), 0)

  return stateless(rule)


@declared
def imtl(learning_rate: AtLeast0 = 1e-3, at: Point = 'parameters') -> Objective:
  """IMTL-G's update of the losses `exp(s_k) L_k`, with s learned from 0 along `sum_k exp(s_k) L_k - s_k`.

  Both halves of the paper together, as in LibMTL. IMTL-G's directions do not look at lengths, so s moves the update's
  length alone, and the heads, which descend `exp(s_k) L_k`. Class P.

  Args:
    learning_rate: of the Adam that learns s; the paper and LibMTL give it to the network's own optimizer.
    at: where the gradients are taken.
  """
  adam, directions = Adam(learning_rate), imtl_g().weighting
  assert directions is not None  # It is a method on the Gram matrix.

  def weights(gram, state, *, losses, present, key, unit=1.0):
    scales = jnp.exp(state.values)
    scaled = scales[:, None] * gram * scales[None, :]
    found, _ = directions.weights(scaled, (), losses=losses, present=present, key=key, unit=unit)
    gradient = jnp.where(present, scales * losses - 1, 0)
    return jnp.where(present, scales * found, 0), adam.step(state, gradient, present=present)

  objective = balanced(GramWeighting(adam.begin, weights), at=at)
  return dataclasses.replace(objective, head_scale=lambda losses, state: jnp.exp(state.inner.values))
