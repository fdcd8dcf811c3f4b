"""LDC-MTL: loss discrepancy control (Xiao et al. 2025, arXiv:2502.08585). Class L."""

import jax
import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.learned import learned

START = 1.0  # Of every s_k, as in the authors' code.


@declared
def ldc_mtl(lam: AtLeast0 = 0.01, learning_rate: AtLeast0 = 1e-3) -> Objective:
  """`sum_k w_k L_k / sg(sum_k w_k) + lam sum_k |w_k L_k - w_(k+1) L_(k+1)|`, `w = sigmoid(s)`, s learned with the net.

  The paper's bilevel problem, the weights' upper level being the second term, as the single-loop first-order method
  that its authors run on CelebA. The differences are between neighbours, so the order of the tasks matters: with lam
  large all `w_k L_k` become equal whatever it is. (On dense prediction their weights are a small network of the
  features instead, and losses are first divided by their first values or taken as logarithms.) Their CelebA runs,
  though set in one table with FAMO's, take a learning rate of 1e-3 that falls to 0.3 times every 3 epochs.

  Args:
    lam: how much the differences count; the authors take 0.01 on CelebA, 0.05 on NYUv2, 0.1 on Cityscapes.
    learning_rate: of the Adam that learns s; the authors give it to the network's own optimizer.
  """

  def total(logits, losses, present):
    weights = jnp.where(present, jax.nn.sigmoid(logits), 0)
    balanced = jnp.where(present, weights * losses, 0)
    mean = balanced.sum() / jnp.maximum(jax.lax.stop_gradient(weights).sum(), guard.LEAST_LOSS)
    order = jnp.argsort(~present, stable=True)  # Neighbours among those that are present.
    left, right = order[:-1], order[1:]
    return mean + lam * jnp.where(present[right], jnp.abs(balanced[left] - balanced[right]), 0).sum()

  return learned(total, start=START, learning_rate=learning_rate)
