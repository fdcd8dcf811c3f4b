"""The gradient that a step descends: of one total, or of K losses one by one, combined by the objective.

K losses that share most of their network are differentiated in two stages: through the heads, which gives each loss's
gradient at the representation; then through the shared part, once for methods that combine at the representation, K
times for those at the parameters. With `jit` over the global batch every gradient is already the mean over all devices
when it is combined.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Key
from ml_collections import ConfigDict

from mtl_jax.objectives import Objective, grain, task_gradients
from mtl_jax.objectives.task_gradients import Weighted
from mtl_jax.training import backward, conflict
from mtl_jax.training.forward import Forward, Params, Seen, split


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the gradients of K losses are had; `config.objective` says what the fields mean.

  Attributes:
    memory: bytes of a device, which automatic sizes go by; 0 where it is not known.
  """

  grain: str = 'tasks'
  chunk: int = 0
  gram_every_steps: int = 1
  gram_rows: int = 0
  log: bool = False
  memory: int = 0

  @classmethod
  def from_config(cls, config: ConfigDict, *, memory: int) -> 'Settings':
    names = [field.name for field in dataclasses.fields(cls) if field.name != 'memory']
    return cls(**{name: config.objective[name] for name in names}, memory=memory)


PLAIN = Settings()


class Found(NamedTuple):
  """What a step needs to move on.

  Attributes:
    total: the loss to report: the objective's total, or the sum of the losses where it has none.
    gradients: with respect to all parameters.
    objective: the objective's next state.
    seen: the other results of the forward pass.
    metrics: of the task gradients, where they are asked for.
  """

  total: Float[Array, '']
  gradients: Params
  objective: Any
  seen: Seen
  metrics: dict[str, Array]


def find(
  forward: Forward,
  params: Params,
  *,
  objective: Objective,
  state: Any,
  step: Int32[Array, ''],
  key: Key[Array, ''],
  settings: Settings,
) -> Found:
  """The gradient of a batch, in the way of the objective's cost class; of auxiliary losses it is the plain one."""
  if objective.needs == 'losses':
    return of_total(forward, params, objective=objective, state=state, key=key, log=settings.log)
  alone = dataclasses.replace(forward, auxiliary=None)
  found = of_each(alone, params, objective=objective, state=state, step=step, key=key, settings=settings)
  return found if forward.auxiliary is None else with_auxiliary(found, forward, params)


def with_auxiliary(found: Found, forward: Forward, params: Params) -> Found:
  """With the auxiliary losses' plain gradient added: what the objective balances are the tasks' gradients alone."""

  def total_fn(params):
    auxiliary = forward.losses(params)[1].auxiliary
    return sum(auxiliary.values(), jnp.zeros(())), auxiliary

  (total, auxiliary), more = jax.value_and_grad(total_fn, has_aux=True)(params)
  gradients = jax.tree.map(jnp.add, found.gradients, more)
  return found._replace(total=found.total + total, gradients=gradients, seen=found.seen._replace(auxiliary=auxiliary))


def of_total(forward: Forward, params: Params, *, objective: Objective, state: Any, key: Any, log: bool) -> Found:
  """One backward pass, for an objective that is a function of the losses.

  If asked for, the metrics are those at the representation, which cost a backward pass through the heads.
  """
  present = forward.present

  def total_fn(params):
    each, seen = forward.losses(params)
    total, next_state = objective.update(each[0], state, present=present, key=key)
    return sum(seen.auxiliary.values(), total), (each[0], next_state, seen)

  (total, (each, next_state, seen)), gradients = jax.value_and_grad(total_fn, has_aux=True)(params)
  metrics = {}
  if log:
    weights = jax.grad(lambda each: objective.update(each, state, present=present, key=key)[0])(each)
    shared, heads = split(params)
    points = backward.differentiate_heads(forward, heads, forward.represent(shared)[0]).points
    metrics = conflict.metrics(task_gradients.gram(points), weights, present, entries=forward.entries)
  return Found(total, gradients, next_state, seen, metrics)


