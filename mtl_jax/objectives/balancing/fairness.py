"""Solves `sum_j G_ij w_j = (s_i / w_i)^(1/alpha)`, the equation behind Nash-MTL, FairGrad and PIVRG."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from mtl_jax.objectives.balancing.gram import Cosines
from mtl_jax.objectives.shapes import Array, Float

RIDGE = 2e-7  # Of the order of a cosine's rounding in float32; without it opposing gradients would grow for ever.
PARTS = 16
STEPS = 16


def fair_weights(
  angles: Cosines, alpha: float, *, log_priorities: Float[Array, ' k'] | None = None, steps: int = STEPS
) -> Float[Array, ' k']:
  """The positive w with `G w = (s / w)^(1/alpha)`, s all 1 unless its logarithms are given; 0 for gradients not live.

  With `b_k = w_k |g_k|` it is `C b = r b^(-1/alpha)`, C the cosines, `r_k = s_k^(1/alpha) |g_k|^(1/alpha - 1)`: where
  the convex `b' C b / 2 - sum r_k (b_k^(1 - 1/alpha)) / (1 - 1/alpha)` is least (a logarithm at alpha = 1). Newton's
  method with a line search, after every step the best factor for b as a whole, which has a closed form.

  Returns:
    w. Where the equation has no solution (some positive combination of the gradients is 0) RIDGE on C's diagonal gives
    it one: large weights whose update nearly vanishes.
  """
  power = 1 / alpha
  live = angles.live
  matrix = angles.matrix + RIDGE * jnp.eye(len(live), dtype=angles.norms.dtype)
  logs = jnp.where(live, (power - 1) * jnp.log(angles.norms), 0)
  if log_priorities is not None:
    logs = logs + jnp.where(live, power * log_priorities, 0)
  # b scales with r^(alpha / (1 + alpha)): bring r near 1, to undo it at the end.
  middle = logs.sum() / jnp.maximum(live.sum(), 1)
  right = jnp.where(live, jnp.exp(logs - middle), 1)

  def pulls(b):
    return right * b**-power

  def centered(b):
    return b * ((b @ pulls(b)) / (b @ matrix @ b)) ** (1 / (1 + power))

  def step(_, b):
    residual = matrix @ b - pulls(b)
    # Scaled by b the Hessian is b C b + power r b^(1 - power), which float32 factors whatever b's range is.
    hessian = b[:, None] * matrix * b[None, :] + jnp.diag(power * pulls(b) * b)
    scale = jnp.sqrt(jnp.diagonal(hessian))
    factor = cho_factor(hessian / scale[:, None] / scale[None, :])
    relative = -cho_solve(factor, residual * b / scale) / scale
    longest = jnp.minimum(1, 0.95 / jnp.maximum(-relative.min(), 1e-6))
    lengths = longest * jnp.linspace(1, 0, PARTS, endpoint=False, dtype=b.dtype)
    slopes = jax.vmap(lambda t: (b * relative) @ (matrix @ (b + t * b * relative) - pulls(b + t * b * relative)))(
      lengths
    )
    new = centered(b * (1 + lengths[jnp.argmin(jnp.abs(slopes))] * relative))
    return jnp.where(jnp.isfinite(new).all(), new, b)

  b = jax.lax.fori_loop(0, steps, step, centered(right ** (1 / (1 + power))))
  return jnp.where(live, b * jnp.exp(middle / (1 + power)) / angles.norms, 0)
