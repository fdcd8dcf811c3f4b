"""IMTL: IMTL-L's scales on the losses and IMTL-G on their gradients. Class P (or R at the representation)."""

import dataclasses

import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.objectives.balancing.imtl_g import imtl_g
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.task_gradients import balanced
from mtl_jax.objectives.weighting.adam import Adam
from mtl_jax.objectives.weighting.learned import begin, step


def imtl(learning_rate: float = 1e-3, at: str = 'parameters') -> Objective:
  """IMTL-G's update of the losses `exp(s_k) L_k`, with s learned from 0 along `sum_k exp(s_k) L_k - s_k`.

  Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang (2021), Towards Impartial Multi-task Learning: both halves together, as
  in LibMTL. IMTL-G's directions do not look at lengths, so s moves the update's length alone, and the heads, which
  descend `exp(s_k) L_k`. Class P.

  Args:
    learning_rate: of the Adam that learns s; the paper and LibMTL give it to the network's own optimizer.
    at: where the gradients are taken, parameters or representation.
  """
  tx, directions = Adam(learning_rate), imtl_g()

  def weights(gram, state, *, losses, present, key):
    scales = jnp.exp(state.values)
    scaled = scales[:, None] * gram * scales[None, :]
    found, _ = directions.weights(scaled, (), losses=losses, present=present, key=key)
    gradient = jnp.where(present, scales * losses - 1, 0)
    return jnp.where(present, scales * found, 0), step(state, gradient, present=present, tx=tx)

  objective = balanced(GramWeighting(lambda num_tasks: begin(num_tasks, 0.0, tx), weights), at=at)
  return dataclasses.replace(objective, head_scale=lambda losses, state: jnp.exp(state.inner.values))  # noqa: ARG005