def of_each(
  forward: Forward, params: Params, *, objective: Objective, state: Any, step: Any, key: Any, settings: Settings
) -> Found:
  """K gradients at the representation or at the shared parameters, combined by the objective."""
  shared, heads = split(params)
  representation, pull, moved = jax.vjp(forward.represent, shared, has_aux=True)
  each, seen, points, head_gradients = backward.differentiate_heads(
    forward, heads, representation, scale=objective.head_scale
  )
  whole = grain.over_parts(each, forward.present_in_parts)
  arguments = {'losses': whole, 'present': forward.present, 'key': key}
  if objective.needs == 'representation':
    combined, next_state = objective.update(points, state, at=representation, **arguments)
    (shared_gradients,) = pull(combined)
  elif (weighting := objective.weighting) is not None and gram_alone(shared, num=each.size, settings=settings):

    def renewed(state: Weighted) -> Weighted:
      gram, present = measure_gram(forward, params, pull, points, settings=settings)
      return task_gradients.solve(weighting, gram, state, **arguments | {'present': present})[1]

    every = settings.gram_every_steps
    next_state = renewed(state) if every == 1 else jax.lax.cond(step % every == 0, renewed, lambda old: old, state)
    weights = jnp.where(forward.present, next_state.weights, 0)
    (shared_gradients,) = pull(task_gradients.weighted_sum(weights, points))
  else:
    chunk = backward.chunk_size(pull, each.size, asked=settings.chunk, memory=settings.memory)
    points = backward.at_parameters(pull, points, chunk=chunk)
    if objective.parts > 1:
      points = jax.tree.map(lambda leaf: leaf.reshape(*each.shape, *leaf.shape[1:]), points)
    shared_gradients, next_state = objective.update(points, state, **arguments)
  metrics = {}
  if settings.log:
    gram = next_state.gram if isinstance(next_state, Weighted) else task_gradients.gram(_whole(points, objective))
    weights = getattr(next_state, 'weights', None)
    metrics = conflict.metrics(gram, weights, forward.present, entries=forward.entries)
  return Found(whole.sum(), {**shared_gradients, **head_gradients}, next_state, seen.after(moved), metrics)


def _whole(points: Any, objective: Objective) -> Any:
  """Gradients of the whole batch, from those of its parts."""
  return points if objective.parts == 1 else jax.tree.map(lambda leaf: leaf.mean(0), points)


def gram_alone(shared: Params, *, num: int, settings: Settings) -> bool:
  """Whether to have weights from the Gram matrix first and then one weighted backward pass."""
  keep = backward.can_keep(shared, num, memory=settings.memory)
  return settings.gram_every_steps > 1 or settings.gram_rows > 0 or not keep


def measure_gram(
  forward: Forward, params: Params, pull: Any, points: Any, *, settings: Settings
) -> tuple[Float[Array, 'k k'], Bool[Array, ' k']]:
  """The Gram matrix at the shared parameters, of the whole batch or some rows of it, and which losses those have."""
  shared, heads = split(params)
  if settings.gram_rows:
    forward = forward.rows(settings.gram_rows)
    representation, pull, _ = jax.vjp(forward.represent, shared, has_aux=True)
    points = backward.differentiate_heads(forward, heads, representation).points
  chunk = backward.chunk_size(pull, backward.count(points), asked=settings.chunk, memory=settings.memory)
  keep = backward.can_keep(shared, backward.count(points), memory=settings.memory)
  return backward.gram_at_parameters(pull, points, chunk=chunk, keep=keep), forward.present


def look_again(forward: Forward, params: Any, *, objective: Objective, state: Any) -> Any:
  """The objective's state after the step, for those that want to see what the step did to the batch's losses."""
  if objective.after is None:
    return state
  return objective.after(forward.losses(params)[0][0], state, present=forward.present)
