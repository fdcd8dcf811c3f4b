"""Nash-MTL, FairGrad and PIVRG: updates that are fair in the tasks' gains. Class P.

All solve `sum_j G_ij w_j = (s_i / w_i)^(1/alpha)`.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from mtl_jax.objectives.balancing.gram import Cosines, GramWeighting, cosines, stateful, stateless
from mtl_jax.objectives.declared import NumberOrEach, Period, Temperature, number
from mtl_jax.objectives.shapes import Array, Bool, Float, Int
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard

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


class NashState(NamedTuple):
  """The bargain in force: its weights [K], the tasks that were party to it [K], and how many steps it has served."""

  weights: Float[Array, ' k']
  parties: Bool[Array, ' k']
  age: Int[Array, '']


@on_gram
def nash_mtl(every_steps: Period = 1) -> GramWeighting:
  """`G a = 1 / a`, a > 0: the direction with the largest product of gains.

  Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya (2022), Multi-Task Learning as a Bargaining Game. The
  equation is the stationarity of the convex `a' G a / 2 - sum log a`, so a damped Newton method finds in 16 steps what
  the paper approaches by convex-concave ones. The update's norm is `sqrt(K)` whatever the gradients' are (one task
  alone: g / |g|); the authors' code then clips it to 1, which the optimizer's own clipping can do. Every task gains:
  d . g_k = 1 / a_k. Where some positive combination of the gradients is 0, as for opposing ones, the equation has no
  solution: the weights then near that combination, large but finite, and the update nearly vanishes. A task whose
  gradient is 0 gets 0. In LibMTL heads get the gradients times a: `heads='weighted'`. Class P.

  Args:
    every_steps: how often to solve; in between, and as long as no new task joins, the last weights hold.
  """

  def init(num_tasks):
    return NashState(jnp.zeros(num_tasks, jnp.float32), jnp.zeros(num_tasks, bool), jnp.zeros((), jnp.int32))

  def rule(gram, state, task):
    angles = cosines(gram, task)

    def solve(_):
      return NashState(fair_weights(angles, 1.0), task.present, jnp.ones((), jnp.int32))

    def hold(state):
      return state._replace(age=state.age + 1)

    due = (state.age % every_steps == 0) | (task.present & ~state.parties).any()
    state = jax.lax.cond(due, solve, hold, state)
    return state.weights, state

  return stateful(init, rule)


@on_gram
def fairgrad(alpha: Annotated[float, number(0.5, 10)] = 2.0) -> GramWeighting:
  """`G w = w^(-1/alpha)`, w > 0: the direction of the largest sum of gains to the power 1 - alpha.

  Ban, Ji (2024), Fair Resource Allocation in Multi-Task Learning; alpha = 2 on CelebA (LibMTL's default is 1). The
  weights are neither a mean's nor a sum's: gradients times s give weights times `s^(-2 alpha / (1 + alpha))`, an update
  times `s^((1 - alpha) / (1 + alpha))`, and one task alone gets `|g|^(-2 alpha / (1 + alpha))`. (The authors' code then
  multiplies by K.) alpha = 1 is Nash-MTL. A task whose gradient is 0 gets 0; where the equation has no solution see
  `fair_weights`. In LibMTL heads get the gradients times w: `heads='weighted'`. Class P.

  With alpha above 1 the update *grows* as the gradients shrink, without bound near a stationary point, and it does not
  vanish on the Pareto front: there the solution drifts along the front towards the task with the smaller gradient. So
  clip the update (`optimizer.clip_norm`, 1 as in the authors' code) and let the learning rate fall. The published
  behaviour is that of a least-squares solver which stops short of the solution, whose steps are smaller there.

  Args:
    alpha: the larger, the more the worst-off task counts.
  """
  return stateless(lambda gram, task: fair_weights(cosines(gram, task), alpha))


class Scores(NamedTuple):
  """Each task's shortfall on validation, in per cent of what it reaches alone: higher is worse."""

  scores: Float[Array, ' k']


@on_gram
def pivrg(
  bound: Annotated[float, number(1.001)] = 2.0, least_temperature: Temperature = 10.0, scores: NumberOrEach = 0.0
) -> GramWeighting:
  """`G w = (s / w)^(1/2)`, `s = K softmax(scores / T)`, `T = max((max - min) / log(bound), least_temperature)`.

  Qin, Wang, Yan (2025), Revisiting Fairness in Multitask Learning: A Performance-Driven Approach for Variance
  Reduction. With equal scores it is FairGrad at alpha = 2. The scores are no function of a batch, so they are the
  caller's: a loop that evaluates writes them into the state, as `state._replace(inner=Scores(new))`. They compare a
  task with what it reaches alone, which `mtl-jax train` does not know, so there they stay what the option says. (The
  authors' code multiplies the update by K and clips it to norm 1.) Class P.

  Args:
    bound: the largest ratio of two tasks' s.
    least_temperature: below it T does not fall, in per cent.
    scores: at the start, one for all or one for each.
  """

  def init(num_tasks):
    return Scores(jnp.broadcast_to(guard.per_task(scores, num_tasks, name='scores'), (num_tasks,)))

  def rule(gram, state, task):
    least = jnp.where(task.present, state.scores, jnp.inf).min()
    most = jnp.where(task.present, state.scores, -jnp.inf).max()
    spread = jnp.where(task.present.any(), most - least, 0)
    temperature = jnp.maximum(spread / jnp.log(bound), least_temperature)
    logs = jax.nn.log_softmax(jnp.where(task.present, state.scores / temperature, guard.NEVER))
    priorities = jnp.where(task.present, logs + jnp.log(guard.count(task.present)), 0)
    return fair_weights(cosines(gram, task), 2.0, log_priorities=priorities), state

  return stateful(init, rule)
