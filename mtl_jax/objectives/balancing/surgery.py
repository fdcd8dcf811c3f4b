"""PCGrad, GradVac and GradDrop: parts of gradients that conflict are taken out. Class P; GradDrop's is R."""

from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import Cosines, GramWeighting, cosines, stateful, stateless
from mtl_jax.objectives.declared import Share, ShareOrEach, declared
from mtl_jax.objectives.objective import Objective, no_state
from mtl_jax.objectives.shapes import Array, Bool, Float, Int, Key
from mtl_jax.objectives.task_gradients import column, on_gram
from mtl_jax.objectives.weighting import guard

CLOSEST = 1 - 1e-6


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


@on_gram
def gradvac(beta: Share = 0.5) -> GramWeighting:
  """As PCGrad, but where the cosine is below a running target rho_ij, enough of g_j is added to g_i to reach it.

  Wang, Tsvetkov, Firat, Cao (2021), Gradient Vaccine. With c = cos(g_i, g_j), g_i the one already changed: where
  `c < rho_ij`, `g_i += g_j |g_i| (rho sqrt(1 - c^2) - c sqrt(1 - rho^2)) / (|g_j| sqrt(1 - rho^2))`; then
  `rho_ij = (1 - beta) rho_ij + beta c`. rho starts at 0, and the first step is PCGrad's. Targets are taken at most 1 -
  1e-6, since no finite part of g_j reaches 1. Tasks that agree as usual give the *sum*: weights of 1; one task alone
  gets 1. The state is rho [K, K]; a pair with an absent task, or with a gradient of 0, keeps its target. Class P.

  Args:
    beta: how fast targets follow.
  """

  def rule(gram, targets, task):
    angles = cosines(gram, task)
    orders = random_orders(task.key, len(gram))
    rows = jnp.arange(len(gram))

    def visit(position, carry):
      parts, targets = carry
      j = orders[:, position]
      inner = jnp.sum(parts * angles.matrix[j], axis=1)
      length = jnp.sqrt(jnp.maximum(jnp.sum(parts * (parts @ angles.matrix), axis=1), 1e-30))
      cosine = jnp.clip(inner / length, -1, 1)
      target = jnp.clip(targets[rows, j], -CLOSEST, CLOSEST)
      added = length * (target * jnp.sqrt((1 - cosine**2) / (1 - target**2)) - cosine)
      active = meets(angles.live, j)
      parts = parts.at[rows, j].add(jnp.where(active & (cosine < target), added, 0))
      return parts, targets.at[rows, j].add(jnp.where(active, beta * (cosine - targets[rows, j]), 0))

    parts, targets = jax.lax.fori_loop(0, len(gram), visit, (jnp.eye(len(gram), dtype=gram.dtype), targets))
    return summed(parts, angles), targets

  return stateful(lambda num_tasks: jnp.zeros((num_tasks, num_tasks), jnp.float32), rule)


@declared
def graddrop(leak: ShareOrEach = 0.0) -> Objective:
  """Lets through gradients of one sign, drawn by their weight, where tasks disagree on a feature's. Class R.

  Gradient sign dropout (Chen et al. 2020, arXiv:2010.06808). With `g_k = sign(z) dL_k/dz` summed over the batch, `P =
  (1 + sum_k g_k / sum_k |g_k|) / 2` and U uniform for each feature: where P > U the positive `g_k` pass, where P < U
  the negative ones (the paper's algorithm 1). Where no representation is given (`at=None`), the rule runs on the
  gradients as they are, as torchjd has it.

  Args:
    leak: the share of a gradient that passes anyway; one for all tasks or one for each.
  """

  def update(gradients, state, *, losses, present, key, at=None):
    leaves, structure = jax.tree.flatten(gradients)
    points = [None] * len(leaves) if at is None else jax.tree.leaves(at)
    keys = jax.random.split(guard.drawn_with(key), len(leaves))
    shares = guard.per_task(leak, len(present), name='leak')
    dropped = [_drop(*each, present, shares) for each in zip(leaves, points, keys, strict=True)]
    return structure.unflatten(dropped), state

  return Objective(no_state, update, needs='representation')


def _drop(gradients, at, key, present, leak) -> Any:
  gradients = jnp.where(column(present, gradients), gradients, 0)
  signed = gradients if at is None else (gradients * jnp.sign(at)).sum(1, keepdims=True)
  signed = signed.astype(jnp.float32)
  size = jnp.abs(signed).sum(0)
  purity = (1 + signed.sum(0) / jnp.where(size > 0, size, 1)) / 2
  uniform = jax.random.uniform(key, purity.shape)
  passes = jnp.where(signed > 0, purity > uniform, purity < uniform) & (signed != 0)
  share = column(leak, gradients) + (1 - column(leak, gradients)) * passes
  return (share * gradients).sum(0).astype(gradients.dtype)
