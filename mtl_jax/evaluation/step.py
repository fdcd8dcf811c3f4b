"""The evaluation step: predictions and losses of a batch, a pure function of variables and batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.data.input.augment import network_input
from mtl_jax.models.network import Network
from mtl_jax.tasks import LabelStats, Task, losses


def eval_step(
  variables: Mapping[str, Any],
  label_stats: Mapping[str, LabelStats],
  batch: Mapping[str, Any],
  *,
  model: Network,
  tasks: Sequence[Task],
) -> dict[str, Any]:
  """Predictions of a batch, and each task's sum of losses with the number of labels it runs over."""
  model, inputs = network_and_input(model, batch)
  outputs, predictions = predict_step(variables, label_stats, inputs, model=model, tasks=tasks)
  mask = batch['mask']
  per_label = label_losses(outputs, batch['labels'], mask, tasks=tasks, label_stats=label_stats)
  return {
    'predictions': predictions,
    'loss_sum': {name: jnp.where(mask[name], values, 0).sum() for name, values in per_label.items()},
    'num_labels': {name: mask[name].sum() for name in per_label},
  }


def predict_step(
  variables: Mapping[str, Any],
  label_stats: Mapping[str, LabelStats],
  images: Array,
  *,
  model: Network,
  tasks: Sequence[Task],
) -> tuple[dict[str, Array], dict[str, Array]]:
  """Raw outputs and predictions in the labels' own units, for images, or for what the network reads instead."""
  outputs = model.outputs(variables, network_input(images))
  predictions = {}
  for task in tasks:
    stats = label_stats[task.name]
    scaled = outputs[task.name] * stats.std + stats.mean if task.standardized else outputs[task.name]
    predictions[task.name] = task.predict(scaled)
  return outputs, predictions


def network_and_input(model: Network, batch: Mapping[str, Any]) -> tuple[Network, Array]:
  """The network for a batch and what it reads: its images; or kept features, and what follows the frozen stages."""
  if 'features' in batch:
    return model.after_frozen, batch['features']
  return model, network_input(batch['image'])


def label_losses(
  outputs: Mapping[str, Array],
  labels: Mapping[str, Array],
  mask: Mapping[str, Array],
  *,
  tasks: Sequence[Task],
  label_stats: Mapping[str, LabelStats],
) -> dict[str, Float[Array, 'b k']]:
  """The loss of each label, `[b, k]` for each task, in the units that are learned."""
  result = {}
  for task in tasks:
    stats = label_stats[task.name]
    targets = (labels[task.name] - stats.mean) / stats.std
    result[task.name] = task.loss(outputs[task.name], losses.guard(targets, mask[task.name]))
  return result
