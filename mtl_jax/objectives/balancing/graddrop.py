"""GradDrop: gradient sign dropout (Chen et al. 2020, arXiv:2010.06808). Class R."""

from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.objectives.declared import ShareOrEach, declared
from mtl_jax.objectives.objective import Objective, no_state
from mtl_jax.objectives.task_gradients import column
from mtl_jax.objectives.weighting import guard


@declared
def graddrop(leak: ShareOrEach = 0.0) -> Objective:
  """Lets through gradients of one sign, drawn by their weight, where tasks disagree on a feature's.

  With `g_k = sign(z) dL_k/dz` summed over the batch, `P = (1 + sum_k g_k / sum_k |g_k|) / 2` and U uniform for each
  feature: where P > U the positive `g_k` pass, where P < U the negative ones (the paper's algorithm 1). Where no
  representation is given (`at=None`), the rule runs on the gradients as they are, as torchjd has it.

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
