"""The story of a training run: build, resume, step, look, save, end."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtl_jax import objectives, workdir
from mtl_jax.data import balance, keep_labels, mixture, pipeline, resident
from mtl_jax.data.augment import Augmentation
from mtl_jax.data.mixture import Mixture
from mtl_jax.data.order import Order, make_order, rows_a_batch
from mtl_jax.data.pipeline import Input, Split
from mtl_jax.data.store import Store
from mtl_jax.errors import DataError, DivergedError, Interrupted
from mtl_jax.evaluation import evaluate
from mtl_jax.models import cost, multitask, pretrained
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.objectives import grain
from mtl_jax.tasks import LabelStats, Task
from mtl_jax.training import checkpoint, features, gradients, optimizer, sharding
from mtl_jax.training.checkpoint import Checkpoints, Clock
from mtl_jax.training.interrupt import Interruption
from mtl_jax.training.progress import MetricWriter, Progress
from mtl_jax.training.step import TrainState, init_state, repeat_fetching, train_step

log = logging.getLogger('mtl_jax')


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run is made of; nothing here changes while it trains."""

  config: ConfigDict
  mesh: Mesh
  tasks: tuple[Task, ...]
  train: Split
  make_order: Any  # seed -> Order.
  order: Order
  input: Input
  val: Split | None
  image_size: tuple[int, int]  # Height and width, in pixels.
  model: MultiTaskModel
  schedule: Any  # Learning rate by step.
  make_state: Any  # (pretrained_weights=None) -> TrainState, to be jitted.
  one_step: Any  # train_step, with all that is static bound.
  compiled_steps: Any  # (state, source, stacked items of the input) -> (state, stacked metrics).
  compiled_eval_step: Any

  @property
  def steps_per_dispatch(self) -> int:
    asked = self.config.train.steps_per_dispatch
    if asked or unrolled(self.train):
      return asked or 1
    return 8 if self.train.images.dtype == np.uint8 else steps_between_looks(self.config)


