"""CAGrad: the direction near the mean gradient that helps the worst-off task most. Class P."""

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import Cosines, GramWeighting, cosines, stateless
from mtl_jax.objectives.balancing.interior_point import TINY, minimize, simplex
from mtl_jax.objectives.declared import AtLeast0
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard

STEPS = 25
RIDGE = 2e-7  # Of the order of a cosine's rounding in float32.
FLOOR = 1e-3  # Of t below, in units of the shortest gradient.


@on_gram
def cagrad(c: AtLeast0 = 0.4) -> GramWeighting:
  """`d = (g_0 + c |g_0| g_w / |g_w|) / (1 + c^2)` with `w = argmin over the simplex of g_w . g_0 + c |g_0| |g_w|`.

  Liu, Liu, Jin, Stone, Liu (2021), Conflict-Averse Gradient Descent for Multi-task Learning; the division by 1 + c^2 is
  the authors' code's, which keeps the step's size near the mean's. g_0 is the *mean* gradient: the weights of equal
  gradients sum to `(1 + c) / (1 + c^2)`, and one task alone gets that (1.207 at c = 0.4). With c >= 1 d conflicts
  with no task. (The code of Nash-MTL's and FAMO's tables multiplies by K, to be near the sum, and clips to norm 1;
  LibMTL's default is c = 0.5.)

  Where some g_w is nearly 0 the paper's `g_w / |g_w|` has no value: below `c FLOOR` times the shortest gradient |g_w|
  counts as that long, which leaves a conflict of the order of `c^2 FLOOR |g_0| |g_k|` at most. A task whose gradient is
  0 counts in the mean and not among the worst-off. Class P.

  Args:
    c: the radius of the search as a share of |g_0|; 0.4 in the paper.
  """

  def rule(gram, task):
    angles = cosines(gram, task)
    equal = guard.equal(task.present)
    lengths = jnp.where(angles.live, angles.norms, 0)
    unit = jnp.maximum(lengths.max(), TINY)
    mean = equal * lengths / unit
    # Rounding alone leaves 1e-7 of the squared lengths, so a shorter mean gradient is as good as zero.
    size = jnp.sqrt(jnp.maximum(mean @ angles.matrix @ mean, 1e-7 * (mean @ mean) + TINY))
    toward = jnp.where(angles.live, jnp.clip(angles.matrix @ mean / size, -1, 1), 0)
    return (equal + size * unit * _worst_off(angles, toward, c) / angles.norms) / (1 + c**2)

  return stateless(rule)


def _worst_off(angles: Cosines, toward: Float[Array, ' k'], c: float) -> Float[Array, ' k']:
  """Coefficients of the unit gradients in `c g_w / |g_w|`, given each one's cosine with the mean gradient.

  In `b_k = w_k |g_k|` the function is `toward . b + c sqrt(b' C b)`. At fixed `t = sqrt(b' C b) / c` it is a quadratic
  with Hessian C / t, above it and touching it: taking t anew at every step cannot overshoot but may be slow; the
  true Hessian is fast but may be lost where the root has its kink. Both run, and the better end is kept.
  """
  matrix = angles.matrix + RIDGE * jnp.eye(len(toward), dtype=toward.dtype)
  normal, start = simplex(angles, 1 / angles.norms)

  def pull(b):
    along = matrix @ b
    square = jnp.maximum(b @ along, TINY)
    return along, square, jnp.maximum(jnp.sqrt(square) / jnp.maximum(c, 1e-6), FLOOR)

  def solve(newton):
    def derivatives(b):
      along, square, t = pull(b)
      return toward + along / t, (matrix - newton * jnp.outer(along, along) / square) / t

    b = minimize(derivatives, start=start, normal=normal, live=angles.live, steps=STEPS)
    b = b / jnp.maximum(normal @ b, TINY)
    along, _, t = pull(b)
    gradient = toward + along / t
    slack = jnp.where(angles.live, gradient - (gradient @ b) * normal, 0)
    return b / t, jnp.abs(jnp.minimum(slack, b / t)).max()

  ends, errors = jax.vmap(solve)(jnp.float32([0, 1]))
  return ends[jnp.argmin(errors)]
