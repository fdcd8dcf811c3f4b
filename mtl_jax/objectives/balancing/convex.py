"""MGDA, CAGrad, UPGrad and DualProj: weights that solve a convex problem. Class P."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from mtl_jax.kinds import choice
from mtl_jax.objectives.balancing.gram import Cosines, GramWeighting, cosines, keep, stateless
from mtl_jax.objectives.balancing.interior_point import TINY, minimize, simplex
from mtl_jax.objectives.declared import AtLeast0, Direction, Point, declared, number
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard

STEPS = 15
RIDGE = 2e-7  # Of the order of a cosine's rounding in float32.
FLOOR = 1e-3  # Of CAGrad's t, in units of the shortest gradient.
Normalization = Annotated[str, choice('none', 'l2', 'loss', 'loss+')]
Regularization = Annotated[float, number(1e-6)]  # Float32 cannot resolve less.


@on_gram
def mgda(normalization: Normalization = 'none') -> GramWeighting:
  """`min over a in the simplex of |sum_k a_k g_k / n_k|^2`, the weights being `a_k / n_k`.

  Sener, Koltun (2018), Multi-Task Learning as Multi-Objective Optimization; Désidéri (2012). The paper's Frank-Wolfe
  is slow to converge, so an interior-point method solves the same problem. The update is the shortest vector itself
  and conflicts with no task; the authors' code leaves out the division by n_k in it, and then that is not so. Without
  normalisation the weights sum to 1 (a mean): one task, or equal tasks, give the gradient itself.

  A task whose gradient is 0 makes that vector 0 and takes all the weight. Class P.

  Args:
    normalization: n_k: none 1, l2 |g_k|, loss L_k, loss+ L_k |g_k|; where that is not positive, 1.
  """

  def rule(gram, task):
    angles = cosines(gram, task)
    shares = jnp.ones_like(angles.norms) if normalization in ('l2', 'loss+') else 1 / angles.norms  # n_k / |g_k|.
    if normalization in ('loss', 'loss+'):
      shares = jnp.where(task.losses > 0, shares * task.losses, 1 / angles.norms)
    normal, start = simplex(angles, shares)

    def derivatives(b):
      return angles.matrix @ b, angles.matrix

    b = minimize(derivatives, start=start, normal=normal, live=angles.live, steps=STEPS)
    # b is right up to a factor, which makes the a_k = b_k n_k / |g_k| sum to 1.
    total = jnp.where(angles.live, b * shares, 0).sum()
    shortest = b / angles.norms / jnp.maximum(total, TINY)
    stuck = task.present & ~angles.live
    return jnp.where(stuck.any(), guard.equal(stuck), shortest)

  return stateless(rule)


@declared
def mgda_ub(normalization: Normalization = 'none', at: Point = 'representation') -> Objective:
  """MGDA-UB, of Sener and Koltun too: MGDA's upper bound, on the gradients at the representation. Class R."""
  return mgda(normalization, at=at)


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

    b = minimize(derivatives, start=start, normal=normal, live=angles.live, steps=25)
    b = b / jnp.maximum(normal @ b, TINY)
    along, _, t = pull(b)
    gradient = toward + along / t
    slack = jnp.where(angles.live, gradient - (gradient @ b) * normal, 0)
    return b / t, jnp.abs(jnp.minimum(slack, b / t)).max()

  ends, errors = jax.vmap(solve)(jnp.float32([0, 1]))
  return ends[jnp.argmin(errors)]


@on_gram
def upgrad(regularization: Regularization = 1e-4, preference: Direction = None) -> GramWeighting:
  """`sum_i v_i` with `v_i = argmin v' G v` over `v >= e_i / K`.

  Quinton, Rey (2024), Jacobian Descent for Multi-Objective Optimization. G is scaled to trace 1 and gets
  `regularization` on its diagonal, as in the authors' code; so a conflict of at most
  `d . g_k >= -regularization trace(G) weights_k` is left. Tasks without conflict give the *mean* gradient: weights of
  1 / K; one task alone gets 1. K problems of K unknowns, solved side by side. Class P.

  Args:
    regularization: as a share of trace(G), the sum of the squared norms; 1e-4 is the authors' code's.
    preference: weights, brought to a sum of 1, in the place of 1 / K: of the projected gradients.
  """
  preferred = guard.preference(preference)

  def rule(gram, task):
    floors = jnp.diag(preferred(task.present))
    return jax.vmap(cone_projection(gram, task.present, regularization))(floors).sum(0)

  return stateless(rule)


@on_gram
def dualproj(regularization: Regularization = 1e-4, preference: Direction = None) -> GramWeighting:
  """`argmin v' G v` over `v >= 1 / K`.

  Lopez-Paz, Ranzato (2017), Gradient Episodic Memory for Continual Learning, equation 11, of the mean gradient as in
  torchjd. One problem where UPGrad solves K: it helps the mean, and long gradients decide that. Tasks without conflict
  give the *mean* gradient; one task alone gets 1. Class P.

  Args:
    regularization: as in UPGrad.
    preference: weights, brought to a sum of 1, in the place of 1 / K.
  """
  preferred = guard.preference(preference)

  def rule(gram, task):
    return cone_projection(gram, task.present, regularization)(preferred(task.present))

  return stateless(rule)


def cone_projection(
  gram: Float[Array, 'k k'], present: Bool[Array, ' k'], regularization: float
) -> Callable[[Float[Array, ' k']], Float[Array, ' k']]:
  """From weights u to the `v >= u` with the least `v' G v`: `sum_k u_k g_k` projected onto the cone."""
  trace = jnp.trace(gram)
  scaled = gram / jnp.where(trace > 0, trace, 1) + regularization * jnp.eye(len(gram), dtype=gram.dtype)
  units = jnp.sqrt(jnp.diagonal(scaled))
  matrix = keep(scaled / units[:, None] / units[None, :], present)

  def project(floor):
    # v = floor + x / units, x >= 0, makes the diagonal 1; the linear term is brought near 1 as well.
    linear = jnp.where(present, matrix @ (units * floor), 0)
    size = jnp.maximum(jnp.abs(linear).max(), TINY)

    def derivatives(x):
      return matrix @ x + linear / size, matrix

    zeros, ones = jnp.zeros_like(floor), jnp.ones_like(floor)
    return floor + size * minimize(derivatives, start=ones, normal=zeros, live=present, steps=STEPS) / units

  return project
