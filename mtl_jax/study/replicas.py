"""Replicas of one program: runs that differ in seed and learning rate alone, several of them in one compiled call.

Each device trains replicas of its own, so nothing travels between devices; within a device they are mapped by
`jax.vmap` where that is faster than one after another. The train split lies once on every device, for all of them.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from mtl_jax import objectives, workdir
from mtl_jax.data import mixture, pipeline, resident
from mtl_jax.data.augment import Augmentation
from mtl_jax.data.mixture import Mixture
from mtl_jax.data.pipeline import Split
from mtl_jax.data.store import Store
from mtl_jax.errors import DataError
from mtl_jax.evaluation import evaluate
from mtl_jax.models import multitask
from mtl_jax.tasks import LabelStats, Task
from mtl_jax.training import loop, optimizer, sharding
from mtl_jax.training.step import TrainState, eval_step, init_state, predict_step, repeat, train_step

log = logging.getLogger('mtl_jax')

BY_REPLICA, WHOLE = PartitionSpec('data'), PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Replica:
  """What sets one run of a program apart from the others."""

  seed: int
  learning_rate: float


@dataclasses.dataclass(frozen=True)
class Result:
  """What became of a replica.

  Attributes:
    score: the best on validation, higher is better; None for a replica that diverged before its first evaluation.
    best_step: the step it was reached at.
    history: by name, such as `step`, `train/landmarks/loss` or `val/landmarks/nme`, a value an evaluation.
    predictions: of the test split by task, at the best step; empty unless asked for.
    seconds: its part of the time that its chunk took to train and evaluate, without compilation.
    diverged_at: the first step whose loss was not finite, 0 if there is none.
  """

  replica: Replica
  score: float | None
  best_step: int
  history: dict[str, list[float]]
  predictions: dict[str, np.ndarray]
  seconds: float
  diverged_at: int


@dataclasses.dataclass(frozen=True)
class Program:
  """What the replicas of a program share; `config.train.seed` and `config.optimizer.learning_rate` are not read."""

  config: Any
  mesh: Mesh
  tasks: tuple[Task, ...]
  train: Split
  val: Split
  test: Split
  label_stats: Mapping[str, LabelStats]
  model: Any
  image_size: tuple[int, int]

  @cached_property
  def objective(self) -> objectives.Objective:
    return objectives.from_config(self.config, [task.name for task in self.tasks])

  def tx(self, learning_rate: Any) -> Any:
    """The optimizer at a peak learning rate, which may be a traced value."""
    return optimizer.from_config(self.config, learning_rate=learning_rate)

  def init(self, seed: Any, learning_rate: Any) -> TrainState:
    """One replica's state before its first step."""
    return init_state(
      seed,
      model=self.model,
      tx=self.tx(learning_rate),
      objective=self.objective,
      label_stats=self.label_stats,
      image_size=self.image_size,
      ema_decay=self.config.optimizer.ema_decay,
    )

  def steps(self, state: TrainState, seed: Any, learning_rate: Any, positions: Array, source: Any) -> Any:
    """Several steps of one replica, on the examples at these positions `[steps, b]` of the resident train split."""

    def step(state: TrainState, positions: Array) -> Any:
      batch = _take(source, positions, image_shape=self.train.images.shape[1:])
      return train_step(
        state,
        batch,
        model=self.model,
        tasks=self.tasks,
        tx=self.tx(learning_rate),
        objective=self.objective,
        augmentation=Augmentation(**self.config.data.augment),
        seed=seed,
        ema_decay=self.config.optimizer.ema_decay,
      )

    return repeat(step, unroll=jax.default_backend() == 'cpu')(state, positions)

  def num_params(self) -> int:
    """Parameters of the model."""
    shapes = jax.eval_shape(self.init, 0, 0.0).variables['params']
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

  def flops_per_image(self) -> float:
    """Floating-point operations of the forward pass of one image, as XLA counts them; 0 where it does not."""
    images = jax.ShapeDtypeStruct((1, *self.train.images.shape[1:]), self.train.images.dtype)
    variables = jax.eval_shape(self.init, 0, 0.0).eval_variables
    predict = partial(predict_step, model=self.model, tasks=self.tasks)
    analysis = jax.jit(predict).lower(variables, self.label_stats, images).cost_analysis()
    return float((analysis or {}).get('flops', 0.0))

  def evaluate(self, variables: Any, batch: Any) -> Any:
    """Predictions and sums of losses of one replica for a batch."""
    return eval_step(variables, self.label_stats, batch, model=self.model, tasks=self.tasks)


