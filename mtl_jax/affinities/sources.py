"""The sources of transfer: a model trained on one task alone, and the features that it makes of every image."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from mtl_jax.affinities.heads import HeadTrainer
from mtl_jax.config import with_fields
from mtl_jax.data.input import pipeline
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Split
from mtl_jax.errors import DataError, DivergedError
from mtl_jax.evaluation.step import network_and_input
from mtl_jax.models import multitask
from mtl_jax.models.backbone import Representation
from mtl_jax.platform import sharding
from mtl_jax.run import start_weights
from mtl_jax.run.state import TrainState
from mtl_jax.run.workdir import DataFacts
from mtl_jax.tasks import LabelStats, Task
from mtl_jax.training import building, loop, splits

Stop = Callable[[], None]


class Sources:
  """The parts that all sources share: data, heads, and one compiled program for all tasks that are alike."""

  def __init__(self, config: ConfigDict, store: DataSet, directory: Path, *, stop: Stop):
    self.config, self.store, self.directory, self._stop = config, store, directory, stop
    self.tasks = DataFacts.of(store).selected(config)
    self.train, val, self.label_stats = splits.load(config, store, self.tasks)
    if val is None:
      raise DataError(f'split val of {store.directory} has no rows; transfer is measured on it')
    self.val = val
    self._programs: dict[str, Program] = {}
    model = multitask.from_config(config.model, self.tasks).after_frozen
    self._heads = HeadTrainer(config, model, self.tasks, self.label_stats)

  def run(self, source: str | None) -> tuple[Float[np.ndarray, 'k n'], float]:
    """Each task's losses on validation, of heads on a source's features, and the seconds that it all took.

    None is the network with its first weights, which are random but for pretrained ones.
    """
    started = time.monotonic()
    task = next((task for task in self.tasks if task.name == source), self.tasks[0])
    program = self._program(task)
    state = program.begin(self.label_stats[task.name])
    if source is None:
      state = program.settle(state, stop=self._stop)
    else:
      labels, mask = self.train.labels[task.name], self.train.mask[task.name]
      state = program.train(state, labels, mask, name=source, stop=self._stop)
    train, val = (program.features(state, split) for split in (program.run.train, program.val))
    params = self._heads.train(train, self.train, program.run.sampler, stop=self._stop)
    return self._heads.losses(params, val, self.val), time.monotonic() - started

  def _program(self, task: Task) -> 'Program':
    """The compiled program of the first of all tasks like this one, whichever is asked for first."""
    name = next(one.name for one in self.tasks if self._kind(one) == self._kind(task))
    if name not in self._programs:
      config = with_fields(self.config, tasks=name)
      self._programs[name] = Program(config, self.store, self.directory / 'transfer', task=name, stop=self._stop)
    return self._programs[name]

  def _kind(self, task: Task) -> Any:
    """Key that tasks of one label share if one program serves them; a task of several labels has its own."""
    if len(task.labels) > 1:
      return task
    return dataclasses.replace(task, name='', labels=()), multitask.head_of(self.config.model, task)


SETTLING_STEPS = 100  # A running average forgets its start to 1e-4 in these.


class Program:
  """A single-task run whose labels can be those of any task like its own, so that it is compiled once for all."""

  def __init__(self, config: ConfigDict, store: DataSet, directory: Path, *, task: str, stop: Stop):
    run = building.build(config, store)
    weights = start_weights.load(config, store.image_size)
    self.task, self._whole, self._pretrained = task, sharding.replicated(run.mesh), weights is not None
    self._init = partial(jax.jit(run.make_state, out_shardings=self._whole), pretrained_weights=weights)
    self.run = building.on_features(run, self._init().variables, directory, stop=lambda: bool(stop()))
    assert self.run.val is not None  # `Sources` has looked.
    self.val: Split = self.run.val

    def encode(variables: Any, batch: Any, **how: Any) -> Any:
      network, inputs = network_and_input(run.model, batch)
      return network.encode(variables, inputs, **how)

    def settled(variables: Any, batch: Any) -> Any:
      return {**variables, **encode(variables, batch, train=True, key=jax.random.key(0))[1]}

    self._encode, self._settled = jax.jit(partial(encode, train=False)), jax.jit(settled)

  def begin(self, label_stats: LabelStats) -> TrainState:
    """The state before the first step, for a task whose labels have these statistics."""
    return self._init().replace(label_stats=jax.device_put({self.task: label_stats}, self._whole))

  def train(self, state: TrainState, labels: Any, mask: Any, *, name: str, stop: Stop) -> TrainState:
    """The state after the last step. Raises DivergedError, naming the source, if a loss is not finite."""
    split = dataclasses.replace(self.run.train, labels={self.task: labels}, mask={self.task: mask})
    own = dataclasses.replace(self.run, train=split)
    placed, losses = own.input.place(), []
    for _, items in loop.input_items(own, 0):
      stop()
      state, metrics = self.run.compiled_steps(state, placed, items)  # Compiled once for all tasks.
      losses.append(metrics['loss'])
      sharding.hold_back(losses)
    values = np.concatenate(jax.device_get(losses))
    if not np.isfinite(values).all():
      step = int(np.argmin(np.isfinite(values))) + 1
      raise DivergedError(f'{name} alone diverged at step {step}; lower config.optimizer.learning_rate')
    return state

  def settle(self, state: TrainState, *, stop: Stop) -> TrainState:
    """A net that did not learn, with running statistics of batch norm that are its own; pretrained ones are kept."""
    if self._pretrained or not jax.tree.leaves(state.variables.get('batch_stats', {})):
      return state
    variables = state.variables
    for step in range(SETTLING_STEPS):
      stop()
      variables = self._settled(variables, self.run.train.read(self.run.sampler.indices(step)))
    return state.replace(variables=variables, average=None)

  def features(self, state: TrainState, split: Split) -> Float[np.ndarray, 'n f']:
    """Computes the features that the heads read of each example of a split."""
    batch_size, found = self.run.config.eval.batch_size, []
    for positions in pipeline.padded_positions(len(split), batch_size):
      made, _ = self._encode(state.eval_variables, split.read(positions))
      representation = made if isinstance(made, Representation) else made[self.task]
      found.append(np.asarray(representation.features, np.float32))
    return np.concatenate(found)[: len(split)]
