"""IMTL, Aligned-MTL and ConFIG: weights by one decomposition of the Gram matrix. Class P (or R)."""

import dataclasses

import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting, cosines, least_squares, stateful, stateless
from mtl_jax.objectives.declared import AtLeast0, Direction, Point, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.task_gradients import balanced, on_gram
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.learned import Adam


@on_gram
def imtl_g() -> GramWeighting:
  """`a = G+ d / (1' G+ d)` with `d_k = |g_k|`: its projections on all gradients are equal.

  Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang (2021), Towards Impartial Multi-task Learning. The weights sum to 1 (a
  mean): one task, or equal tasks, give the gradient itself. They may be negative. The paper takes the gradients to be
  independent; then a is found from the cosines, however unlike the norms are. Otherwise it is the shortest
  least-squares solution (the pseudo-inverse, as in Quinton and Rey 2024). No update equal to all exists for opposing
  gradients: the weights are 0, as for gradients that are 0. Where two gradients are nearly one, the weights are off by
  float32's rounding of the Gram matrix times the cosines' condition number: 1 % at 1e5. Class P.
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

  def rule(gram, state, task):
    scales = jnp.exp(state.values)
    found, _ = directions.weights(scales[:, None] * gram * scales[None, :], (), **task._asdict())
    return scales * found, adam.step(state, scales * task.losses - 1, present=task.present)

  objective = balanced(stateful(adam.begin, rule), at=at)
  return dataclasses.replace(objective, head_scale=lambda losses, state: jnp.exp(state.inner.values))


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


@on_gram
def conflict_free(preference: Direction = None) -> GramWeighting:
  """`d = (sum_k g_k . u) u`, u the direction of `U+ p`, U the unit gradients.

  Liu, Chu, Thuerey (2024), ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks
  (arXiv:2408.11104, equation 2). With p all 1 every cosine is the same: no task is worked against where the gradients
  are independent. Otherwise it is the nearest in least squares, and opposing gradients give 0. Orthogonal gradients of
  one length give their *sum*, as does one task alone. Class P.

  Args:
    preference: the cosines' ratios p; None: all alike.
  """
  preferred = guard.preference(preference)

  def rule(gram, task):
    matrix, norms, live = cosines(gram, task)
    toward = jnp.where(live, preferred(task.present), 0)
    coefficients = jnp.where(live, least_squares(matrix, toward)[0], 0)
    along = matrix @ coefficients
    square = coefficients @ along
    length = jnp.where(live, norms * along, 0).sum()  # Times the direction's own.
    return jnp.where(square > 0, coefficients * (length / jnp.where(square > 0, square, 1)) / norms, 0)

  return stateless(rule)
