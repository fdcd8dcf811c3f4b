"""The story of a training run: resume, step, look, save, end."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import objectives, processes, workdir
from mtl_jax.data import mixture, pipeline
from mtl_jax.data.pipeline import Split
from mtl_jax.errors import DivergedError, Interrupted
from mtl_jax.evaluation import evaluate
from mtl_jax.tasks import Task
from mtl_jax.training import building, checkpoint, sharding
from mtl_jax.training.building import Run
from mtl_jax.training.checkpoint import Checkpoints, Clock
from mtl_jax.training.interrupt import Interruption
from mtl_jax.training.progress import MetricWriter, Progress
from mtl_jax.training.step import TrainState

log = logging.getLogger('mtl_jax')


def train(
  config: ConfigDict,
  directory: Path,
  *,
  allow_config_change: bool = False,
  name: str = 'train',
  watch: Callable[[Run, int], Run] | None = None,
) -> Clock:
  """Trains until the config's last step or an early stop, resuming if the directory holds a checkpoint.

  Args:
    config: a checked configuration.
    directory: the run's working directory; see the README for the files in it.
    allow_config_change: resume although the configuration differs from the one that began.
    name: what the progress bar is called.
    watch: given the run and the step it begins at, wraps its compiled steps to look at what they are given.

  Raises:
    UserError: in one of its kinds, for bad input, a diverged loss, or a request to stop.
  """
  store = mixture.open_data(config.data)
  config = workdir.with_absolute_paths(config)
  with workdir.lock(directory), Interruption() as interruption:
    facts = workdir.DataFacts.of(store)
    workdir.check_alike(config, facts)
    run = building.build(config, store)
    checkpoints = Checkpoints(directory)
    try:
      workdir.check_resumable(
        directory, config, facts, begun=checkpoints.exist(), allow_config_change=allow_config_change
      )
      state, clock = begin_state(run, checkpoints)
      workdir.begin(directory, config, facts)
      if clock.stopped_early or clock.step >= config.train.steps:
        log.info('%s is complete at step %d', directory, clock.step)
        return clock
      run = building.on_features(run, store, state, directory, stop=interruption.requested)
      building.describe(run, store, clock)
      run = watch(run, clock.step) if watch else run
      return train_from(
        run, state, clock, checkpoints=checkpoints, directory=directory, interruption=interruption, name=name
      )
    finally:
      checkpoints.close()


def begin_state(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, Clock]:
  """The state of the latest checkpoint, or a new one; born on the mesh either way."""
  placed = sharding.of_state(run.mesh, run.make_state)
  restored = checkpoints.restore(checkpoint.abstract_state(run.make_state, placed))
  if restored is not None:
    return restored
  weights = building.pretrained_weights(run.config, run.image_size)
  if run.model.frozen and weights is None:
    log.warning('warning: the frozen stages are random; name a file of weights with --config.model.weights')
  return jax.jit(run.make_state, out_shardings=placed)(pretrained_weights=weights), Clock()


def train_from(
  run: Run,
  state: TrainState,
  clock: Clock,
  *,
  checkpoints: Checkpoints,
  directory: Path,
  interruption: Interruption,
  name: str,
) -> Clock:
  """The loop itself. The host only dispatches; it waits for the devices where it logs, evaluates or saves."""
  config, primary = run.config, jax.process_index() == 0
  started = time.monotonic() - clock.seconds
  source = run.input.place()
  writer = MetricWriter(directory, resumed_at=clock.step, enabled=primary)
  progress = Progress(
    total=config.train.steps, start=clock.step, batch_size=config.train.batch_size, description=name, enabled=primary
  )
  unlogged: list[Any] = []
  try:
    for size, items in input_items(run, clock.step):
      state, metrics = run.compiled_steps(state, source, items)
      unlogged.append(metrics)
      if len(unlogged) > sharding.MAX_IN_FLIGHT:
        jax.block_until_ready(unlogged[-sharding.MAX_IN_FLIGHT])
      clock.step += size
      progress.advance(size)
      now = due(config, clock.step, first=clock.step == size, stop=interruption.requested())
      values, better = {}, False
      if now.log:
        values = log_values(run, unlogged, clock.step, progress)
        unlogged = []
      if now.evaluate and run.val is not None:
        with progress.aside():
          score, validation = validate(run, state)
        values |= validation
        better = clock.saw(score)
        clock.stopped_early = 0 < config.eval.patience <= clock.evaluations_since_best and not now.end
      if values:
        writer.write(clock.step, values)
      clock.seconds = time.monotonic() - started
      if now.save or better or clock.stopped_early:
        with progress.aside():
          checkpoints.save(state, clock)
      if clock.stopped_early:
        log.info('stopped early at step %d: %s was best at step %d', clock.step, config.eval.metric, clock.best_step)
        break
      if now.stop and not now.end:
        raise Interrupted(f'interrupted and saved at step {clock.step}; the same command goes on from there')
  finally:
    progress.close()
    writer.close()
    if run.train.images.num_corrupt:
      log.warning('warning: %d corrupt images were replaced, their labels masked', run.train.images.num_corrupt)
  return clock


class Due(NamedTuple):
  """What the host has to do after a step."""

  log: bool
  evaluate: bool
  save: bool
  stop: bool
  end: bool


def due(config: ConfigDict, step: int, *, first: bool, stop: bool) -> Due:
  """What is due after `step` steps; a log line comes with everything else, so that nothing bad is ever saved."""

  def multiple(every: int) -> bool:
    return every > 0 and step % every == 0

  end = step == config.train.steps
  evaluate_now = multiple(config.eval.every_steps) or end
  save = multiple(config.checkpoint.every_steps) or end or stop
  log_now = multiple(config.train.log_every_steps) or first or evaluate_now or save
  return Due(log=log_now, evaluate=evaluate_now, save=save, stop=stop, end=end)


def log_values(run: Run, unlogged: Sequence[dict[str, Any]], step: int, progress: Progress) -> dict[str, float]:
  """One line of metrics.jsonl."""
  return {
    'epoch': step * run.config.train.batch_size / len(run.train),
    **means(unlogged, step),
    'images_per_sec': progress.images_per_sec(),
    **({'corrupt_images': run.train.images.num_corrupt} if run.train.images.num_corrupt else {}),
    'learning_rate': float(np.asarray(run.schedule(step - 1))),
  }


def input_items(run: Run, step: int) -> Iterator[tuple[int, Any]]:
  """From `step` on: how many steps to dispatch at once, and what their batches are made of, stacked, on the devices."""
  local = sharding.local_rows(run.config.train.batch_size, field='train.batch_size')
  rows = sharding.by_rows(run.mesh, axis=1)

  def make(dispatch: tuple[int, int]) -> tuple[int, Any]:
    first, size = dispatch
    read = run.input.read(np.stack([run.order.positions(first + i)[local] for i in range(size)]))
    return size, sharding.to_global(read, rows)

  return pipeline.prefetch(make, dispatches(run, step))


def dispatches(run: Run, step: int) -> Iterator[tuple[int, int]]:
  """First step and number of steps of each dispatch: full ones, and single steps up to where the host must look.

  With two sizes alone there are two programs to compile.
  """
  config = run.config
  intervals = (config.train.log_every_steps, config.eval.every_steps, config.checkpoint.every_steps)
  while step < config.train.steps:
    stop = min([config.train.steps] + [step - step % every + every for every in intervals if every])
    size = run.steps_per_dispatch if step + run.steps_per_dispatch <= stop else 1
    yield step, size
    step += size


def means(dispatched: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
  """Means of the metrics of all steps since the last log line. Raises DivergedError if one is not finite."""
  fetched = jax.device_get(dispatched)
  result = {}
  for name in fetched[0]:
    values = np.concatenate([metrics[name] for metrics in fetched])
    if not np.isfinite(values).all():
      bad = step - len(values) + 1 + int(np.argmin(np.isfinite(values)))
      raise DivergedError(
        f'{name} became {values[bad - step - 1]} at step {bad} and was not saved; lower config.optimizer.learning_rate'
      )
    result[f'train/{name}'] = float(values.mean())
  return result


def validate(run: Run, state: TrainState) -> tuple[float, dict[str, float]]:
  """The score that picks the best checkpoint, and every metric of the validation split by name."""
  assert run.val is not None
  evaluation = evaluate.evaluate_split(
    run.val,
    state.eval_variables,
    state.label_stats,
    compiled_step=run.compiled_eval_step,
    mesh=run.mesh,
    batch_size=run.config.eval.batch_size,
  )
  score, values = validation_values(run.config, evaluation, run.val, run.tasks)
  return processes.from_first('score', score), values  # Hosts of several kinds may differ in a last bit.


def validation_values(
  config: ConfigDict, evaluation: evaluate.Evaluation, val: Split, tasks: Sequence[Task]
) -> tuple[float, dict[str, float]]:
  """The score that picks the best weights, and every metric by name, of an evaluation of the validation split."""
  metrics = evaluate.task_metrics(evaluation.predictions, val, tasks)
  weights = objectives.task_weights(config, [task.name for task in tasks])
  total = sum(weight * evaluation.losses[task.name] for weight, task in zip(weights, tasks, strict=True))
  values = {'val/loss': total} | {f'val/{name}/loss': loss for name, loss in evaluation.losses.items()}
  for task, found in metrics.items():
    values |= {f'val/{task}/{name}': float(v) for name, v in found.items() if isinstance(v, int | float)}
  return evaluate.score(config.eval.metric, total_loss=total, metrics=metrics), values
