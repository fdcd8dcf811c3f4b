"""A program: what the replicas of a run share, as functions of one replica's seed and learning rate."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from mtl_jax.data.input import mixture, resident
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.input.sampler import Order
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluation.step import eval_step, predict_step
from mtl_jax.models import cost, frozen
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.platform import sharding
from mtl_jax.run import optimizer
from mtl_jax.run.state import TrainState
from mtl_jax.training import building
from mtl_jax.training.building import Run
from mtl_jax.training.step import repeat


@dataclasses.dataclass(frozen=True)
class Program:
  """The parts that a program's replicas share; the run's own seed and learning rate are not read.

  Attributes:
    run: the run that replicas vary, on features where its frozen stages' outputs are kept. Those stages are the same
      for all replicas, also where they are random.
    val: the validation split, as the train split is kept.
    test: the test split, likewise.
    weights: pretrained ones of the backbone, if the run has them.
    net_weights: those of them that are of `net`.
    mesh: this process's devices.
  """

  run: Run
  val: Split
  test: Split
  weights: Any
  net_weights: Any
  mesh: Mesh

  @property
  def config(self) -> ConfigDict:
    return self.run.config

  @property
  def net(self) -> MultiTaskModel:
    return self.run.net

  def order(self, seed: int) -> Order:
    """The order in which a replica of that seed sees the examples."""
    return self.run.make_order(seed)

  def tx(self, learning_rate: Any) -> optax.GradientTransformation:
    """The optimizer at a peak learning rate, which may be a traced value."""
    return optimizer.from_config(self.config, learning_rate=learning_rate)

  def init(self, seed: Any, learning_rate: Any, weights: Any) -> TrainState:
    """One replica's state before its first step."""
    input_shape, tx = self.run.train.images.shape[1:], self.tx(learning_rate)
    return self.run.make_state(seed=seed, model=self.net, tx=tx, input_shape=input_shape, pretrained_weights=weights)

  def steps(self, state: TrainState, seed: Any, learning_rate: Any, positions: Array, source: Any) -> Any:
    """Several steps of one replica, on the examples at these positions `[steps, b]` of the resident train split."""
    one_step = partial(self.run.one_step, model=self.net, tx=self.tx(learning_rate), seed=seed, skip_nonfinite=False)
    image_shape = self.run.train.images.shape[1:]

    def step(state: TrainState, positions: Array) -> Any:
      batch = resident.take_rows(source, positions, image_shape=image_shape)
      return one_step(state, jax.lax.optimization_barrier(batch))  # As in `resident.gather`.

    return repeat(step)(state, positions)

  def evaluate(self, variables: Any, batch: Any) -> Any:
    """Predictions and sums of losses of one replica for a batch."""
    return eval_step(variables, self.run.label_stats, batch, model=self.net, tasks=self.run.tasks)

  def shapes(self) -> TrainState:
    """The shapes and types of one replica's state."""
    return jax.eval_shape(self.init, 0, 0.0, self.net_weights)

  def num_params(self) -> int:
    """Parameters of the whole model, frozen ones too."""
    variables = self._variables()
    return cost.num_parameters([variables['params'], variables.get('frozen', {})])

  def flops_per_image(self) -> float:
    """Floating-point operations from an image to all predictions; 0 where XLA does not count them."""
    return cost.forward_flops(self.run.model, self._variables(), self.run.image_size) or 0.0

  def flops_trained(self) -> float:
    """The same of the part that is trained, from features where those are kept."""
    return cost.flops(self.net, self.shapes().variables, self.run.train.images.shape[1:]) or 0.0

  def _variables(self) -> Mapping[str, Any]:
    return jax.eval_shape(self.run.make_state, pretrained_weights=self.weights).variables


def build(
  config: ConfigDict,
  store: DataSet,
  *,
  directory: Path,
  stop: Callable[[], bool] = bool,
  like: Program | None = None,
) -> Program:
  """A program of the config's tasks on a prepared set.

  Args:
    config: a checked configuration.
    store: the prepared set.
    directory: the study's, where outputs of frozen stages are kept unless the config says otherwise.
    stop: asked while those are computed.
    like: a program of the same set that `differs_in_objective`, whose data serve this one too.

  Raises:
    UserError: for settings that this set cannot serve.
  """
  if config.train.model_devices > 1:
    raise ConfigError('config.train.model_devices: a study has every replica whole on a device; leave it at 1')
  run = building.build(config, store)
  if like is not None:
    fields = {name: getattr(like.run, name) for name in ('train', 'val', 'input', 'net')}
    own = dataclasses.replace(run, **fields, one_step=partial(run.one_step, model=like.net))
    return dataclasses.replace(like, run=own)
  if run.val is None:
    raise DataError(f'split val of {store.directory} has no rows; a study picks the best weights on it')
  val, test = run.val, mixture.load_split(store, 'test', run.tasks)
  weights = building.pretrained_weights(config, run.image_size)
  mesh = sharding.make_mesh(jax.local_devices())
  if run.model.frozen is None:
    return Program(run, val, test, weights, weights, mesh)
  state = jax.jit(run.make_state, out_shardings=sharding.replicated(run.mesh))(pretrained_weights=weights)
  run, cache = building.on_features(run, store, state, directory / 'model', stop=stop, whole=True)
  if cache is None:
    return Program(run, val, test, weights, weights, mesh)
  kept = cache.replace_images(test, 'test')
  if kept is None or run.val is None:
    raise DataError('config.data.feature_cache: there is no room for features of the test split; free some disk')
  net_weights = frozen.without_frozen(weights, state.variables) if weights else None
  return Program(run, run.val, kept, weights, net_weights, mesh)


def differs_in_objective(config: ConfigDict, other: ConfigDict) -> bool:
  """True for configurations that differ only in how losses are weighed, so that programs of both read one input."""
  fields, others = ({**one.to_dict(), 'objective': None} for one in (config, other))
  standardize = config.objective.standardize == other.objective.standardize  # Statistics of labels, not of losses.
  return standardize and fields == others


def latency_ms(programs: Sequence[Program], *, repeats: int = 30) -> float:
  """Median milliseconds in which the models of all these programs, one after another, predict for one image.

  Each computes all of its stages, also those that are frozen.
  """
  calls = []
  for program in programs:
    run, device = program.run, program.mesh.devices.flat[0]
    state = jax.device_put(jax.jit(run.make_state)(pretrained_weights=program.weights), device)
    image = jax.device_put(np.zeros((1, *run.image_size, 3), np.uint8), device)
    predict = jax.jit(partial(predict_step, model=run.model, tasks=run.tasks))
    calls.append(partial(predict, state.eval_variables, run.label_stats, image))
  jax.block_until_ready([call() for call in calls])
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    for call in calls:
      jax.block_until_ready(call())
    times.append(time.perf_counter() - started)
  return 1e3 * float(np.median(times))
