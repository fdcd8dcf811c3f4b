"""GO4Align: group optimization for multi-task alignment (Shen et al. 2024, arXiv:2404.06486). Class L."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, Length, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float
from mtl_jax.objectives.weighting import guard


class State(NamedTuple):
  """Each task's losses added up so far."""

  total: Float[Array, ' k']


@declared
def go4align(groups: Length = 2, step_size: AtLeast0 = 1e-4) -> Objective:
  """`sum_k W_k L_k`, W the means over groups of `w_k = (sum_j L_j / L_k) p_k`, `p = softmax(-step_size sum_t L_k(t))`.

  The first factor brings losses to one scale, the second, from the losses of all steps up to this one, lowers tasks
  that learn slowly. The groups are those of k-means on the K numbers w_k, taken anew each step. The authors' code
  begins k-means at random; among numbers in a row the best groups are runs, and are found exactly here, so that equal
  losses give equal weights. Groups fewer than tasks make W jump where a task changes its group.

  Args:
    groups: how many; 1 weighs all tasks alike (the default of the authors' code), K leaves w as it is.
    step_size: of the exponentiated update.
  """

  def start(num_tasks, like=None):
    return State(jnp.zeros(num_tasks))

  def update(losses, state, *, present, key):
    values = jax.lax.stop_gradient(guard.safe(losses, present))
    total = state.total + jnp.where(present, values, 0)
    share = guard.softmax(-step_size * total, present)
    weights = jnp.where(present, guard.total(values, present) / values * share, 0)
    return guard.total(group_means(weights, present, groups) * losses, present), State(total)

  return Objective(start, update)


def group_means(values: Float[Array, ' k'], present: Bool[Array, ' k'], groups: int) -> Float[Array, ' k']:
  """Each value's mean over its group, for the groups with the least squared distances to their means."""
  num, groups = len(values), min(groups, len(values))
  order = jnp.lexsort((values, ~present))
  row, counts = jnp.where(present, values, 0)[order], present[order].astype(jnp.float32)
  index = jnp.arange(num)
  inside = (index >= index[:, None, None]) & (index <= index[None, :, None])  # [first, last, k]
  weights = inside * counts
  means = (weights * row).sum(-1) / jnp.maximum(weights.sum(-1), 1)
  costs = (weights * jnp.square(row - means[..., None])).sum(-1)
  costs = jnp.where(index[:, None] <= index[None, :], costs, jnp.inf)
  best, firsts = costs[0], []
  for _ in range(groups - 1):  # Of the best division of the first values up to each into one group more.
    before = jnp.concatenate([jnp.full(1, jnp.inf), best[:-1]])[:, None] + costs
    firsts.append(before.argmin(0))
    best = before.min(0)
  found, last = jnp.zeros(num), jnp.asarray(num - 1)
  for first in [*(each for each in reversed(firsts)), jnp.zeros(num, jnp.int32)]:
    start = first[last]
    found = jnp.where((index >= start) & (index <= last), means[start, last], found)
    last = start - 1
  return jnp.zeros(num).at[order].set(found)
