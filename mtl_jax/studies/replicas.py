"""Trains replicas of one program, runs that differ in a few numbers alone, several of them in one compiled call.

Each device trains replicas of its own, so nothing travels between devices; within a device they are mapped by
`jax.vmap`. The train split lies once on every device, for all of them.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from mtl_jax.data.input import pipeline, resident
from mtl_jax.data.input.pipeline import Split
from mtl_jax.errors import DivergedError
from mtl_jax.evaluation import evaluate
from mtl_jax.platform import memory, processes, sharding, xla
from mtl_jax.studies.arms import Replica
from mtl_jax.studies.program import Program
from mtl_jax.studies.results import Predictions, Result
from mtl_jax.training import loop

MOST_A_DEVICE, MEMORY_SHARE = 8, 0.4
BY_DEVICE, WHOLE = PartitionSpec('data'), PartitionSpec()


def over_replicas(function: Callable[..., Any], mesh: Mesh, *, common: PartitionSpec) -> Callable[..., Any]:
  """A function of one replica as one of many, whose arguments have a first axis of replicas, divided over devices.

  The last argument is the same for all replicas of a device; `common` says how it lies on the devices.
  """

  def on_a_device(*arguments: Any) -> Any:
    *own, shared = arguments
    if jax.tree.leaves(own)[0].shape[0] == 1:  # Mapping over one would turn convolutions into grouped ones.
      result = function(*jax.tree.map(lambda leaf: leaf[0], own), shared)
      return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], result)
    return jax.vmap(function, in_axes=(0,) * len(own) + (None,))(*arguments)

  def mapped(*arguments: Any) -> Any:
    specs = (*(BY_DEVICE,) * (len(arguments) - 1), common)
    return jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=BY_DEVICE, check_vma=False)(*arguments)

  return mapped


def chunks(program: Program, replicas: Sequence[Replica]) -> list[list[Replica]]:
  """Divides all replicas of a program into those that are trained together: alike each time, whichever are done.

  As many at once as the config asks for. Else one a device of a CPU, which is not faster with more; on others up to 8,
  as memory holds them and as many as keep all processes busy.
  """
  devices, asked = program.mesh.devices.size, program.config.study.replicas_at_once
  if not asked and jax.default_backend() != 'cpu':
    fit = int(MEMORY_SHARE * memory.total_bytes() / _bytes_a_replica(program))
    asked = devices * min(MOST_A_DEVICE, fit, -(-len(replicas) // (devices * processes.count())))
  num = -(-len(replicas) // max(asked, devices))
  size = -(-len(replicas) // (num * devices)) * devices
  return [list(replicas[first : first + size]) for first in range(0, len(replicas), size)]


def _bytes_a_replica(program: Program) -> int:
  """A lower bound of the memory a replica takes: its state, a gradient, and the best weights."""
  state = program.shapes()
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves([state, state.variables, state.variables]))


class Trainer:
  """A program's compiled functions, and the data they read, for replicas that differ in these arguments."""

  def __init__(self, program: Program, arguments: Sequence[str] = ()):
    self.program, self.arguments = program, arguments
    mesh = program.mesh
    self._init = jax.jit(over_replicas(program.init, mesh, common=WHOLE))
    self.steps = jax.jit(
      over_replicas(program.steps, mesh, common=BY_DEVICE), donate_argnums=0, compiler_options=xla.step_options()
    )
    self._evaluate = jax.jit(over_replicas(program.evaluate, mesh, common=WHOLE))
    self._keep_better = jax.jit(_keep_better, donate_argnums=1)
    self._compiling = 0.0  # Seconds.
    self._source = resident.place(program.run.train, [np.arange(len(program.run.train))] * mesh.devices.size, mesh)

  def run(
    self,
    replicas: Sequence[Replica],
    *,
    size: int = 0,
    test: bool,
    stop: Callable[[], None],
    advance: Callable[[int], Any],
    give_up: Callable[[Replica, Result], bool] | None = None,
  ) -> list[tuple[Result, Predictions]]:
    """Trains replicas together; returns each one's result and, if `test`, its predictions with its best weights.

    Args:
      replicas: filled up by copies of the last to `size`, and to a multiple of the devices.
      size: of the largest chunk, so that all have one compiled program.
      test: predict the test split.
      stop: called between dispatches; may raise to stop.
      advance: is called with the number of steps done, by all replicas together.
      give_up: True for a replica whose results so far are not worth going on; once all are given up, training ends.
    """
    program, config = self.program, self.program.config
    fill = max(size - len(replicas), -len(replicas) % program.mesh.devices.size)
    filled = [*replicas, *[replicas[-1]] * fill]
    numbers = numbers_of(filled, self.arguments)
    configs = [replica.config(config) for replica in filled]
    samplers = [program.run.make_sampler(replica.seed) for replica in filled]
    state = self._init(numbers, program.weights)
    best = jax.block_until_ready(jax.tree.map(jnp.copy, state.eval_variables))
    results, unlogged = [Result() for _ in filled], []
    started, compiling = time.monotonic(), self._compiling
    for first, num in program.run.dispatches((config.eval.every_steps,)):
      stop()
      positions = np.array([[sampler.indices(first + i) for i in range(num)] for sampler in samplers], np.int32)
      state, metrics = self._call(self.steps, state, numbers, positions, self._source)
      unlogged.append(metrics)
      sharding.limit_in_flight(unlogged)
      advance(num * len(replicas))
      step = first + num
      if step == config.train.steps or (config.eval.every_steps and step % config.eval.every_steps == 0):
        log(results, step, unlogged)
        unlogged = []
        better = validate_replicas(results, step, self.predict(state.eval_variables, program.val), program, configs)
        best = self._call(self._keep_better, better, best, state.eval_variables)
        if give_up is not None:
          for replica, result in zip(filled, results, strict=True):
            if not result.diverged_at and not result.pruned_at and step < config.train.steps:
              result.pruned_at = step if give_up(replica, result) else 0
          if all(result.diverged_at or result.pruned_at for result in results):
            break
    found = [one.predictions for one in self.predict(best, program.test)] if test else [{}] * len(filled)
    seconds = (time.monotonic() - started - (self._compiling - compiling)) / len(filled)
    for result in results:
      result.seconds, result.images = seconds, step * config.train.batch_size
    predictions = [{} if result.diverged_at else one for result, one in zip(results, found, strict=True)]
    return list(zip(results, predictions, strict=True))[: len(replicas)]

  @property
  def num_compiled(self) -> int:
    """Number of programs that its steps were compiled to: one for each number of steps in a call."""
    return self.steps._cache_size()  # pyright: ignore[reportAttributeAccessIssue]

  def _call(self, function: Any, *arguments: Any) -> Any:
    """Calls a compiled function, and notes the seconds if it was compiled for that."""
    started, known = time.monotonic(), function._cache_size()
    result = function(*arguments)
    if function._cache_size() > known:
      self._compiling += time.monotonic() - started
    return result

  def predict(self, variables: Any, split: Split) -> list[evaluate.Evaluation]:
    """Every replica's predictions of a split, and the mean of each task's loss."""
    batches = pipeline.padded_batches(split, self.program.config.eval.batch_size)
    fetched = [jax.device_get(self._call(self._evaluate, variables, batch)) for batch in batches]
    count = jax.tree.leaves(variables)[0].shape[0]
    return [
      evaluate.gathered([jax.tree.map(lambda leaf: leaf[i], part) for part in fetched], split)  # noqa: B023
      for i in range(count)
    ]


