"""The transfer matrix: a model trained on one task alone, its features frozen, and heads of all tasks learned on them.

In the manner of Zamir et al. 2018, "Taskonomy". The features are computed once; since nothing that is shared learns,
the heads of all tasks can be trained side by side and each ends as it would alone. Heads on the features of an
untrained network are beside them. Every source that is done is a file of its own.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mtl_jax.config import with_fields
from mtl_jax.data.input import mixture, pipeline
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.input.sampler import Sampler
from mtl_jax.errors import CheckpointError, ConfigError, DataError, DivergedError
from mtl_jax.evaluation.step import label_losses, network_and_input
from mtl_jax.metrics import draws
from mtl_jax.models import multitask
from mtl_jax.models.backbone import Representation
from mtl_jax.models.network import Network
from mtl_jax.objectives import loss_terms
from mtl_jax.platform import npz, sharding
from mtl_jax.platform.progress_bar import bar
from mtl_jax.run import optimizer, start_weights
from mtl_jax.run.workdir import DataFacts
from mtl_jax.tasks import LabelStats, Task, losses
from mtl_jax.training import building, loop, splits

log = logging.getLogger('mtl_jax')

RANDOM = '(random)'  # The source that was trained on nothing: the network's first weights.
SETTLING_STEPS = 100  # In which its batch norm's running averages forget their start, to 1e-4.
STEPS_A_CALL = 50
ADVICE = 'remove it, and it is made again'
Stop = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Transfer:
  """Losses of validation examples, of heads on the features of each source.

  Attributes:
    loss: for each source, and the random one last, each target's sum of losses on an example, `[k + 1, k, n]`.
    labels: how many labels of each target an example has, `[k, n]`.
    identity: who is on each example, -1 where unknown, `[n]`.
    steps: that each source, and the heads, were trained.
    seconds: that each source took with its heads, `[k + 1]`, compilation included.
  """

  loss: Float[np.ndarray, 's k n']
  labels: np.ndarray
  identity: np.ndarray
  steps: int
  seconds: np.ndarray

  def means(self) -> Float[np.ndarray, 's k']:
    """Each target's mean loss over its labels, for each source."""
    return self.loss.sum(2) / np.maximum(self.labels.sum(1), 1)

  def gains(self) -> tuple[Float[np.ndarray, 's k'], Float[np.ndarray, 's k']]:
    """`1 - L[i, j] / L[j, j]`, and its standard error over people: what source i's features are worth to j.

    0 is as good as j's own features, in relation to whose loss the error is taken.
    """
    own = np.einsum('jjn->jn', self.loss[:-1])
    difference, num = own[None] - self.loss, np.maximum(self.labels.sum(1), 1)
    mean = difference.sum(2) / num
    people = draws.clusters(self.identity)
    by_person = np.zeros((people.max() + 1, *mean.shape))
    np.add.at(by_person, people, np.moveaxis(difference - mean[..., None] * self.labels, 2, 0))
    error = np.sqrt(np.square(by_person).sum(0)) / num
    own_mean = self.means().diagonal()
    scale = np.where(own_mean > 0, own_mean, np.nan)
    return mean / scale, error / scale


