"""CR-MOGM: another method's weights, averaged over the steps. Class P, with state."""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp

from mtl_jax import objectives
from mtl_jax.kinds import Kind, choose
from mtl_jax.objectives.balancing.gram import GramWeighting, stateful
from mtl_jax.objectives.declared import Share
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.task_gradients import on_gram


class State(NamedTuple):
  """The averaged weights, NaN before a task's first, and the method's own state."""

  average: Float[Array, ' k']
  inner: Any


Method = Annotated[str | GramWeighting, Kind('a method', lambda value: isinstance(value, str | GramWeighting))]


@on_gram
def cr_mogm(method: Method = 'upgrad', alpha: Share = 0.9) -> GramWeighting:
  """`w = alpha w_before + (1 - alpha) w_method`, from the method's first weights on.

  Zhou, Zhang, Jiang, Zhong, Gu, Zhu (2022), On the Convergence of Stochastic Multi-Objective Gradient Manipulation and
  Beyond: stochastic gradients bias the weights, which an average over steps steadies. The paper raises alpha towards 1
  as the learning rate falls; here, as in torchjd, it is one number. An absent task keeps its average. Class P.

  Args:
    method: on the Gram matrix: its name, or the `weighting` of its objective.
    alpha: how much of the average is kept.

  Raises:
    ConfigError: the method is unknown.
  """
  if isinstance(method, str):
    others = {name: make().weighting for name, make in objectives.OBJECTIVES.items() if name != 'cr_mogm'}
    known = {name: weighting for name, weighting in others.items() if weighting is not None}
    method = known[choose(method, tuple(known), field='cr_mogm: method')]

  def init(num_tasks):
    return State(jnp.full(num_tasks, jnp.nan), method.init(num_tasks))

  def rule(gram, state, task):
    new, inner = method.weights(gram, state.inner, **task._asdict())
    average = alpha * jnp.where(jnp.isnan(state.average), new, state.average) + (1 - alpha) * new
    average = jnp.where(task.present, average, state.average)
    return average, State(average, inner)

  return stateful(init, rule)
