"""The forward pass of a batch from parameters to losses, in two parts: the shared layers, and the heads."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int64, Key

from mtl_jax.evaluation.step import label_losses
from mtl_jax.models.network import Network, split
from mtl_jax.objectives import loss_terms
from mtl_jax.objectives.loss_terms import Entry
from mtl_jax.tasks import LabelStats, Task, losses
from mtl_jax.training import micro_batches

Params = Mapping[str, Any]


class ForwardAux(NamedTuple):
  """Auxiliary results of a forward pass, besides the objective's losses.

  Attributes:
    task_losses: each task's mean loss over the labels present.
    moved: the model's variables, but for parameters, that the pass has changed, such as `batch_stats`.
    auxiliary: losses beside those of the tasks, weighted, by name.
  """

  task_losses: dict[str, Float[Array, '']]
  moved: Mapping[str, Any]
  auxiliary: Mapping[str, Float[Array, '']]

  def with_shared(self, moved: Mapping[str, Any]) -> 'ForwardAux':
    """Adds the variables that the shared part has changed."""
    stats = {**moved.get('batch_stats', {}), **self.moved['batch_stats']}
    return self._replace(moved={**moved, 'batch_stats': stats})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
  """The forward pass of one batch, with everything that its losses depend on except the parameters.

  Attributes:
    images: what the network reads: pixels `[b, h, w, 3]`, normalised and augmented, or features; labels and mask
      `{task: [b, n]}` belong to them.
    entries: the losses that the objective balances.
    variables: the model's; its parameters are not read.
    parts: into how many parts of the batch each of them is split.
    sets: the set of a mixture that each row is of, by which parts and micro-batches are made; None: all are of one.
    accumulate: into how many micro-batches the shared part's rows are divided: see `micro_batches.py`.
    key: of what is random in a way of sharing.
    weights: of the labels, `{task: [b, n]}`, where they do not all weigh 1.
    auxiliary: from the outputs to losses beside those of the tasks, by name; they are of the whole batch.
  """

  model: Network
  tasks: Sequence[Task]
  entries: Sequence[Entry]
  images: Float[Array, 'b ...']
  labels: Mapping[str, Array]
  mask: Mapping[str, Array]
  variables: Mapping[str, Any]
  label_stats: Mapping[str, LabelStats]
  parts: int = 1
  sets: Int64[np.ndarray, ' b'] | None = None
  key: Key[Array, ''] | None = None
  accumulate: int = 1
  weights: Mapping[str, Array] | None = None
  auxiliary: Callable[[Any], dict[str, Array]] | None = None

  def encode(self, shared: Params) -> tuple[Any, Mapping[str, Any]]:
    """Encodes the batch: what the heads read, and the variables that the shared part has changed."""
    variables = {**self.variables, 'params': shared, 'batch_stats': split(self.variables.get('batch_stats', {}))[0]}
    apply = partial(self.model.encode, train=True, key=self.key)
    if self.accumulate == 1:
      return apply(variables, self.images)
    return micro_batches.scan(
      apply, variables, self.images, part=self._split_into(self.accumulate), num=self.accumulate
    )

  def head_losses(self, representation: Any, heads: Params) -> tuple[Float[Array, 'p k'], ForwardAux]:
    """The losses of each part of the batch, from one representation for all heads or a mapping with one for each."""
    variables = {'params': heads, 'batch_stats': split(self.variables.get('batch_stats', {}))[1]}
    outputs, moved = self.model.decode(variables, representation, train=True, key=self.key)
    per_label = label_losses(outputs, self.labels, self.mask, tasks=self.tasks, label_stats=self.label_stats)
    each, _ = self._reduce(per_label, self.weights)
    task_losses = {task.name: losses.masked_mean(per_label[task.name], self.mask[task.name]) for task in self.tasks}
    auxiliary = {} if self.auxiliary is None else self.auxiliary(outputs)
    return each, ForwardAux(task_losses, {'batch_stats': moved.get('batch_stats', {})}, auxiliary)

  def losses(self, params: Params) -> tuple[Float[Array, 'p k'], ForwardAux]:
    """The losses of each part of the batch."""
    shared, heads = split(params)
    representation, moved = self.encode(shared)
    each, aux = self.head_losses(representation, heads)
    return each, aux.with_shared(moved)

  def _split_into(self, num: int) -> Int64[np.ndarray, ' b']:
    sets = np.zeros(len(self.images), np.int64) if self.sets is None else self.sets
    return loss_terms.batch_parts(sets, num)

  def _reduce(
    self, per_label: Mapping[str, Array], weights: Mapping[str, Array] | None = None
  ) -> tuple[Float[Array, 'p k'], Bool[Array, 'p k']]:
    part = None if self.parts == 1 else self._split_into(self.parts)
    return loss_terms.reduce(per_label, self.mask, entries=self.entries, part=part, parts=self.parts, weights=weights)

  @property
  def groups(self) -> list[str]:
    """The head that each loss belongs to."""
    return [entry.task for entry in self.entries]

  @property
  def present(self) -> Bool[Array, ' k']:
    """True for each loss that has a label in every part of the batch."""
    return self.present_in_parts.all(0)

  @property
  def present_in_parts(self) -> Bool[Array, 'p k']:
    """True for each loss that has a label, in each part of the batch."""
    return self._reduce(self.mask)[1]

  def rows(self, num_rows: int) -> 'Forward':
    """The same of about `num_rows` rows, each on its device: the first part of the batch."""
    by_row = (self.images, self.labels, self.mask, self.weights)
    num = max(len(self.images) // num_rows, 1)
    first = partial(loss_terms.rows_of_first_part, part=self._split_into(num), num=num)
    images, labels, mask, weights = jax.tree.map(first, by_row)
    fewer = {'images': images, 'labels': labels, 'mask': mask, 'weights': weights}
    return dataclasses.replace(self, **fewer, auxiliary=None, accumulate=1, parts=1, sets=None)
