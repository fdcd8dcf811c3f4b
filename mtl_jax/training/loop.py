"""The training loop: resumes a run, takes steps, logs, evaluates, saves, and ends it."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.data.input import pipeline
from mtl_jax.data.input.pipeline import Split
from mtl_jax.errors import CheckpointError, DivergedError, Interrupted
from mtl_jax.evaluation import evaluate
from mtl_jax.objectives import options
from mtl_jax.platform import processes, sharding
from mtl_jax.run import checkpoint, digests, lock, optimizer, start_weights, workdir
from mtl_jax.run.checkpoint import Checkpoints, OtherModelError, TrainProgress
from mtl_jax.run.goodput import Goodput
from mtl_jax.run.state import TrainState
from mtl_jax.tasks import Task
from mtl_jax.training import building, nonfinite, trackers
from mtl_jax.training.building import Run
from mtl_jax.training.describe import describe
from mtl_jax.training.interrupt import Interruption
from mtl_jax.training.nonfinite import NonFiniteStep
from mtl_jax.training.progress import MetricWriter, ThroughputBar
from mtl_jax.training.watchdog import Watchdog

log = logging.getLogger('mtl_jax')


def train(
  config: ConfigDict,
  directory: Path,
  *,
  allow_config_change: bool = False,
  name: str = 'train',
  wrap_steps: Callable[[Run, int], Callable[..., Any]] | None = None,
) -> TrainProgress:
  """Trains until the config's last step or an early stop, resuming if the directory holds a checkpoint.

  Args:
    config: the configuration; it is checked.
    directory: the run's working directory; see the README for the files in it.
    allow_config_change: resume although the configuration differs from the one that began.
    name: what the progress bar is called.
    wrap_steps: given the run and the step it begins at, makes what is called in place of its compiled steps.

  Raises:
    UserError: in one of its kinds, for bad input, a diverged loss, or a request to stop.
  """
  goodput, config = Goodput(), configs.load(config)
  trackers.check(config.train.trackers)
  config, store, facts = workdir.opened(config)
  with (
    lock.hold(directory),
    Interruption() as interruption,
    Watchdog(config.train.watchdog_secs) as watchdog,
  ):
    workdir.check_alike(config, facts)
    run = building.build(config, store)
    workdir.check_kind(directory, 'checkpoints')
    digests.set_aside_damaged(directory / 'checkpoints')
    data = dataclasses.replace(facts, tasks=run.tasks).to_json()
    checkpoints = Checkpoints(directory, data=data, keep=(run.steps_before_decay,))
    with closing(checkpoints, goodput, directory):
      before, changed = workdir.check_resumable(
        directory, config, facts, holds='checkpoints', allow_config_change=allow_config_change
      )
      if before is not None and not allow_config_change:
        extend(before, config, checkpoints)
      try:
        state, progress = begin_state(run, checkpoints)
      except OtherModelError as error:
        fields = '; '.join(changed) or 'no field, so the version of mtl-jax does'
        raise CheckpointError(f'{error}. What differs is {fields}. Go back to it, or take another --workdir') from error
      workdir.begin(directory, config, facts)
      if progress.stopped_early or progress.step >= config.train.steps:
        log.info('%s is complete at step %d', directory, progress.step)
        return progress
      goodput.resume(directory, progress.step, progress.spent)
      run = building.on_features(run, state.variables, directory, stop=interruption.requested)
      describe(run, progress)
      services = RunServices(checkpoints, directory, interruption, watchdog, goodput, wrap_steps, name)
      return train_on(run, state, progress, services)


def extend(before: ConfigDict, config: ConfigDict, checkpoints: Checkpoints) -> None:
  """Extends a finished run to more steps: drops what a longer run would not have, and logs its learning rate.

  That is what was saved while the rate was already on its way down to the former end.

  Raises:
    CheckpointError: where nothing from before that is left.
  """
  old, new = before.train.steps, config.train.steps
  if old == new:
    return
  settled = optimizer.steps_before_decay(before.optimizer, steps=old)
  checkpoints.drop_after(settled)
  falls = optimizer.steps_before_decay(config.optimizer, steps=new)
  then = f'falls from step {falls} on, to 0 at step {new}' if falls < new else 'stays as it is'
  at = max(checkpoints.steps(), default=0)
  log.info('config.train.steps: %d -> %d: on from step %d; the learning rate %s', old, new, at, then)


class RunServices(NamedTuple):
  """The services of a run while it trains: checkpoints, signals, watchdog and goodput; the rest is as in `train`."""

  checkpoints: Checkpoints
  directory: Path
  interruption: Interruption
  watchdog: Watchdog
  goodput: Goodput
  wrap_steps: Callable[[Run, int], Callable[..., Any]] | None
  name: str


@contextmanager
def closing(checkpoints: Checkpoints, goodput: Goodput, directory: Path) -> Iterator[None]:
  """Waits for the last save at the end, however that comes, and logs where the run's time went.

  Of several processes one that fails by itself does not wait: the others would not come to the end of that save.
  """
  together = True
  try:
    yield
  except BaseException as error:
    together = processes.count() == 1 or isinstance(error, Interrupted | DivergedError)  # To which all come alike.
    raise
  finally:
    try:
      if together:
        with goodput.timed('save'):
          checkpoints.close()
    finally:
      goodput.finish(directory)


def begin_state(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, TrainProgress]:
  """Restores the state of the latest checkpoint, or makes a new one, on the mesh."""
  placed = sharding.of_state(run.mesh, run.make_state)
  restored = checkpoints.restore(checkpoint.abstract_state(run.make_state, placed))
  if restored is not None:
    _, progress = restored
    if progress.best_step not in checkpoints.steps():  # It was damaged, or a later one took its place and was.
      progress.best_step = 0
    return restored
  weights = start_weights.load(run.config.model, run.store.image_size)
  if run.model.frozen and weights is None:
    log.warning('warning: the frozen stages are random; name a file of weights with --config.model.weights')
  return jax.jit(run.make_state, out_shardings=placed)(pretrained_weights=weights), TrainProgress()


def train_on(run: Run, state: TrainState, progress: TrainProgress, services: RunServices) -> TrainProgress:
  """Calls `train_from`, again from the last checkpoint after a step that was not finite, if the config asks for it."""
  settings = run.config.train
  while True:
    try:
      return train_from(run, state, progress, services)
    except NonFiniteStep as error:
      if settings.on_nonfinite != 'rollback':
        raise NonFiniteStep(f'{error}: {nonfinite.ADVICE}', error.step) from error
      passed_over = [*progress.passed_over, nonfinite.batch_number(error.step - 1, progress.passed_over)]
      nonfinite.check_count(len(passed_over), settings, error)
      with services.goodput.timed('restart'), services.watchdog.paused():
        services.checkpoints.wait()
        state, progress = begin_state(run, services.checkpoints)
      services.goodput.rewind(progress.spent)
      progress.passed_over = passed_over
      log.warning('warning: %s; back to step %d, and on without that batch', error, progress.step)


def train_from(run: Run, state: TrainState, progress: TrainProgress, services: RunServices) -> TrainProgress:
  """Runs the loop: the host only dispatches steps; it waits for the devices where it logs, evaluates or saves."""
  config, primary = run.config, jax.process_index() == 0
  checkpoints, directory, interruption, watchdog, goodput, wrap_steps, name = services
  steps = watchdog.watching(wrap_steps(run, progress.step) if wrap_steps else run.compiled_steps)
  eval_step = watchdog.watching(run.compiled_eval_step)
  source = run.input.place()
  writer = MetricWriter(directory, config=config, resumed_at=progress.step, enabled=primary)
  meter = ThroughputBar(
    total=config.train.steps,
    start=progress.step,
    batch_size=config.train.batch_size,
    description=name,
    goodput=goodput,
    enabled=primary,
  )
  unlogged: list[Any] = []
  try:
    for size, items in goodput.waiting('input', input_items(run, progress.step, progress.passed_over)):
      with goodput.timed('step'):
        state, metrics = steps(state, source, items)
        unlogged.append(metrics)
        sharding.limit_in_flight(unlogged)
        progress.step += size
        meter.advance(size)
        now = due(run, progress.step, first=progress.step == size, stop=interruption.requested())
        values, better = {}, False
        if now.log:
          values = log_values(run, unlogged, progress, meter)
          unlogged = []
      watchdog.beat(f'step {progress.step}')
      if now.evaluate and run.val is not None:
        with goodput.timed('eval'):
          score, validation = validate(run, state, compiled_step=eval_step)
        values |= validation
        better = progress.update_best(score)
        progress.stopped_early = 0 < config.eval.patience <= progress.evaluations_since_best and not now.end
      if values:
        writer.write(progress.step, values, saved=now.save or better or progress.stopped_early)
      if now.save or better or progress.stopped_early:
        with goodput.timed('save'):
          progress.spent = goodput.now()
          lock.check_held(directory)
          checkpoints.save(state, progress)
        watchdog.beat(f'the save of step {progress.step}')
      if now.log:
        goodput.write(directory, progress.step, always=now.save or better)
      if progress.stopped_early:
        log.info(
          'stopped early at step %d: %s was best at step %d', progress.step, config.eval.metric, progress.best_step
        )
        break
      if now.stop and not now.end:
        raise Interrupted(f'interrupted and saved at step {progress.step}; the same command goes on from there')
  finally:
    meter.close()
    writer.close()
    if run.train.images.num_corrupt:
      log.warning('warning: %d corrupt images were replaced, their labels masked', run.train.images.num_corrupt)
  return progress


class Due(NamedTuple):
  """Work of the host that is due after a step."""

  log: bool
  evaluate: bool
  save: bool
  stop: bool
  end: bool


def due(run: Run, step: int, *, first: bool, stop: bool) -> Due:
  """Lists what is due after `step` steps; a log line comes with everything else, so that nothing bad is ever saved."""

  def multiple(every: int) -> bool:
    return every > 0 and step % every == 0

  config = run.config
  end = step == config.train.steps
  evaluate_now = multiple(config.eval.every_steps) or end
  save = multiple(config.checkpoint.every_steps) or step == run.steps_before_decay or end or stop
  log_now = multiple(config.train.log_every_steps) or first or evaluate_now or save
  return Due(log=log_now, evaluate=evaluate_now, save=save, stop=stop, end=end)


def log_values(
  run: Run, unlogged: Sequence[dict[str, Any]], progress: TrainProgress, meter: ThroughputBar
) -> dict[str, float]:
  """One line of metrics.jsonl."""
  return {
    'epoch': progress.step * run.config.train.batch_size / len(run.train),
    **means(run, unlogged, progress),
    'images_per_sec': meter.images_per_sec(),
    **({'corrupt_images': run.train.images.num_corrupt} if run.train.images.num_corrupt else {}),
    **({'steps_left_out': progress.left_out} if progress.left_out else {}),
    'learning_rate': float(np.asarray(run.schedule(progress.step - 1))),
  }


def input_items(run: Run, step: int, passed_over: Sequence[int] = ()) -> Iterator[tuple[int, Any]]:
  """Yields from `step` on how many steps to dispatch at once, and their batches' items, stacked, on the devices.

  Batches that are passed over, by number, are not among them.
  """
  local = sharding.local_rows(run.config.train.batch_size, field='train.batch_size')
  rows = sharding.by_rows(run.mesh, axis=1)

  def make(dispatch: tuple[int, int]) -> tuple[int, Any]:
    first, size = dispatch
    numbers = [nonfinite.batch_number(first + i, passed_over) for i in range(size)]
    read = run.input.read(np.stack([run.sampler.indices(number)[local] for number in numbers]))
    return size, sharding.to_global(read, rows)

  config = run.config
  intervals = (config.train.log_every_steps, config.eval.every_steps, config.checkpoint.every_steps)
  return pipeline.prefetch(make, run.dispatches(intervals, step))


def means(run: Run, dispatched: Sequence[dict[str, Any]], progress: TrainProgress) -> dict[str, float]:
  """Means of the metrics of all steps since the last log line that were finite. NonFiniteStep as `finite_steps`."""

  def examples(step: int) -> np.ndarray:
    return run.train.example_id[run.sampler.indices(nonfinite.batch_number(step - 1, progress.passed_over))]

  fetched = jax.device_get(dispatched)
  values = {name: np.concatenate([metrics[name] for metrics in fetched]) for name in fetched[0]}
  finite = nonfinite.finite_steps(values, progress, settings=run.config.train, examples=examples)
  return {f'train/{name}': float(each.mean()) for name, each in finite.items() if each.size}


def validate(run: Run, state: TrainState, *, compiled_step: Callable[..., Any]) -> tuple[float, dict[str, float]]:
  """The score that picks the best checkpoint, and every metric of the validation split by name."""
  assert run.val is not None
  evaluation = evaluate.evaluate_split(
    run.val,
    state.eval_variables,
    state.label_stats,
    compiled_step=compiled_step,
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
  weights = options.task_weights(config.objective, [task.name for task in tasks])
  total = sum(weight * evaluation.losses[task.name] for weight, task in zip(weights, tasks, strict=True))
  values = {'val/loss': total} | {f'val/{name}/loss': loss for name, loss in evaluation.losses.items()}
  for task, found in metrics.items():
    values |= {f'val/{task}/{name}': float(v) for name, v in found.items() if isinstance(v, int | float)}
  return evaluate.score(config.eval.metric, total_loss=total, metrics=metrics), values
