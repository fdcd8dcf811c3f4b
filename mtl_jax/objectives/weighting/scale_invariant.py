"""Scale-invariant weighting: the sum of the losses' logarithms, a baseline of Nash-MTL's and FAMO's tables. Class L."""

import jax.numpy as jnp

from mtl_jax.objectives.declared import declared
from mtl_jax.objectives.objective import Objective, of_losses
from mtl_jax.objectives.weighting import guard


@declared
def scale_invariant() -> Objective:
  """`sum_k log L_k`: each loss times a constant leaves the gradient as it is (Navon et al. 2022, arXiv:2202.01017)."""

  return of_losses(lambda losses, present: guard.total(jnp.log(guard.safe(losses, present)), present))
