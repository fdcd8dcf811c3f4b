"""The training step: a pure function of state and batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, Int64, Key, Shaped

from mtl_jax.data.input import augment
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.evaluation.step import network_and_input
from mtl_jax.models.network import Network
from mtl_jax.objectives import Objective, loss_terms
from mtl_jax.objectives.matching import Coupling
from mtl_jax.run.state import TrainState
from mtl_jax.tasks import Task
from mtl_jax.training import gradients
from mtl_jax.training.forward import Forward

Metrics = dict[str, Shaped[Array, '']]

LEFT_OUT = 'left_out'  # A metric: whether the step's update was left out.


def train_step(
  state: TrainState,
  batch: Mapping[str, Any],
  *,
  model: Network,
  tasks: Sequence[Task],
  tx: optax.GradientTransformation,
  objective: Objective,
  augmentation: Augmentation,
  seed: int,
  ema_decay: float,
  settings: gradients.Settings = gradients.PLAIN,
  accumulate: int = 1,
  sets: Int64[np.ndarray, ' b'] | None = None,
  skip_nonfinite: bool = False,
  coupling: Coupling | None = None,
) -> tuple[TrainState, Metrics]:
  """Returns the next state and the step's metrics: the total loss, and each task's over the labels present.

  The shared part reads the batch in `accumulate` micro-batches: see `micro_batches.py`. `sets` is the set of a mixture
  that each row is of. With `skip_nonfinite` a step of which one metric is not finite changes nothing but the count of
  steps.
  """
  forward, objective_key = forward_of(
    state,
    batch,
    model=model,
    tasks=tasks,
    augmentation=augmentation,
    seed=seed,
    entries=loss_terms.entries(tasks, settings.grain),
    parts=objective.parts,
    accumulate=accumulate,
    sets=sets,
    coupling=coupling,
  )
  params = state.variables['params']
  found, gradient_metrics = gradients.compute(
    forward, params, objective=objective, state=state.objective, step=state.step, key=objective_key, settings=settings
  )
  total, descent = add_penalty(model, params, found.value, found.gradients)
  updates, optimizer = tx.update(descent, state.optimizer, params)
  params = optax.apply_updates(params, updates)
  variables = {**state.variables, **found.aux.moved, 'params': params}
  next_state = state.replace(
    step=state.step + 1,
    variables=variables,
    average=moving_average(state.average, variables, step=state.step, decay=ema_decay),
    optimizer=optimizer,
    objective=gradients.after_step(forward, params, objective=objective, state=found.state),
  )
  metrics = {f'{name}/loss': loss for name, loss in (found.aux.task_losses | dict(found.aux.auxiliary)).items()}
  metrics = {'loss': total, 'grad_norm': optax.tree.norm(descent), **metrics, **gradient_metrics}
  return leave_out(state, next_state, metrics) if skip_nonfinite else (next_state, metrics)


def leave_out(before: Any, after: Any, metrics: Metrics) -> tuple[Any, Metrics]:
  """State and metrics of a step: if one of its metrics is not finite, the state before it, but for the step's count."""
  finite = jnp.stack([jnp.isfinite(values).all() for values in metrics.values()]).all()
  kept = jax.tree.map(lambda old, new: jnp.where(finite, new, old), before, after)
  return kept.replace(step=after.step), {**metrics, LEFT_OUT: ~finite}


def forward_of(
  state: TrainState,
  batch: Mapping[str, Any],
  *,
  model: Network,
  tasks: Sequence[Task],
  augmentation: Augmentation,
  seed: int,
  entries: Sequence[loss_terms.Entry],
  parts: int = 1,
  accumulate: int = 1,
  sets: Int64[np.ndarray, ' b'] | None = None,
  coupling: Coupling | None = None,
) -> tuple[Forward, Key[Array, '']]:
  """The step's batch on its way to the losses, normalised and augmented, and the objective's key of the step.

  Args:
    entries: the losses that are wanted.
    parts: into how many parts of the batch each of them is split.
  """
  augment_key, objective_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
  model, inputs = network_and_input(model, batch)
  images, labels, mask = augment.augment(
    inputs, batch['labels'], batch['mask'], key=augment_key, tasks=tasks, settings=augmentation
  )
  weights = auxiliary = None
  if coupling is not None:
    auxiliary = coupling.auxiliary(labels, mask, label_stats=state.label_stats, step=state.step)
    labels, mask, weights = coupling.complete(labels, mask)
  forward = Forward(
    model=model,
    tasks=tasks,
    entries=entries,
    images=images,
    labels=labels,
    mask=mask,
    variables=state.variables,
    label_stats=state.label_stats,
    parts=parts,
    sets=sets,
    key=jax.random.fold_in(objective_key, 1),
    accumulate=accumulate,
    weights=weights,
    auxiliary=auxiliary,
  )
  return forward, objective_key


def add_penalty(model: Network, params: Any, total: Float[Array, ''], gradients: Any) -> tuple[Float[Array, ''], Any]:
  """The total and its gradients with the penalty that the way of sharing puts on parameters, if it does."""
  if model.penalty(params) is None:
    return total, gradients
  penalty, more = jax.value_and_grad(model.penalty)(params)
  return total + penalty, jax.tree.map(jnp.add, gradients, more)


def moving_average(average: Any, variables: Any, *, step: Int32[Array, ''], decay: float) -> Any:
  """The next average; its memory grows with the steps taken, so that early weights are soon forgotten."""
  if average is None:
    return None
  variables = {name: variables[name] for name in average}  # What is frozen needs no average.
  keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda a, v: keep * a + (1 - keep) * v, average, variables)


def repeat_fetching(
  step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
  fetch: Callable[[Any, Any], Any],
) -> Callable:
  """The step over batches stacked along a new first axis, in one call; metrics come stacked as well.

  Each batch is first fetched, inside the program, from a source on the devices, which is an argument of the result,
  after the state: a constant would be compiled into the program.
  """

  def steps(state: TrainState, source: Any, items: Any) -> tuple[TrainState, dict[str, Shaped[Array, ' s']]]:
    return jax.lax.scan(lambda state, item: step(state, fetch(source, item)), state, items)

  return steps
