"""MGDA: the shortest vector in the convex hull of the task gradients. Class P."""

from typing import Annotated

import jax.numpy as jnp

from mtl_jax.kinds import choice
from mtl_jax.objectives.balancing.gram import GramWeighting, cosines, stateless
from mtl_jax.objectives.balancing.interior_point import TINY, minimize, simplex
from mtl_jax.objectives.declared import Point, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard

Normalization = Annotated[str, choice('none', 'l2', 'loss', 'loss+')]
STEPS = 15


@on_gram
def mgda(normalization: Normalization = 'none') -> GramWeighting:
  """`min over a in the simplex of |sum_k a_k g_k / n_k|^2`, the weights being `a_k / n_k`.

  Sener, Koltun (2018), Multi-Task Learning as Multi-Objective Optimization; Désidéri (2012). The paper's Frank-Wolfe
  is slow to converge, so an interior-point method solves the same problem. The update is the shortest vector itself
  and conflicts with no task; the authors' code leaves out the division by n_k in it, and then that is not so. Without
  normalisation the weights sum to 1 (a mean): one task, or equal tasks, give the gradient itself.

  A task whose gradient is 0 makes that vector 0 and takes all the weight. Class P.

  Args:
    normalization: n_k: none 1, l2 |g_k|, loss L_k, loss+ L_k |g_k|; where that is not positive, 1.
  """

  def rule(gram, task):
    angles = cosines(gram, task)
    shares = jnp.ones_like(angles.norms) if normalization in ('l2', 'loss+') else 1 / angles.norms  # n_k / |g_k|.
    if normalization in ('loss', 'loss+'):
      shares = jnp.where(task.losses > 0, shares * task.losses, 1 / angles.norms)
    normal, start = simplex(angles, shares)

    def derivatives(b):
      return angles.matrix @ b, angles.matrix

    b = minimize(derivatives, start=start, normal=normal, live=angles.live, steps=STEPS)
    # b is right up to a factor, which makes the a_k = b_k n_k / |g_k| sum to 1.
    total = jnp.where(angles.live, b * shares, 0).sum()
    shortest = b / angles.norms / jnp.maximum(total, TINY)
    stuck = task.present & ~angles.live
    return jnp.where(stuck.any(), guard.equal(stuck), shortest)

  return stateless(rule)


@declared
def mgda_ub(normalization: Normalization = 'none', at: Point = 'representation') -> Objective:
  """MGDA-UB, of Sener and Koltun too: MGDA's upper bound, on the gradients at the representation. Class R."""
  return mgda(normalization, at=at)
