"""Nash-MTL: the update on which bargaining tasks agree. Class P."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.fairness import fair_weights
from mtl_jax.objectives.balancing.gram import GramWeighting, cosines, stateful
from mtl_jax.objectives.declared import Period
from mtl_jax.objectives.shapes import Array, Bool, Float, Int
from mtl_jax.objectives.task_gradients import on_gram


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
