"""IMTL-L: losses brought to one scale (Liu et al. 2021, "Towards Impartial Multi-Task Learning"). Class L."""

import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.learned import learned


@declared
def imtl_l(learning_rate: AtLeast0 = 1e-3) -> Objective:
  """`sum_k exp(s_k) L_k - s_k` with `s` learned from 0: at its optimum every scaled loss is 1.

  Args:
    learning_rate: of the Adam that learns `s`; the paper gives it to the network's own optimizer.
  """
  return learned(
    lambda s, losses, present: guard.total(jnp.exp(s) * losses - s, present), start=0.0, learning_rate=learning_rate
  )
