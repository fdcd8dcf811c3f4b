"""PCGrad: each gradient loses its part against every task it conflicts with. Class P."""

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import Cosines, GramWeighting, cosines, stateless
from mtl_jax.objectives.shapes import Array, Bool, Float, Int, Key
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard


@on_gram
def pcgrad() -> GramWeighting:
  """For each i, over the other j in random order: where `g_i . g_j < 0`, `g_i -= (g_i . g_j / g_j . g_j) g_j`; the sum.

  Yu, Kumar, Gupta, Levine, Hausman, Finn (2020), Gradient Surgery for Multi-Task Learning. g_i is the one already
  changed, g_j the original, i itself is left out. The result is linear in the gradients, so it is kept as coefficients.
  Tasks without conflict give the *sum*: weights of 1; one task alone gets 1. (The code of Nash-MTL's and FAMO's tables
  sums likewise and clips the update to norm 1, which `optimizer.clip_norm` does.) Class P.
  """

  def rule(gram, task):
    angles = cosines(gram, task)
    orders = random_orders(task.key, len(gram))

    def visit(position, parts):
      j = orders[:, position]
      inner = jnp.sum(parts * angles.matrix[j], axis=1)
      return parts.at[jnp.arange(len(j)), j].add(jnp.where(meets(angles.live, j) & (inner < 0), -inner, 0))

    parts = jax.lax.fori_loop(0, len(gram), visit, jnp.eye(len(gram), dtype=gram.dtype))
    return summed(parts, angles)

  return stateless(rule)


def random_orders(key: Key[Array, ''] | None, num_tasks: int) -> Int[Array, 'k k']:
  """Draws an order of all tasks for each task, each equally likely.

  Raises:
    TypeError: there is no key.
  """
  return jnp.argsort(jax.random.uniform(guard.drawn_with(key), (num_tasks, num_tasks)), axis=1)


def meets(live: Bool[Array, ' k'], j: Int[Array, ' k']) -> Bool[Array, ' k']:
  """True for tasks i that are another than `j[i]`, both with a gradient."""
  return live & live[j] & (jnp.arange(len(j)) != j)


def summed(parts: Float[Array, 'k k'], angles: Cosines) -> Float[Array, ' k']:
  """The weights of `sum_i |g_i| sum_j parts[i, j] g_j / |g_j|`."""
  return jnp.sum(parts * (angles.norms[:, None] / angles.norms[None, :]), axis=0)
