"""The training step's gradient: `objectives.value_and_grad` over a forward pass, sized to the device's memory.

With `jit` over the global batch every gradient is already the mean over all devices when it is combined.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key
from ml_collections import ConfigDict

from mtl_jax.models.network import split
from mtl_jax.objectives import Objective, passes, task_gradients, value_and_grad
from mtl_jax.objectives.differentiate import ValueAndGrad
from mtl_jax.objectives.passes import HeadPass
from mtl_jax.objectives.task_gradients import Weighted
from mtl_jax.training import conflict
from mtl_jax.training.forward import Forward, Params

MEMORY_SHARE = 0.25  # Of a device's memory that backward passes side by side may take, and K kept gradients likewise.


@dataclasses.dataclass(frozen=True)
class Settings:
  """The choices about the gradients of K losses; `config.objective` says what the fields mean.

  Attributes:
    memory: bytes of a device, which automatic sizes go by; 0 where it is not known.
  """

  grain: str = 'tasks'
  heads: str = 'plain'
  chunk: int = 0
  gram_every_steps: int = 1
  gram_rows: int = 0
  log: bool = False
  memory: int = 0

  @classmethod
  def from_config(cls, objective: ConfigDict, *, memory: int) -> 'Settings':
    names = [field.name for field in dataclasses.fields(cls) if field.name != 'memory']
    return cls(**{name: objective[name] for name in names}, memory=memory)


PLAIN = Settings()


def compute(
  forward: Forward,
  params: Params,
  *,
  objective: Objective,
  state: Any,
  step: Int32[Array, ''],
  key: Key[Array, ''],
  settings: Settings,
) -> tuple[ValueAndGrad, dict[str, Float[Array, '']]]:
  """Computes a batch's gradient under the objective, and metrics of it if `settings.log` is set.

  Its `gradients` are those of all parameters, its `aux` those of both parts of the forward pass.
  """
  shared, heads = split(params)
  weigh = None
  if gram_alone(objective, shared, num=len(forward.entries), settings=settings):
    weigh = partial(weights_of_gram, forward, params, objective=objective, step=step, settings=settings)
  step_of = differentiated(forward, objective, settings, weigh)
  found = step_of(shared, heads, state, present=forward.present_in_parts, key=key)
  metrics = log_metrics(forward, shared, heads, objective, state, key, found) if settings.log else {}
  return found._replace(
    gradients={**found.gradients[0], **found.gradients[1]}, aux=found.aux.with_shared(found.moved)
  ), metrics


def after_step(forward: Forward, params: Any, *, objective: Objective, state: Any) -> Any:
  """The objective's state after the step, for those that compare the batch's losses before and after it."""
  return differentiated(forward, objective).after(*split(params), state, present=forward.present_in_parts)


def differentiated(
  forward: Forward, objective: Objective, settings: Settings = PLAIN, weigh: Any = None
) -> value_and_grad:
  """The batch's losses, to be differentiated in the way of an objective."""
  return value_and_grad(
    forward.head_losses,
    objective,
    represent=forward.encode,
    has_aux=True,
    heads=settings.heads,
    chunk=partial(chunk_size, asked=settings.chunk, memory=settings.memory),
    groups=forward.groups,
    extra=None if forward.auxiliary is None else lambda aux: sum(aux.auxiliary.values(), jnp.zeros(())),
    weigh=weigh,
  )


def through_heads(forward: Forward, representation: Any, heads: Params) -> HeadPass:
  """The losses, differentiable as far as the representation."""

  def losses_of(representation: Any, heads: Params) -> Any:
    each, aux = forward.head_losses(representation, heads)
    return (each, None), aux

  return passes.through_heads(losses_of, representation, heads, groups=forward.groups)


def gram_alone(objective: Objective, shared: Params, *, num: int, settings: Settings) -> bool:
  """True where weights come from the Gram matrix first, and then one weighted backward pass."""
  if objective.needs != 'parameters' or objective.weighting is None:
    return False
  keep = can_keep(shared, num, memory=settings.memory)
  return settings.gram_every_steps > 1 or settings.gram_rows > 0 or not keep


def weights_of_gram(
  forward: Forward,
  params: Params,
  pull: Any,
  points: Any,
  state: Weighted,
  known: dict[str, Any],
  *,
  objective: Objective,
  step: Int32[Array, ''],
  settings: Settings,
) -> Weighted:
  """The method's state with the weights for the Gram matrix of the whole batch or some rows of it, if that is due."""

  def renewed(state: Weighted) -> Weighted:
    here, pull_here, points_here, (shared, heads) = forward, pull, points, split(params)
    if settings.gram_rows:
      here = forward.rows(settings.gram_rows)
      representation, pull_here, _ = jax.vjp(here.encode, shared, has_aux=True)
      points_here = through_heads(here, representation, heads).points()
    num = passes.count(points_here)
    chunk = chunk_size(pull_here, num, asked=settings.chunk, memory=settings.memory)
    keep = can_keep(shared, num, memory=settings.memory)
    gram = passes.gram_at_parameters(pull_here, points_here, chunk=chunk, keep=keep, present=here.present)
    assert objective.weighting is not None
    return task_gradients.solve(objective.weighting, gram, state, **known | {'present': here.present})[1]

  every = settings.gram_every_steps
  return renewed(state) if every == 1 else jax.lax.cond(step % every == 0, renewed, lambda old: old, state)


def log_metrics(
  forward: Forward, shared: Params, heads: Params, objective: Objective, state: Any, key: Any, found: Any
) -> dict[str, Float[Array, '']]:
  """Metrics of the K gradients; in class L of those at the representation, for a backward pass through the heads."""
  present = forward.present
  if objective.needs == 'losses':
    weights = jax.grad(lambda each: objective.update(each, state, present=present, key=key)[0])(found.losses)
    points = through_heads(forward, forward.encode(shared)[0], heads).points()
    return conflict.metrics(task_gradients.gram(points).plain(), weights, present, entries=forward.entries)
  points = found.points if objective.parts == 1 else jax.tree.map(lambda leaf: leaf.mean(0), found.points)
  gram = found.state.gram if isinstance(found.state, Weighted) else task_gradients.gram(points).plain()
  return conflict.metrics(gram, getattr(found.state, 'weights', None), present, entries=forward.entries)


def chunk_size(pull: Any, num: int, *, asked: int, memory: int) -> int:
  """The number of backward passes side by side: as asked, or what a share of the memory holds, about equal chunks.

  One pass needs about as much as the forward pass left for it. On several devices it is one at a time: side by side, a
  convolution's batch becomes `num * b` rows that no longer lie in order on the devices, and XLA gathers them all. On a
  CPU likewise: it is busy with one, and side by side takes two to three times as long.
  """
  if asked:
    return min(asked, num)
  if jax.device_count() > 1 or jax.default_backend() == 'cpu':
    return 1
  left = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))
  largest = max(1, min(num, int(MEMORY_SHARE * memory / max(left, 1))))
  return -(-num // -(-num // largest))


def can_keep(shared: Params, num: int, *, memory: int) -> bool:
  """True where `num` gradients of the shared parameters, in float32, fit into their share of a device's memory."""
  needed = 4 * num * sum(leaf.size for leaf in jax.tree.leaves(shared))
  return not memory or needed <= MEMORY_SHARE * memory
