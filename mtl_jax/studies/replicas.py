"""Replicas of one program: runs that differ in seed and learning rate alone, several of them in one compiled call.

Each device trains replicas of its own, so nothing travels between devices; within a device they are mapped by
`jax.vmap` where that is faster than one after another. The train split lies once on every device, for all of them.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from mtl_jax.data.input import pipeline, resident
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.input.sampler import Sampler
from mtl_jax.errors import DivergedError
from mtl_jax.evaluation import evaluate
from mtl_jax.platform import memory, sharding, xla
from mtl_jax.studies.program import Program
from mtl_jax.training import loop

log = logging.getLogger('mtl_jax')

BY_DEVICE, WHOLE = PartitionSpec('data'), PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Replica:
  """The values that set one run of a program apart from the others."""

  seed: int
  learning_rate: float


@dataclasses.dataclass(frozen=True)
class Result:
  """Outcome of a replica.

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


def over_replicas(
  function: Callable[..., Any], mesh: Mesh, *, common: PartitionSpec | None = None
) -> Callable[..., Any]:
  """A function of one replica as one of many, whose arguments have a first axis of replicas, divided over devices.

  With `common`, the last argument is the same for all replicas of a device, and lies on the devices in that way.
  """
  shared = 0 if common is None else 1

  def on_a_device(*arguments: Any) -> Any:
    own, rest = arguments[: len(arguments) - shared], arguments[len(arguments) - shared :]
    if jax.tree.leaves(own)[0].shape[0] == 1:  # Mapping over one would turn convolutions into grouped ones.
      result = function(*jax.tree.map(lambda leaf: leaf[0], own), *rest)
      return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], result)
    return jax.vmap(function, in_axes=(0,) * len(own) + (None,) * shared)(*arguments)

  def mapped(*arguments: Any) -> Any:
    specs = (BY_DEVICE,) * (len(arguments) - shared) + (() if common is None else (common,))
    return jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=BY_DEVICE, check_vma=False)(*arguments)

  return mapped


def _positions(sampler: Sampler, step: int, size: int) -> np.ndarray:
  """Positions `[size, b]` of the examples of some steps."""
  return np.stack([sampler.indices(step + i) for i in range(size)]).astype(np.int32)


class Trainer:
  """A program's compiled functions, and the data they read, for chunks of one size."""

  def __init__(self, program: Program):
    self.program = program
    self._looks = (program.run.config.eval.every_steps,)
    mesh = program.mesh
    self._init = jax.jit(over_replicas(program.init, mesh, common=WHOLE))
    self._steps = jax.jit(
      over_replicas(program.steps, mesh, common=BY_DEVICE), donate_argnums=0, compiler_options=xla.step_options()
    )
    self._evaluate = jax.jit(over_replicas(program.evaluate, mesh, common=WHOLE))
    self._keep_better = jax.jit(_keep_better, donate_argnums=1)
    every_row = [np.arange(len(program.run.train))] * mesh.devices.size
    self._source = resident.place(program.run.train, every_row, mesh)

  def width(self, count: int, asked: int) -> int:
    """Number of replicas to train together: what the config asks for, or what is measured to be fastest.

    Args:
      count: how many replicas there are to train.
      asked: so many at once; 0 measures one a device against as many as there are, and 8 a device at most.
    """
    devices = self.program.mesh.devices.size
    if asked:
      return -(-asked // devices) * devices
    many = min(-(-count // devices), 8) * devices
    if many == devices or self._bytes_a_replica() * many > 0.4 * max(memory.available_bytes(), 1) * devices:
      return devices
    each = {width: self._seconds_a_step(width) / width for width in (devices, many)}
    best = min(each, key=lambda width: each[width])
    log.info(
      '%d replicas at once: %s', best, ', '.join(f'{w} take {1e3 * s:.3g} ms a step each' for w, s in each.items())
    )
    return best

  def compiled_steps_text(self, width: int) -> str:
    """The compiled program of a dispatch of so many replicas, to look for collectives in."""
    seeds, rates = np.arange(width, dtype=np.int32), np.zeros(width, np.float32)
    state = jax.eval_shape(self._init, seeds, rates, self.program.weights)
    positions = np.stack([_positions(self.program.sampler(0), 0, 1)] * width)
    return self._steps.lower(state, seeds, rates, positions, self._source).compile().as_text() or ''

  def _bytes_a_replica(self) -> int:
    """A lower bound of the memory a replica takes: its state, a gradient, and the best weights."""
    state = self.program.shapes()
    own = [state, state.variables, state.variables]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(own) if hasattr(leaf, 'dtype'))

  def _seconds_a_step(self, width: int) -> float:
    """Measured on throw-away replicas, after the compilation."""
    seeds, rates = np.arange(width, dtype=np.int32), np.zeros(width, np.float32)
    state = self._init(seeds, rates, self.program.weights)
    _, size = next(self.program.run.dispatches(self._looks))
    positions = np.stack([_positions(self.program.sampler(0), 0, size)] * width)
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
    state = self._init(seeds, rates, program.weights)
    best = jax.tree.map(jnp.copy, state.eval_variables)
    chunk = _Scores(len(replicas))
    unlogged: list[Any] = []
    orders = [program.sampler(replica.seed) for replica in replicas]
    started = time.monotonic()
    for step, size in program.run.dispatches(self._looks):
      stop()
      positions = np.stack([_positions(order, step, size) for order in orders])
      state, metrics = self._steps(state, seeds, rates, positions, self._source)
      unlogged.append(metrics)
      sharding.hold_back(unlogged)
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
  """Host-side records of the replicas of a chunk while they train."""

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
      try:
        score, values = loop.validation_values(program.config, evaluation, program.val, program.run.tasks)
      except DivergedError:  # Its last update did it, whose loss was still finite.
        self.diverged_at[i] = step
        continue
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