def numbers_of(replicas: Sequence[Replica], arguments: Sequence[str]) -> dict[str, np.ndarray]:
  """Seeds `[replicas]` and, by field, the values that a compiled step takes as arguments."""
  values = {name: np.array([dict(one.values)[name] for one in replicas]) for name in arguments}
  numbers = {'train.seed': np.array([one.seed for one in replicas]), **values}
  return {name: each.astype(np.float32 if each.dtype.kind == 'f' else np.int32) for name, each in numbers.items()}


def log(results: Sequence[Result], step: int, unlogged: Sequence[Any]) -> None:
  """Notes each replica's mean metrics since the last time, `[replicas, steps]` of each dispatch."""
  fetched = jax.device_get(unlogged)
  values = {name: np.concatenate([metrics[name] for metrics in fetched], axis=1) for name in fetched[0]}
  for i, result in enumerate(results):
    bad = ~np.isfinite(values['loss'][i])
    if bad.any() and not result.diverged_at and not result.pruned_at:
      result.diverged_at = step - len(bad) + 1 + int(np.argmax(bad))
    if not result.diverged_at and not result.pruned_at:
      result.history.setdefault('step', []).append(step)
      for name, each in values.items():
        result.history.setdefault(f'train/{name}', []).append(float(each[i].mean()))


def validate_replicas(
  results: Sequence[Result],
  step: int,
  evaluations: Sequence[evaluate.Evaluation],
  program: Program,
  configs: Sequence[ConfigDict],
) -> np.ndarray:
  """Notes each replica's metrics on validation, by its own configuration; returns which are their best so far."""
  better = np.zeros(len(results), bool)
  for i, (result, evaluation, config) in enumerate(zip(results, evaluations, configs, strict=True)):
    if result.diverged_at or result.pruned_at:
      continue
    try:
      score, values = loop.validation_values(config, evaluation, program.val, program.run.tasks)
    except DivergedError:  # Its last update did it, whose loss was still finite.
      result.diverged_at = step
      continue
    for name, value in values.items():
      result.history.setdefault(name, []).append(value)
    better[i] = result.score is None or score > result.score
    if better[i]:
      result.score, result.best_step = score, step
  return better


def _keep_better(better: Array, best: Any, now: Any) -> Any:
  """The present weights where they are better, the best so far elsewhere."""
  return jax.tree.map(lambda b, n: jnp.where(better.reshape(-1, *[1] * (n.ndim - 1)), n, b), best, now)
