"""PIVRG: FairGrad that asks more for tasks which have fallen behind. Class P, with scores from outside."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.balancing.fairness import fair_weights
from mtl_jax.objectives.balancing.gram import GramWeighting, cosines, stateful
from mtl_jax.objectives.declared import NumberOrEach, Temperature, number
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard


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
