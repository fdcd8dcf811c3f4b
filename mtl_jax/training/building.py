"""Builds the parts of a run from a config and a prepared set: data, model, objective and compiled functions."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtl_jax.data.input import balance, resident
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Input, Split
from mtl_jax.data.input.sampler import Sampler, interleaved, make_sampler
from mtl_jax.evaluation import evaluate
from mtl_jax.models.network import Network
from mtl_jax.objectives import matching
from mtl_jax.platform import memory, sharding, xla
from mtl_jax.run import optimizer, recipe, workdir
from mtl_jax.run.features import FeatureCache
from mtl_jax.run.state import TrainState
from mtl_jax.tasks import LabelStats, Task
from mtl_jax.training import gradients, splits
from mtl_jax.training.step import Metrics, repeat_fetching, train_step

log = logging.getLogger('mtl_jax')

LONG_RUN = 1000  # Steps of a run on a CPU that is worth the compilation of a loop.


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run, which do not change while it trains.

  Attributes:
    store: the prepared set, or mixture, of the splits.
    train: what its steps read.
    val: what the best weights are picked on, if there is such a split.
    make_sampler: of a seed, the rows that each batch of the train split holds.
    make_state: `init_state`, with all but pretrained_weights bound; to be jitted.
    one_step: `train_step`, with all that is static bound.
  """

  config: ConfigDict
  store: DataSet
  mesh: Mesh
  tasks: tuple[Task, ...]
  train: Split
  val: Split | None
  label_stats: Mapping[str, LabelStats]
  make_sampler: Callable[[int], Sampler]
  model: Network
  settings: gradients.Settings
  make_state: Callable[..., TrainState]
  one_step: Callable[..., tuple[TrainState, Metrics]]

  @cached_property
  def sampler(self) -> Sampler:
    """The sampler of the run's own seed."""
    return self.make_sampler(self.config.train.seed)

  @cached_property
  def schedule(self) -> optax.Schedule:
    """Learning rate by step."""
    return optimizer.schedule(self.config.optimizer, steps=self.config.train.steps)

  @property
  def steps_before_decay(self) -> int:
    """The step from which the learning rate falls to its end, with whose checkpoint a longer run could go on; or 0."""
    return optimizer.steps_before_decay(self.config.optimizer, steps=self.config.train.steps)

  @property
  def augmentation(self) -> Augmentation:
    return Augmentation(**self.config.data.augment)

  @property
  def steps_per_dispatch(self) -> int:
    """The steps of a full dispatch: what the config asks for, or what suits the device and the split."""
    asked = self.config.train.steps_per_dispatch
    if asked or 'image' not in self.train.inputs:
      return asked or steps_between_host_work(self.config)
    if jax.default_backend() != 'cpu':
      return 8
    # Steps are long there, and a signal is noticed between dispatches. Several in one call take their memory from the
    # system once, a loop takes longer to compile.
    return 4 if self.config.train.steps >= LONG_RUN else 1

  def dispatches(self, every_steps: Sequence[int], step: int = 0) -> Iterator[tuple[int, int]]:
    """First step and number of steps of each dispatch: full ones, and single steps before work of the host.

    With two sizes alone there are two programs to compile.

    Args:
      every_steps: intervals, in steps, at which the host has something to do; 0: never.
      step: where to begin.
    """
    ends = (self.steps_before_decay, self.config.train.steps)
    while step < self.config.train.steps:
      stop = min([end for end in ends if end > step] + [step - step % every + every for every in every_steps if every])
      size = self.steps_per_dispatch if step + self.steps_per_dispatch <= stop else 1
      yield step, size
      step += size

  @cached_property
  def input(self) -> Input:
    """The way of the train split's batches into the compiled step. All processes come here alike."""
    data = self.config.data
    return resident.train_input(self.train, self.sampler, self.mesh, mode=data.mode, share=data.resident_share)

  @cached_property
  def compiled_steps(self) -> Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]:
    """Several steps in one call, of a state, the input's source and stacked items, jitted on the mesh."""
    state = sharding.of_state(self.mesh, self.make_state)
    return jax.jit(
      repeat_fetching(self.one_step, self.input.fetch),
      donate_argnums=0,
      compiler_options=xla.step_options(),
      in_shardings=(state, sharding.by_rows(self.mesh), sharding.by_rows(self.mesh, axis=1)),
      out_shardings=(state, sharding.replicated(self.mesh)),
    )

  @cached_property
  def compiled_eval_step(self) -> Callable[..., dict[str, Any]]:
    return evaluate.compile_eval_step(self.model, self.tasks, self.mesh)


def build(config: ConfigDict, store: DataSet) -> Run:
  """Builds everything that a run needs from its config and its data set."""
  tasks = workdir.DataFacts.of(store).selected(config)
  train, val, label_stats = splits.load(config, store, tasks)
  made = recipe.from_config(config, tasks, steps_per_epoch=-(-len(train) // config.train.batch_size))
  settings = gradients.Settings.from_config(config.objective, memory=memory.least_of_processes(memory.total_bytes()))
  rows = splits.rows_by_set(config, train)
  return Run(
    config=config,
    store=store,
    mesh=sharding.make_mesh(model=config.train.model_devices),
    tasks=tasks,
    train=train,
    val=val,
    label_stats=label_stats,
    make_sampler=partial(
      make_sampler,
      sizes=train.parts or (len(train),),
      rows=rows,
      groups=balance.groups(config.data, store, seed=config.train.seed),
    ),
    model=made.model,
    settings=settings,
    make_state=recipe.state_maker(made, config, tasks, label_stats=label_stats, image_size=store.image_size),
    one_step=partial(
      train_step,
      tasks=tasks,
      augmentation=Augmentation(**config.data.augment),
      seed=config.train.seed,
      settings=settings,
      accumulate=config.train.accumulate,
      sets=interleaved(rows),
      skip_nonfinite=config.train.on_nonfinite == 'skip',
      coupling=matching.from_config(config.objective, tasks=tasks, known=store.tasks, train=train, val=val),
      **made._asdict(),
    ),
  )


def on_features(run: Run, variables: Mapping[str, Any], workdir: Path, *, stop: Callable[[], bool]) -> Run:
  """The run on features of its frozen stages where they can be kept, its train split unless images are augmented."""
  own = {'val': run.val} if run.val else {}
  if run.augmentation == Augmentation():
    own['train'] = run.train
  elif run.model.frozen:
    log.info('features: not kept for train, whose images are augmented; config.data.augment has it')
  cache = FeatureCache(run.config, run.model, variables, run.store.checksum, run.mesh, workdir, stop)
  return dataclasses.replace(run, **cache.replace_images(own))


def steps_between_host_work(config: ConfigDict) -> int:
  """The most steps, up to 64, that fill the time between work of the host exactly: for steps that are short."""
  intervals = (config.train.log_every_steps, config.eval.every_steps, config.checkpoint.every_steps)
  between = math.gcd(*intervals)  # Those that are 0 do not count.
  return max(steps for steps in range(1, 65) if between % steps == 0)