def measure(config: ConfigDict, store: DataSet, directory: Path, *, stop: Stop) -> Transfer:
  """Trains all sources and heads that are not in `directory/transfer` yet.

  Args:
    config: of the joint model; its grain says what a task is.
    store: the prepared set.
    directory: the working directory.
    stop: called between dispatches; may raise to stop.

  Raises:
    UserError: for settings that this cannot serve, a loss that is not finite, or what `stop` raises.
  """
  own = split_config(config, store)
  tasks = DataFacts.of(store).selected(own)
  train, val, label_stats = splits.load(own, store, tasks)
  if val is None:
    raise DataError(f'split val of {store.directory} has no rows; transfer is measured on it')
  names, kept = [task.name for task in tasks], directory / 'transfer'
  paths = {name: kept / f'{name.replace("/", "_")}.npz' for name in (*names, RANDOM)}
  todo = [name for name, path in paths.items() if not path.exists()]
  log.info('transfer: %d sources of %d steps, %d done', len(paths), own.train.steps, len(paths) - len(todo))
  heads = Heads(own, tasks, label_stats)
  compiled: dict[tuple[str, bool], Source] = {}
  with bar(len(todo), description='transfer', unit='source') as progress:
    for name in todo:
      started = time.monotonic()
      task = next((task for task in tasks if task.name == name), tasks[0])
      first = next(one.name for one in tasks if _alike(one, own) == _alike(task, own))  # Whichever comes first now.
      key = first, name == RANDOM
      if key not in compiled:
        compiled[key] = Source(_untrained(own) if name == RANDOM else own, store, kept, task=first, stop=stop)
      source = compiled[key]
      state = source.train(train, task.name, label_stats[task.name], stop=stop)
      train_features, val_features = (source.features(state, one) for one in (source.run.train, source.val))
      params = heads.train(train_features, train, source.run.sampler, stop=stop)
      found = {'losses': heads.losses(params, val_features, val), 'seconds': time.monotonic() - started}
      npz.write(paths[name], found, root=directory)
      progress.update(1)
  found = [_read(path, (len(tasks), len(val))) for path in paths.values()]
  return Transfer(
    loss=np.stack([losses for losses, _ in found]).astype(np.float64),
    labels=np.stack([val.mask[name].sum(1) for name in names]),
    identity=mixture.identities(store, val.example_id),
    steps=own.train.steps,
    seconds=np.array([seconds for _, seconds in found]),
  )