def _take(source: Any, positions: Array, *, image_shape: tuple[int, ...]) -> Any:
  """The examples at these positions of a resident split."""
  batch = jax.tree.map(lambda values: values.at[positions].get(mode='promise_in_bounds'), source)
  # As in `resident.gather`: what follows is compiled as for a batch that came from elsewhere.
  return jax.lax.optimization_barrier(batch | {'image': batch['image'].reshape(-1, *image_shape)})


def latency_ms(programs: Sequence[Program], *, repeats: int = 30) -> float:
  """Median milliseconds in which all these programs, one after another, predict for one image."""
  calls = []
  for program in programs:
    device = program.mesh.devices.flat[0]
    variables = jax.device_put(jax.jit(program.init)(0, 0.0).eval_variables, device)
    image = jax.device_put(np.zeros((1, *program.train.images.shape[1:]), program.train.images.dtype), device)
    predict = jax.jit(partial(predict_step, model=program.model, tasks=program.tasks))
    calls.append(partial(predict, variables, program.label_stats, image))
  jax.block_until_ready([call() for call in calls])
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    for call in calls:
      jax.block_until_ready(call())
    times.append(time.perf_counter() - started)
  return 1e3 * float(np.median(times))


def over_replicas(function: Callable[..., Any], mesh: Mesh, *, shared: int = 0) -> Callable[..., Any]:
  """A function of one replica as one of many, whose arguments have a first axis of replicas, divided over devices.

  The last `shared` arguments have none: they are the same for all replicas.
  """

  def on_a_device(*arguments: Any) -> Any:
    own, common = arguments[: len(arguments) - shared], arguments[len(arguments) - shared :]
    if jax.tree.leaves(own)[0].shape[0] == 1:  # Mapping over one would turn convolutions into grouped ones.
      result = function(*jax.tree.map(lambda leaf: leaf[0], own), *common)
      return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], result)
    return jax.vmap(function, in_axes=(0,) * len(own) + (None,) * shared)(*arguments)

  def mapped(*arguments: Any) -> Any:
    specs = (BY_REPLICA,) * (len(arguments) - shared) + (WHOLE,) * shared
    return jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=BY_REPLICA, check_vma=False)(*arguments)

  return mapped


def build(config: ConfigDict, store: Store | Mixture, mesh: Mesh) -> Program:
  """A program of the config's tasks on a prepared set, with this process's devices.

  Raises:
    UserError: for settings that this set cannot serve.
  """
  tasks = workdir.DataFacts.of(store).selected(config)
  train, val, label_stats = loop.load_data(config, store, tasks)
  if val is None:
    raise DataError(f'split val of {store.directory} has no rows; a study picks the best weights on it')
  test = mixture.load_split(store, 'test', tasks)
  model = multitask.from_config(config, tasks)
  return Program(config, mesh, tasks, train, val, test, label_stats, model, store.image_size)


def _positions(program: Program, seed: int, step: int, size: int) -> np.ndarray:
  """Positions `[size, b]` of the examples of some steps, as a run of that seed has them."""
  rows = loop.rows_by_set(program.config, program.train)
  sizes = program.train.parts or (len(program.train),)
  each = [mixture.batch_positions(step + i, seed=seed, sizes=sizes, rows=rows) for i in range(size)]
  return np.stack(each).astype(np.int32)


