"""What a run is made of: data, model, objective and compiled functions, from a config and a prepared set."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtl_jax.data.input import balance, keep_labels, mixture, resident
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Input, Split
from mtl_jax.data.input.sampler import Order, make_order, rows_a_batch
from mtl_jax.errors import DataError
from mtl_jax.evaluation import evaluate
from mtl_jax.models import cost, multitask, pretrained
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.objectives import matching
from mtl_jax.platform import memory, sharding, xla
from mtl_jax.run import optimizer, recipe, workdir
from mtl_jax.run.checkpoint import Clock
from mtl_jax.run.state import TrainState
from mtl_jax.tasks import LabelStats, Task
from mtl_jax.training import features, gradients, micro_batches
from mtl_jax.training.features import FeatureCache
from mtl_jax.training.step import Metrics, repeat_fetching, train_step

log = logging.getLogger('mtl_jax')


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run is made of; nothing here changes while it trains."""

  config: ConfigDict
  mesh: Mesh
  tasks: tuple[Task, ...]
  train: Split
  make_order: Callable[[int], Order]  # Of a seed.
  order: Order
  input: Input
  val: Split | None
  image_size: tuple[int, int]  # Height and width, in pixels.
  label_stats: Mapping[str, LabelStats]
  model: MultiTaskModel
  net: MultiTaskModel  # What steps train: `model`, without its frozen stages where `train` holds their outputs.
  settings: gradients.Settings
  schedule: optax.Schedule  # Learning rate by step.
  make_state: Callable[..., TrainState]  # init_state, with all but pretrained_weights bound; to be jitted.
  one_step: Callable[..., tuple[TrainState, Metrics]]  # train_step, with all that is static bound.
  compiled_steps: Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]  # Of source and stacked input items.
  compiled_eval_step: Callable[..., dict[str, Any]]

  @property
  def augmentation(self) -> Augmentation:
    return Augmentation(**self.config.data.augment)

  @property
  def steps_per_dispatch(self) -> int:
    asked = self.config.train.steps_per_dispatch
    if asked or self.train.images.dtype != np.uint8:
      return asked or steps_between_looks(self.config)
    return 1 if jax.default_backend() == 'cpu' else 8  # A CPU gains nothing, and would hear signals later.