def _read(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
  """A source's losses, and its seconds; CheckpointError for a file that is not as it was written."""
  found = npz.read(path, names=('losses', 'seconds'), advice=ADVICE)
  if found['losses'].shape != shape or any(found[name].dtype.kind != 'f' for name in ('losses', 'seconds')):
    raise CheckpointError(f'{path} is not as it was written: losses have shape {found["losses"].shape}; {ADVICE}')
  return found['losses'], float(found['seconds'])


def split_config(config: ConfigDict, store: DataSet) -> ConfigDict:
  """The configuration with every loss as a task of its own, and as many steps as a source is trained."""
  tasks = DataFacts.of(store).selected(config)
  for task in tasks:
    head = multitask.head_of(config.model, task)
    if head.spatial or head.dense:
      raise ConfigError(
        f'config.model.head of {task.name} reads maps, and transfer keeps pooled features; choose another head, or '
        '--config.affinity.transfer=false'
      )
  names = ','.join(loss_terms.names(tasks, config.objective.grain))
  steps = config.affinity.transfer_steps or config.train.steps
  return with_fields(config, tasks=names, objective__grain='tasks', train__steps=steps)


def _untrained(config: ConfigDict) -> ConfigDict:
  """The same training without learning: weights stay as they were first, only running statistics move."""
  return with_fields(config, optimizer__learning_rate=0.0, train__steps=min(SETTLING_STEPS, config.train.steps))


def _alike(task: Task, config: ConfigDict) -> Any:
  """A key that tasks of one label share if one program serves them; a task of several labels has its own."""
  if len(task.labels) > 1:
    return task
  return dataclasses.replace(task, name='any', labels=('any',)), multitask.head_of(config.model, task)


class Source:
  """A single-task run whose labels can be those of any task like its own, so that it is compiled once for all."""

  def __init__(self, config: ConfigDict, store: DataSet, directory: Path, *, task: str, stop: Stop):
    run, self.task = building.build(with_fields(config, tasks=task), store), task
    weights = start_weights.load(config.model, store.image_size)
    self._whole = sharding.replicated(run.mesh)
    self._init = partial(jax.jit(run.make_state, out_shardings=self._whole), pretrained_weights=weights)
    self.run = building.on_features(run, self._init().variables, directory, stop=lambda: bool(stop()))
    assert self.run.val is not None  # `measure` has looked.
    self.val: Split = self.run.val

    def features(variables: Any, batch: Any) -> Array:
      network, inputs = network_and_input(run.model, batch)
      encoded, _ = network.encode(variables, inputs, train=False)
      return (encoded if isinstance(encoded, Representation) else encoded[task]).features

    self._features = jax.jit(features)

  def train(self, split: Split, name: str, label_stats: LabelStats, *, stop: Stop) -> Mapping[str, Any]:
    """The variables after the last step on the labels that `split` has of the task `name`.

    Raises:
      DivergedError: naming the source, if a loss is not finite.
    """
    state = self._init().replace(label_stats=jax.device_put({self.task: label_stats}, self._whole))
    own = {'labels': {self.task: split.labels[name]}, 'mask': {self.task: split.mask[name]}}
    run = dataclasses.replace(self.run, train=dataclasses.replace(self.run.train, **own))
    placed, found = run.input.place(), []
    for _, items in loop.input_items(run, 0):
      stop()
      state, metrics = self.run.compiled_steps(state, placed, items)  # Compiled once for all tasks.
      found.append(metrics['loss'])
      sharding.limit_in_flight(found)
    finite = np.isfinite(np.concatenate(jax.device_get(found)))
    if not finite.all():
      step = int(np.argmin(finite)) + 1
      raise DivergedError(f'{name} alone diverged at step {step}; lower config.optimizer.learning_rate')
    return state.eval_variables

  def features(self, variables: Mapping[str, Any], split: Split) -> Float[np.ndarray, 'n f']:
    """Computes the features that the heads read of each example of a split."""
    batches = pipeline.padded_batches(split, self.run.config.eval.batch_size)
    found = [np.asarray(self._features(variables, batch), np.float32) for batch in batches]
    return np.concatenate(found)[: len(split)]


class Heads:
  """Heads of all tasks, learned side by side on features that do not move."""

  def __init__(self, config: ConfigDict, tasks: Sequence[Task], label_stats: Mapping[str, LabelStats]):
    self.config, self.tasks, self.label_stats = config, tasks, label_stats
    self.model: Network = multitask.from_config(config.model, tasks).after_frozen
    # A norm clipped over all heads would let them meet.
    self.tx = optimizer.from_config(with_fields(config, optimizer__clip_norm=0.0).optimizer, steps=config.train.steps)
    self._steps = jax.jit(self._several_steps, donate_argnums=(0, 1))
    self._losses = jax.jit(self._label_losses)

  def train(self, features: Float[np.ndarray, 'n f'], train: Split, sampler: Sampler, *, stop: Stop) -> Any:
    """The heads' parameters after `train.steps` steps, on the batches that the sampler gives.

    Raises:
      DivergedError: where a loss is not finite.
    """
    data = jax.device_put((jnp.asarray(features), train.labels, train.mask))
    key = jax.random.key(self.config.train.seed)
    params = jax.jit(self.model.init_heads)(key, Representation(data[0][:1]))['params']
    state, num = self.tx.init(params), self.config.train.steps
    for first in range(0, num, STEPS_A_CALL):
      stop()
      end = min(first + STEPS_A_CALL, num)
      positions = np.stack([sampler.indices(step) for step in range(first, end)]).astype(np.int32)
      params, state, totals = self._steps(params, state, data, positions)
      if not np.isfinite(totals).all():
        raise DivergedError(f'a head on frozen features diverged by step {end}; lower config.optimizer.learning_rate')
    return params

  def losses(self, params: Any, features: Float[np.ndarray, 'n f'], split: Split) -> Float[np.ndarray, 'k n']:
    """Each task's sum of losses over the labels of each example."""
    per_label = self._losses(params, jnp.asarray(features), split.labels, split.mask)
    return np.stack([np.asarray(jnp.where(split.mask[t.name], per_label[t.name], 0).sum(1)) for t in self.tasks])

  def _label_losses(self, params: Any, features: Array, labels: Any, mask: Any) -> dict[str, Array]:
    outputs, _ = self.model.decode({'params': params}, Representation(features), train=True)
    return label_losses(outputs, labels, mask, tasks=self.tasks, label_stats=self.label_stats)

  def _several_steps(self, params: Any, state: Any, data: Any, positions: Array) -> Any:
    def total(params: Any, features: Array, labels: Any, mask: Any) -> Array:
      per_label = self._label_losses(params, features, labels, mask)
      return sum((losses.masked_mean(per_label[t.name], mask[t.name]) for t in self.tasks), jnp.zeros(()))

    def step(carry: Any, rows: Array) -> Any:
      params, state = carry
      value, gradients = jax.value_and_grad(total)(params, *jax.tree.map(lambda leaf: leaf[rows], data))
      updates, state = self.tx.update(gradients, state, params)
      return (optax.apply_updates(params, updates), state), value

    (params, state), totals = jax.lax.scan(step, (params, state), positions)
    return params, state, totals
