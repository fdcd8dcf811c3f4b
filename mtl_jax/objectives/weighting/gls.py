"""Geometric loss strategy (Chennupati et al. 2019, "MultiNet++", arXiv:1904.08492). Class L."""

import jax.numpy as jnp

from mtl_jax.objectives.declared import declared
from mtl_jax.objectives.objective import Objective, of_losses
from mtl_jax.objectives.weighting import guard


@declared
def gls() -> Objective:
  """`(prod_k L_k)^(1/K)`, by way of logarithms so that 40 losses do not underflow."""

  def total(losses, present):
    return jnp.where(present.any(), jnp.exp(guard.mean(jnp.log(guard.safe(losses, present)), present)), 0)

  return of_losses(total)
