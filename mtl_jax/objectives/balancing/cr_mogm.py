"""CR-MOGM: another method's weights, averaged over the steps. Class P, with state."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from mtl_jax.errors import ConfigError
from mtl_jax.objectives import balancing
from mtl_jax.objectives.balancing.gram import GramWeighting, stateful
from mtl_jax.objectives.shapes import Array, Float


class State(NamedTuple):
  """The averaged weights, NaN before a task's first, and the method's own state."""

  average: Float[Array, ' k']
  inner: Any


def cr_mogm(method: str | GramWeighting = 'upgrad', alpha: float = 0.9) -> GramWeighting:
  """`w = alpha w_before + (1 - alpha) w_method`, from the method's first weights on.

  Zhou, Zhang, Jiang, Zhong, Gu, Zhu (2022), On the Convergence of Stochastic Multi-Objective Gradient Manipulation and
  Beyond: stochastic gradients bias the weights, which an average over steps steadies. The paper raises alpha towards 1
  as the learning rate falls; here, as in torchjd, it is one number. An absent task keeps its average. Class P.

  Args:
    method: on the Gram matrix: a name in `mtl_jax.objectives.balancing`, or what a function there gives.
    alpha: how much of the average is kept, 0 to 1.

  Raises:
    ConfigError: the method is unknown, or alpha out of range.
  """
  if not 0 <= alpha <= 1:
    raise ConfigError(f'cr_mogm: alpha is {alpha}; give a number from 0 to 1')
  if isinstance(method, str):
    if method not in balancing.METHODS or method == 'cr_mogm':
      known = ', '.join(name for name in balancing.METHODS if name != 'cr_mogm')
      raise ConfigError(f'cr_mogm: method {method!r} is unknown; choose from {known}')
    method = balancing.METHODS[method]()

  def init(num_tasks):
    return State(jnp.full(num_tasks, jnp.nan), method.init(num_tasks))

  def rule(gram, state, task):
    new, inner = method.weights(gram, state.inner, losses=task.losses, present=task.present, key=task.key)
    average = alpha * jnp.where(jnp.isnan(state.average), new, state.average) + (1 - alpha) * new
    average = jnp.where(task.present, average, state.average)
    return average, State(average, inner)

  return stateful(init, rule)