def build(config: ConfigDict, store: DataSet) -> Run:
  """Everything a run needs, from its config and its prepared set, or a mixture of several."""
  mesh = sharding.make_mesh(model=config.train.model_devices)
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
  made = recipe.from_config(config, tasks, steps_per_epoch=-(-len(train) // config.train.batch_size))
  make_state = recipe.state_maker(made, config, tasks, label_stats=label_stats, image_size=store.image_size)
  settings = gradients.Settings.from_config(config, memory=memory.least_of_processes(memory.total_bytes()))
  one_step = partial(
    train_step,
    tasks=tasks,
    augmentation=Augmentation(**config.data.augment),
    seed=config.train.seed,
    settings=settings,
    accumulate=config.train.accumulate,
    skip_nonfinite=config.train.on_nonfinite == 'skip',
    coupling=matching.from_config(config, tasks=tasks, known=store.tasks, train=train, val=val),
    **made._asdict(),
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
    label_stats=label_stats,
    model=made.model,
    net=made.model,
    settings=settings,
    schedule=optimizer.schedule(config),
    make_state=make_state,
    one_step=one_step,
    compiled_steps=compile_steps(one_step, train_input, mesh, make_state),
    compiled_eval_step=evaluate.compile_eval_step(made.model, tasks, mesh),
  )


def dispatches(run: Run, looks: Sequence[int], step: int = 0) -> Iterator[tuple[int, int]]:
  """First step and number of steps of each dispatch: full ones, and single steps up to where the host must look.

  With two sizes alone there are two programs to compile.

  Args:
    run: what is dispatched.
    looks: every so many steps the host has something to do; 0: never.
    step: where to begin.
  """
  while step < run.config.train.steps:
    stop = min([run.config.train.steps] + [step - step % every + every for every in looks if every])
    size = run.steps_per_dispatch if step + run.steps_per_dispatch <= stop else 1
    yield step, size
    step += size


def compile_steps(one_step: Any, train_input: Input, mesh: Mesh, make_state: Any) -> Any:
  """Several steps in one call, jitted on the mesh."""
  state = sharding.of_state(mesh, make_state)
  return jax.jit(
    repeat_fetching(one_step, train_input.fetch),
    donate_argnums=0,
    compiler_options=xla.step_options(),
    in_shardings=(state, sharding.by_rows(mesh), sharding.by_rows(mesh, axis=1)),
    out_shardings=(state, sharding.replicated(mesh)),
  )


def on_features(
  run: Run, store: DataSet, state: TrainState, directory: Path, *, stop: Callable[[], bool], whole: bool = False
) -> tuple[Run, FeatureCache | None]:
  """The run on the outputs of its frozen stages, where it has such stages and their outputs can be kept.

  Where features of the train split cannot, as of images that are augmented, validation alone has them; but with `whole`
  both have them or none.

  Returns:
    The run, and the cache that its train split is in; None where that stays images.
  """
  config, headless = run.config, run.model.clone(frozen=None)
  cache = features.open_cache(
    config, run.model, state.variables, workdir=directory, data=store, mesh=run.mesh, stop=stop
  )
  augmented = run.augmentation != Augmentation()
  if cache and augmented:
    log.info('features: not kept for train, whose images are augmented; config.data.augment has it')
  if cache is None or (whole and augmented):
    return run, None
  val = cache.replace_images(run.val, 'val') if run.val else None
  train = None if augmented else cache.replace_images(run.train, 'train')
  if whole and (train is None or (run.val and val is None)):
    return run, None
  if val is not None:
    run = dataclasses.replace(
      run, val=val, compiled_eval_step=evaluate.compile_eval_step(headless, run.tasks, run.mesh)
    )
  if train is None:
    return run, None
  one_step = partial(run.one_step, model=headless)
  train_input = resident.train_input(
    train, run.order, run.mesh, mode=config.data.mode, share=config.data.resident_share
  )
  compiled = compile_steps(one_step, train_input, run.mesh, run.make_state)
  run = dataclasses.replace(
    run, train=train, input=train_input, net=headless, one_step=one_step, compiled_steps=compiled
  )
  return run, cache


def load_data(
  config: ConfigDict, store: DataSet, tasks: Sequence[Task]
) -> tuple[Split, Split | None, dict[str, LabelStats]]:
  """The train split with the labels it keeps, the validation split if there is one, and the labels' statistics.

  Raises:
    UserError: for settings that this set cannot serve, now rather than hours later.
  """
  sharding.local_rows(config.train.batch_size, field='train.batch_size')
  micro_batches.check(config)
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
  if store.split_sizes['val']:
    val = mixture.load_split(store, 'val', tasks)
    evaluate.score(config.eval.metric, total_loss=0.0, metrics=evaluate.baseline_metrics(label_stats, val, tasks))
    return train, val, label_stats
  if config.eval.patience or config.eval.metric != 'loss':
    raise DataError(f'split val of {store.directory} has no rows, but config.eval.patience or .metric asks for it')
  return train, None, label_stats


def rows_by_set(config: ConfigDict, split: Split) -> tuple[int, ...]:
  """How many rows of each set of the train split every global batch holds; of one set, all."""
  sizes = split.parts or (len(split),)
  equal = (1,) * len(sizes) if config.data.balance == balance.DOMAIN else ()
  return rows_a_batch(tuple(config.data.weights) or equal or sizes, config.train.batch_size)


def pretrained_weights(config: ConfigDict, image_size: tuple[int, int]) -> dict[str, Any] | None:
  """What the backbone starts from, if the config names a file. A checkpoint holds it, so a resumed run needs none."""
  if not config.model.weights:
    return None
  backbone = multitask.backbone_from_config(config)
  return pretrained.load(Path(config.model.weights), backbone, image_size=image_size)


def steps_between_looks(config: ConfigDict) -> int:
  """The most steps, up to 64, that fill the time between two looks of the host exactly: for steps that are short."""
  intervals = (config.train.log_every_steps, config.eval.every_steps, config.checkpoint.every_steps)
  between = math.gcd(*intervals)  # Those that are 0 do not count.
  return max(steps for steps in range(1, 65) if between % steps == 0)


def describe(run: Run, store: DataSet, clock: Clock) -> None:
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
  if run.train.parts:
    for part, size, rows in zip(store.parts, run.train.parts, rows_by_set(config, run.train), strict=True):
      log.info('each batch holds %d rows of %s, which has %d', rows, part.directory, size)
  log.info('input: %s', run.input.reason)
  on_each, in_all = (size / 1e6 for size in sharding.bytes_of_state(run.mesh, run.make_state))
  shared = f' of {in_all:.1f} MB, large arrays divided over {num}' if (num := run.mesh.shape['model']) > 1 else ''
  log.info('state: %.1f MB on every device%s', on_each, shared)
