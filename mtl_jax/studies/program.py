"""A program: the functions that replicas of a run share; numbers that differ between replicas are their arguments.

Numbers of a step are arguments of it: replicas that differ in them alone share a compiled program. What changes shapes
or structure is the program's own, and so is a 0 that leaves a part of the step out.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from mtl_jax.data.input import mixture, resident
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Split
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluation.step import eval_step, predict_step
from mtl_jax.models import cost, own_weights
from mtl_jax.models.network import Network
from mtl_jax.objectives.matching import Coupling
from mtl_jax.platform import sharding
from mtl_jax.run import recipe, start_weights
from mtl_jax.run.features import FeatureCache
from mtl_jax.run.state import TrainState
from mtl_jax.studies.space import COUPLINGS
from mtl_jax.training import building
from mtl_jax.training.building import Run

Numbers = Mapping[str, Any]  # By field, `train.seed` and those that are arguments; all may be traced.


@dataclasses.dataclass(frozen=True)
class Program:
  """The parts that a program's replicas share; the run's own seed is not read, nor fields that are arguments.

  Attributes:
    run: the run that replicas vary, on features where those of its frozen stages are kept. Such stages are the same
      for all replicas, also where they are random.
    test: the test split, images or features as the others are.
    weights: pretrained ones of the part of the backbone that is in `network`, if the run has them.
    mesh: this process's devices.
  """

  run: Run
  test: Split
  weights: Any
  mesh: Mesh

  @property
  def config(self) -> ConfigDict:
    return self.run.config

  @property
  def val(self) -> Split:
    assert self.run.val is not None  # `build` has looked.
    return self.run.val

  @property
  def network(self) -> Network:
    """The network that a replica trains: the run's model, or what follows its frozen stages."""
    return self.run.model.after_frozen if 'features' in self.run.train.inputs else self.run.model

  def own_parts(self, numbers: Numbers) -> dict[str, Any]:
    """The arguments that `init_state` and `train_step` have in common, of one replica."""
    config = self.config.copy_and_resolve_references()
    with config.ignore_type(), config.unlocked():
      for field, value in numbers.items():
        *groups, leaf = field.split('.')
        functools.reduce(lambda node, group: node[group], groups, config)[leaf] = value
    steps_per_epoch = -(-len(self.run.train) // config.train.batch_size)
    made = recipe.from_config(config, self.run.tasks, steps_per_epoch=steps_per_epoch)
    return {**made._asdict(), 'model': self.network, 'seed': config.train.seed}

  def init(self, numbers: Numbers, weights: Any) -> TrainState:
    """One replica's state before its first step."""
    input_shape = self.run.train.images.shape[1:]
    return self.run.make_state(pretrained_weights=weights, input_shape=input_shape, **self.own_parts(numbers))

  def steps(self, state: TrainState, numbers: Numbers, positions: Array, source: Any) -> Any:
    """Several steps of one replica, on the examples at these positions `[steps, b]` of the resident train split."""
    coupling: Coupling | None = self.run.one_step.keywords['coupling']
    if coupling is not None:
      strengths = {name: numbers[field] for name in COUPLINGS if (field := f'objective.matching.{name}') in numbers}
      coupling = dataclasses.replace(coupling, settings=dataclasses.replace(coupling.settings, **strengths))
    own = self.own_parts(numbers) | {'model': self.run.model, 'coupling': coupling}
    one_step = partial(self.run.one_step, skip_nonfinite=False, **own)
    shapes = resident.row_shapes(self.run.train)

    def step(state: TrainState, positions: Array) -> Any:
      batch = resident.take_rows(source, positions, shapes=shapes)
      return one_step(state, jax.lax.optimization_barrier(batch))  # As in `resident.gather`.

    return jax.lax.scan(step, state, positions)

  def evaluate(self, variables: Any, batch: Any) -> Any:
    """Predictions and sums of losses of one replica for a batch."""
    return eval_step(variables, self.run.label_stats, batch, model=self.run.model, tasks=self.run.tasks)

  def shapes(self) -> TrainState:
    """The shapes and types of one replica's state."""
    return jax.eval_shape(self.init, {'train.seed': 0}, self.weights)

  def size(self) -> dict[str, float]:
    """Parameters of the whole model, frozen ones too, and floating-point operations from an image to all predictions.

    The latter are 0 where XLA does not count them.
    """
    variables = jax.eval_shape(self.run.make_state).variables
    params = cost.num_parameters([variables['params'], variables.get('frozen', {})])
    flops = cost.flops(self.run.model.outputs, variables, (*self.run.store.image_size, 3))
    return {'params': params, 'flops_per_image': flops or 0.0}

  def prediction(self, compiled: dict[str, Any]) -> Callable[[], Any]:
    """Makes a call that predicts for one image on one device, through all stages, also those that are frozen.

    Its weights are 0, which take as long as others.

    Args:
      compiled: what was compiled before, to which this is added; networks that differ in names of tasks share one.
    """
    run, device = self.run, self.mesh.devices.flat[0]
    variables = jax.eval_shape(lambda: run.make_state().eval_variables)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    image = np.zeros((1, *run.store.image_size, 3), np.uint8)
    leaves, tree = jax.tree.flatten(jax.device_put((variables, run.label_stats, image), device))

    def predict(*leaves: Any) -> Any:  # Without names.
      return jax.tree.leaves(predict_step(*jax.tree.unflatten(tree, leaves), model=run.model, tasks=run.tasks))

    lowered = jax.jit(predict).lower(*leaves)
    if (text := lowered.as_text()) not in compiled:
      compiled[text] = lowered.compile()
    return partial(compiled[text], *leaves)

  def flops_trained(self) -> float:
    """Floating-point operations a run, of the part that is trained, from features where those are kept; 0: unknown."""
    per_image = cost.flops(self.network.outputs, self.shapes().variables, self.run.train.images.shape[1:]) or 0.0
    return per_image * self.config.train.batch_size * self.config.train.steps


def build(
  config: ConfigDict,
  store: DataSet,
  *,
  directory: Path,
  stop: Callable[[], bool] = bool,
  like: Program | None = None,
) -> Program:
  """Builds the program of a config on a prepared set.

  Args:
    config: a checked configuration.
    store: the prepared set.
    directory: the study's, where outputs of frozen stages are kept unless the config says otherwise.
    stop: asked while those are computed.
    like: a program of the same set that `reads_alike`, whose data serve this one too.

  Raises:
    UserError: for settings that this set cannot serve.
  """
  if config.train.model_devices > 1:
    raise ConfigError('config.train.model_devices: a study has every replica whole on a device; leave it at 1')
  run = building.build(config, store)
  if like is not None:
    return dataclasses.replace(like, run=dataclasses.replace(run, train=like.run.train, val=like.run.val))
  if run.val is None:
    raise DataError(f'split val of {store.directory} has no rows; a study picks the best weights on it')
  splits = {'train': run.train, 'val': run.val, 'test': mixture.load_split(store, 'test', run.tasks)}
  weights = start_weights.load(config.model, store.image_size)
  if run.model.frozen is not None and run.augmentation == Augmentation():  # Else each replica has stages of its own.
    state = jax.jit(run.make_state, out_shardings=sharding.replicated(run.mesh))(pretrained_weights=weights)
    kept_in = directory / 'model'
    cache = FeatureCache(config, run.model, state.variables, store.checksum, run.mesh, kept_in, stop)
    splits = cache.replace_images(splits)
    if weights and 'features' in splits['train'].inputs:
      held = own_weights.flatten({'frozen': state.variables['frozen']})
      fitting = own_weights.fitting(state.variables, weights)  # What does not fit was told of above, once.
      weights = {name: leaf for name, leaf in fitting.items() if name not in held}
  run = dataclasses.replace(run, train=splits['train'], val=splits['val'])
  mesh = sharding.make_mesh(jax.local_devices())
  return Program(run, splits['test'], weights, mesh)


def reads_alike(config: ConfigDict, other: ConfigDict) -> bool:
  """True for configurations that differ only in how they learn, so that programs of both read one input."""
  seed, standardize = config.train.seed, config.objective.standardize  # They decide which labels there are.
  alike = (seed, standardize) == (other.train.seed, other.objective.standardize)
  learning = dict.fromkeys(('objective', 'optimizer', 'train'))
  return alike and config.to_dict() | learning == other.to_dict() | learning


def latency_ms(calls: Sequence[Callable[[], Any]], *, repeats: int = 30) -> float:
  """Median milliseconds of all these calls, one after another: see `Program.prediction`."""
  jax.block_until_ready([call() for call in calls])
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    for call in calls:
      jax.block_until_ready(call())
    times.append(time.perf_counter() - started)
  return 1e3 * float(np.median(times))
