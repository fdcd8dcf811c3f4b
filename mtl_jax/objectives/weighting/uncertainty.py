"""Uncertainty weighting (Kendall, Gal and Cipolla 2018, arXiv:1705.07115). Class L."""

from typing import Annotated

import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, declared, number
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.learned import FARTHEST, learned

Start = Annotated[float, number(-FARTHEST, FARTHEST)]


@declared
def uncertainty(start: Start = -0.5, learning_rate: AtLeast0 = 1e-3) -> Objective:
  """`sum_k L_k / (2 exp(s_k)) + s_k / 2`, where `s_k`, the logarithm of a task's noise variance, is learned.

  The form and start are LibMTL's.

  Args:
    start: every `s_k` at first.
    learning_rate: of the Adam that learns `s`; the paper and LibMTL give it to the network's own optimizer.
  """

  def total(s, losses, present):
    return guard.total(losses / (2 * jnp.exp(s)) + s / 2, present)

  return learned(total, start=start, learning_rate=learning_rate)