def build(config: ConfigDict, store: Store | Mixture) -> Run:
  """Everything a run needs, from its config and its prepared set, or a mixture of several."""
  mesh = sharding.make_mesh()
  tasks = workdir.DataFacts.of(store).selected(config)
  train, val, label_stats = load_data(config, store, tasks)
  order_of = partial(
    make_order,
    sizes=train.parts or (len(train),),
    rows=rows_by_set(config, train),
    groups=balance.groups(config, store),
  )
  order = order_of(config.train.seed)
  train_input = resident.train_input(train, order, mesh, mode=config.data.mode, share=config.data.resident_share)
  model = multitask.from_config(config, tasks)
  names = grain.names(tasks, config.objective.grain)
  steps_per_epoch = -(-len(train) // config.train.batch_size)
  trained = {
    'model': model,
    'tx': optimizer.from_config(config),
    'objective': objectives.from_config(config, names, steps_per_epoch=steps_per_epoch),
    'ema_decay': config.optimizer.ema_decay,
  }
  make_state = partial(
    init_state,
    config.train.seed,
    label_stats=label_stats,
    image_size=store.image_size,
    num_losses=len(names),
    **trained,
  )
  one_step = partial(
    train_step,
    tasks=tasks,
    augmentation=Augmentation(**config.data.augment),
    seed=config.train.seed,
    settings=gradients.Settings.from_config(config, memory=resident.agreed(resident.device_size())),
    **trained,
  )
  return Run(
    config=config,
    mesh=mesh,
    tasks=tasks,
    train=train,
    make_order=order_of,
    order=order,
    input=train_input,
    val=val,
    image_size=store.image_size,
    model=model,
    schedule=optimizer.schedule(config),
    make_state=make_state,
    one_step=one_step,
    compiled_steps=compile_steps(one_step, train_input, mesh, unroll=unrolled(train)),
    compiled_eval_step=evaluate.compile_eval_step(model, tasks, mesh),
  )


def compile_steps(one_step: Any, train_input: Input, mesh: Mesh, *, unroll: bool) -> Any:
  """Several steps in one call, jitted on the mesh."""
  whole = sharding.replicated(mesh)
  return jax.jit(
    repeat_fetching(one_step, train_input.fetch, unroll=unroll),
    donate_argnums=0,
    in_shardings=(whole, sharding.by_rows(mesh), sharding.by_rows(mesh, axis=1)),
    out_shardings=whole,
  )


def unrolled(split: Split) -> bool:
  """Whether steps are compiled one after another, not in a loop: on a CPU a loop makes convolutions slow.

  Features `[n, f]` meet none.
  """
  return jax.default_backend() == 'cpu' and len(split.images.shape) > 2


def on_features(run: Run, store: Store | Mixture, state: TrainState, directory: Path, *, stop: Any) -> Run:
  """The run on the outputs of its frozen stages, where it has such stages and their outputs can be kept."""
  config, model = run.config, run.model
  cache = features.open_cache(config, model, state.variables, workdir=directory, data=store, mesh=run.mesh, stop=stop)
  if cache is None:
    return run
  headless = model.clone(frozen=None)
  val = cache.replace_images(run.val, 'val') if run.val else None
  if val is not None:
    run = dataclasses.replace(
      run, val=val, compiled_eval_step=evaluate.compile_eval_step(headless, run.tasks, run.mesh)
    )
  if Augmentation(**config.data.augment) != Augmentation():
    log.info('features: not kept for train, whose images are augmented; config.data.augment has it')
    return run
  train = cache.replace_images(run.train, 'train')
  if train is None:
    return run
  one_step = partial(run.one_step, model=headless)
  train_input = resident.train_input(
    train, run.order, run.mesh, mode=config.data.mode, share=config.data.resident_share
  )
  return dataclasses.replace(
    run,
    train=train,
    input=train_input,
    one_step=one_step,
    compiled_steps=compile_steps(one_step, train_input, run.mesh, unroll=unrolled(train)),
  )


def load_data(
  config: ConfigDict, store: Store | Mixture, tasks: Sequence[Task]
) -> tuple[Split, Split | None, dict[str, LabelStats]]:
  """The train split with the labels it keeps, the validation split if there is one, and the labels' statistics.

  Raises:
    UserError: for settings that this set cannot serve, now rather than hours later.
  """
  sharding.local_rows(config.train.batch_size, field='train.batch_size')
  train = keep_labels.apply(
    mixture.load_split(store, 'train', tasks),
    config.data.keep_labels,
    tasks=tasks,
    groups=[task.name for task in store.tasks],
    seed=config.train.seed,
  )
  rows_by_set(config, train)
  label_stats = {
    task.name: task.stats(train.labels[task.name], mask=train.mask[task.name], standardize=config.objective.standardize)
    for task in tasks
  }
  if store.splits.get('val'):
    val = mixture.load_split(store, 'val', tasks)
    evaluate.score(config.eval.metric, total_loss=0.0, metrics=evaluate.baseline_metrics(label_stats, val, tasks))
    return train, val, label_stats
  if config.eval.patience or config.eval.metric != 'loss':
    raise DataError(f'split val of {store.directory} has no rows, but config.eval.patience or .metric asks for it')
  return train, None, label_stats


def train(config: ConfigDict, directory: Path, *, allow_config_change: bool = False, name: str = 'train') -> Clock:
  """Trains until the config's last step or an early stop, resuming if the directory holds a checkpoint.

  Args:
    config: a checked configuration.
    directory: the run's working directory; see the README for the files in it.
    allow_config_change: resume although the configuration differs from the one that began.
    name: what the progress bar is called.

  Raises:
    UserError: in one of its kinds, for bad input, a diverged loss, or a request to stop.
  """
  store = mixture.open_data(config.data)
  config = workdir.with_absolute_paths(config)
  with workdir.lock(directory), Interruption() as interruption:
    run, facts = build(config, store), workdir.DataFacts.of(store)
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
      run = on_features(run, store, state, directory, stop=interruption.requested)
      describe(run, store, clock)
      return train_from(
        run, state, clock, checkpoints=checkpoints, directory=directory, interruption=interruption, name=name
      )
    finally:
      checkpoints.close()


def begin_state(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, Clock]:
  """The state of the latest checkpoint, or a new one; born on the mesh either way."""
  replicated = sharding.replicated(run.mesh)
  restored = checkpoints.restore(checkpoint.abstract_state(run.make_state, replicated))
  if restored is not None:
    return restored
  weights = pretrained_weights(run.config, run.image_size)
  if run.model.frozen and weights is None:
    log.warning('warning: the frozen stages are random; name a file of weights with --config.model.weights')
  return jax.jit(run.make_state, out_shardings=replicated)(pretrained_weights=weights), Clock()


def pretrained_weights(config: ConfigDict, image_size: tuple[int, int]) -> dict[str, Any] | None:
  """What the backbone starts from, if the config names a file. A checkpoint holds it, so a resumed run needs none."""
  if not config.model.weights:
    return None
  backbone = multitask.backbone_from_config(config)
  return pretrained.load(Path(config.model.weights), backbone, image_size=image_size)


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


def rows_by_set(config: ConfigDict, split: Split) -> tuple[int, ...]:
  """How many rows of each set of the train split every global batch holds; of one set, all."""
  sizes = split.parts or (len(split),)
  equal = (1,) * len(sizes) if config.data.balance == balance.DOMAIN else ()
  return rows_a_batch(tuple(config.data.weights) or equal or sizes, config.train.batch_size)


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


def steps_between_looks(config: ConfigDict) -> int:
  """The most steps, up to 64, that fill the time between two looks of the host exactly: for steps that are short."""
  intervals = (config.train.log_every_steps, config.eval.every_steps, config.checkpoint.every_steps)
  between = math.gcd(*intervals)  # Those that are 0 do not count.
  return max(steps for steps in range(1, 65) if between % steps == 0)


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
  return validation_values(run.config, evaluation, run.val, run.tasks)


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


def describe(run: Run, store: Store | Mixture, clock: Clock) -> None:
  """Says what will be trained on what."""
  config = run.config
  height, width = run.image_size
  variables = jax.eval_shape(run.make_state).variables
  learned, frozen = (cost.num_parameters(variables.get(kind, {})) / 1e6 for kind in ('params', 'frozen'))
  log.info('parameters:\n%s', cost.parameter_table(variables['params']))
  log.info(
    '%s: %s, %s, %s an image forward, %dx%d, tasks %s; '
    '%d train and %d validation examples; %d %s device(s), %d process(es)',
    f'resuming at step {clock.step}' if clock.step else 'training',
    config.model.backbone,
    f'{learned:.2f} M parameters' + (f' and {frozen:.2f} M frozen ones' if frozen else ''),
    cost.forward_flops_text(run.model, variables, run.image_size),
    height,
    width,
    ', '.join(task.name for task in run.tasks),
    len(run.train),
    len(run.val) if run.val else 0,
    jax.device_count(),
    jax.devices()[0].platform,
    jax.process_count(),
  )
  if isinstance(store, Mixture):
    for part, size, rows in zip(store.parts, run.train.parts, rows_by_set(config, run.train), strict=True):
      log.info('each batch holds %d rows of %s, which has %d', rows, part.directory, size)
  log.info('input: %s', run.input.reason)