def _dispatches(config: ConfigDict) -> Iterator[tuple[int, int]]:
  """First step and number of steps of each dispatch, up to where the host evaluates."""
  step = 0
  while step < config.train.steps:
    every = config.eval.every_steps or config.train.steps
    stop = min(step - step % every + every, config.train.steps)
    size = min(config.train.steps_per_dispatch or 1, stop - step)
    yield step, size
    step += size


class Trainer:
  """A program's compiled functions, and the data they read, for chunks of one size."""

  def __init__(self, program: Program):
    self.program = program
    mesh = program.mesh
    self._init = jax.jit(over_replicas(program.init, mesh))
    self._steps = jax.jit(over_replicas(program.steps, mesh, shared=1), donate_argnums=0)
    self._evaluate = jax.jit(over_replicas(program.evaluate, mesh, shared=1))
    self._keep_better = jax.jit(_keep_better, donate_argnums=1)
    self._source = resident.place(program.train, mesh)

  def width(self, count: int, asked: int) -> int:
    """How many replicas to train together: what the config asks for, or what is measured to be fastest.

    Args:
      count: how many replicas there are to train.
      asked: so many at once; 0 measures one a device against as many as there are, and 8 a device at most.
    """
    devices = self.program.mesh.devices.size
    if asked:
      return -(-asked // devices) * devices
    many = min(-(-count // devices), 8) * devices
    if many == devices or self._bytes_a_replica() * many > 0.4 * max(resident.device_memory(), 1) * devices:
      return devices
    each = {width: self._seconds_a_step(width) / width for width in (devices, many)}
    best = min(each, key=lambda width: each[width])
    log.info(
      '%d replicas at once: %s', best, ', '.join(f'{w} take {1e3 * s:.3g} ms a step each' for w, s in each.items())
    )
    return best

  def _bytes_a_replica(self) -> int:
    """A lower bound of the memory a replica takes: its state, a gradient, and the best weights."""
    state = jax.eval_shape(self.program.init, 0, 0.0)
    own = [state, state.variables, state.variables]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(own) if hasattr(leaf, 'dtype'))

  def _seconds_a_step(self, width: int) -> float:
    """Measured on throw-away replicas, after the compilation."""
    seeds, rates = np.arange(width, dtype=np.int32), np.zeros(width, np.float32)
    state = self._init(seeds, rates)
    _, size = next(_dispatches(self.program.config))
    positions = np.stack([_positions(self.program, 0, 0, size)] * width)
    seconds = []
    for _ in range(3):
      started = time.perf_counter()
      state, metrics = self._steps(state, seeds, rates, positions, self._source)
      jax.block_until_ready(metrics)
      seconds.append(time.perf_counter() - started)
    return min(seconds) / size

  def run(self, replicas: Sequence[Replica], *, test: bool, stop: Callable[[], None], advance: Callable[[int], Any]):
    """Trains replicas together, as many as a multiple of the devices, and returns each one's `Result`.

    Args:
      replicas: as many as the devices, or a multiple.
      test: predict the test split with each replica's best weights.
      stop: called between dispatches; may raise to stop.
      advance: hears of steps done, by each replica.
    """
    program, config = self.program, self.program.config
    seeds = np.array([replica.seed for replica in replicas], np.int32)
    rates = np.array([replica.learning_rate for replica in replicas], np.float32)
    state = self._init(seeds, rates)
    best = jax.tree.map(jnp.copy, state.eval_variables)
    chunk = _Scores(len(replicas))
    unlogged: list[Any] = []
    started = time.monotonic()
    for step, size in _dispatches(config):
      stop()
      positions = np.stack([_positions(program, replica.seed, step, size) for replica in replicas])
      state, metrics = self._steps(state, seeds, rates, positions, self._source)
      unlogged.append(metrics)
      if len(unlogged) > sharding.MAX_IN_FLIGHT:
        jax.block_until_ready(unlogged[-sharding.MAX_IN_FLIGHT])
      advance(size)
      done = step + size
      if done == config.train.steps or (config.eval.every_steps and done % config.eval.every_steps == 0):
        chunk.log(done, unlogged)
        unlogged = []
        better = chunk.judge(done, self.predict(state.eval_variables, program.val), program)
        best = self._keep_better(better, best, state.eval_variables)
    predictions = [evaluation.predictions for evaluation in self.predict(best, program.test)] if test else []
    seconds = (time.monotonic() - started) / len(replicas)
    return chunk.results(replicas, predictions, seconds)

  def predict(self, variables: Any, split: Split) -> list[evaluate.Evaluation]:
    """Every replica's predictions of a split, and the mean of each task's loss."""
    batch_size = self.program.config.eval.batch_size

    def make(positions: np.ndarray) -> Any:
      batch = split.read(positions)
      batch.pop('example_id')
      return batch

    fetched = [
      jax.device_get(self._evaluate(variables, batch))
      for batch in pipeline.prefetch(make, pipeline.padded_positions(len(split), batch_size))
    ]
    count = jax.tree.leaves(variables)[0].shape[0]
    return [
      evaluate.gathered([jax.tree.map(lambda leaf: leaf[i], part) for part in fetched], split)  # noqa: B023
      for i in range(count)
    ]


class _Scores:
  """What the host notes of the replicas of a chunk while they train."""

  def __init__(self, count: int):
    self.best: list[float | None] = [None] * count
    self.best_step = [0] * count
    self.diverged_at = [0] * count
    self.history: list[dict[str, list[float]]] = [{} for _ in range(count)]

  def log(self, step: int, unlogged: Sequence[Any]) -> None:
    """Notes each replica's mean metrics since the last time, `[replicas, steps]` of each dispatch."""
    fetched = jax.device_get(unlogged)
    values = {name: np.concatenate([metrics[name] for metrics in fetched], axis=1) for name in fetched[0]}
    for i, history in enumerate(self.history):
      bad = ~np.isfinite(values['loss'][i])
      if bad.any() and not self.diverged_at[i]:
        self.diverged_at[i] = step - len(bad) + 1 + int(np.argmax(bad))
      if self.diverged_at[i]:
        continue
      history.setdefault('step', []).append(step)
      for name, each in values.items():
        history.setdefault(f'train/{name}', []).append(float(each[i].mean()))

  def judge(self, step: int, evaluations: Sequence[evaluate.Evaluation], program: Program) -> np.ndarray:
    """Notes each replica's metrics on validation; returns which ones are their best so far."""
    better = np.zeros(len(self.best), bool)
    for i, evaluation in enumerate(evaluations):
      if self.diverged_at[i]:
        continue
      score, values = loop.validation_values(program.config, evaluation, program.val, program.tasks)
      for name, value in values.items():
        self.history[i].setdefault(name, []).append(value)
      best = self.best[i]
      better[i] = best is None or score > best
      if better[i]:
        self.best[i], self.best_step[i] = score, step
    return better

  def results(
    self, replicas: Sequence[Replica], predictions: Sequence[dict[str, np.ndarray]], seconds: float
  ) -> list[Result]:
    return [
      Result(
        replica=replica,
        score=self.best[i],
        best_step=self.best_step[i],
        history=self.history[i],
        predictions=predictions[i] if predictions and not self.diverged_at[i] else {},
        seconds=seconds,
        diverged_at=self.diverged_at[i],
      )
      for i, replica in enumerate(replicas)
    ]


def _keep_better(better: Array, best: Any, now: Any) -> Any:
  """The present weights where they are better, the best so far elsewhere."""
  return jax.tree.map(lambda b, n: jnp.where(better.reshape(-1, *[1] * (n.ndim - 1)), n, b), best, now)
