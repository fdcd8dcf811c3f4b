"""UPGrad: every gradient projected onto the cone of directions that conflict with no task, then the mean. Class P."""

import jax
import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.objectives.balancing.gram import GramWeighting, keep, share, stateless
from mtl_jax.objectives.balancing.interior_point import TINY, minimize

STEPS = 15


def upgrad(regularization: float = 1e-4) -> GramWeighting:
  """`sum_i v_i` with `v_i = argmin v' G v` over `v >= e_i / K`.

  Quinton, Rey (2024), Jacobian Descent for Multi-Objective Optimization. G is scaled to trace 1 and gets
  `regularization` on its diagonal, as in the authors' code; so a conflict of at most
  `d . g_k >= -regularization trace(G) weights_k` is left. Tasks without conflict give the *mean* gradient: weights of
  1 / K; one task alone gets 1. K problems of K unknowns, solved side by side. Class P.

  Args:
    regularization: as a share of trace(G), the sum of the squared norms; 1e-6 or more.

  Raises:
    ConfigError: the regularization is too small for float32.
  """
  if regularization < 1e-6:
    raise ConfigError(f'upgrad: regularization is {regularization}; give 1e-6 or more (1e-4 in the paper)')

  def rule(gram, task):
    trace = jnp.trace(gram)
    scaled = gram / jnp.where(trace > 0, trace, 1) + regularization * jnp.eye(len(gram))
    units = jnp.sqrt(jnp.diagonal(scaled))
    matrix = keep(scaled / units[:, None] / units[None, :], task.present)

    def project(floor):
      # v = floor + x / units, x >= 0, makes the diagonal 1; the linear term is brought near 1 as well.
      linear = jnp.where(task.present, matrix @ (units * floor), 0)
      size = jnp.maximum(jnp.abs(linear).max(), TINY)

      def derivatives(x):
        return matrix @ x + linear / size, matrix

      zeros, ones = jnp.zeros_like(floor), jnp.ones_like(floor)
      return floor + size * minimize(derivatives, start=ones, normal=zeros, live=task.present, steps=STEPS) / units

    return jax.vmap(project)(jnp.diag(share(task.present))).sum(0)

  return stateless(rule)
