"""What the benchmarks train: a backbone with CelebA's 40 attributes and 5 landmarks; and its step, compiled."""

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, ClassVar

import absent  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtl_jax.config.fields import DEFAULTS
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.models import convnet, mobilenet, resnet
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.models.network import Network
from mtl_jax.models.sharing.hard import Hard
from mtl_jax.objectives import fixed
from mtl_jax.platform import sharding, xla
from mtl_jax.run import optimizer
from mtl_jax.run.state import TrainState, init_state
from mtl_jax.tasks import BinaryTask, LandmarkTask, Task
from mtl_jax.training.step import train_step

TASKS = (
  BinaryTask('attributes', tuple(f'attribute{i}' for i in range(40))),
  LandmarkTask('landmarks', tuple(f'point{i}_{axis}' for i in range(5) for axis in 'xy')),
)
BACKBONES = {
  'resnet18': resnet.resnet18,
  'resnet50': resnet.resnet50,
  'mobilenet_v2': mobilenet.MobileNetV2,
  'convnet': partial(convnet.ConvNet, norm='batch'),  # Compiles in no time: for --quick.
}
WIDTHS = {'resnet18': 64, 'resnet50': 64, 'mobilenet_v2': 32, 'convnet': 16}
OPTIMIZER = DEFAULTS['optimizer']
STEPS = 10**6


def config(batch: int) -> Any:
  """A configuration that never logs, evaluates or saves of itself: what an optimizer and the input are made from."""
  return SimpleNamespace(
    optimizer=SimpleNamespace(**OPTIMIZER),
    train=SimpleNamespace(seed=0, steps=STEPS, batch_size=batch, log_every_steps=STEPS, steps_per_dispatch=0),
    eval=SimpleNamespace(every_steps=0),
    checkpoint=SimpleNamespace(every_steps=STEPS),
  )


@dataclasses.dataclass(frozen=True)
class Workload:
  """A network at a size of image and of batch.

  Attributes:
    backbone: one of `BACKBONES`.
    size: pixels a side.
    batch: images a step, over all devices.
    dtype: type of the computation.
    width: features of the first layer; 0 is the published network.
    norm_rows: rows that share batch statistics; 0: all.
    tasks: what is learned.
  """

  backbone: str
  size: int
  batch: int
  dtype: str
  width: int = 0
  norm_rows: int = 0
  tasks: tuple[Task, ...] = TASKS
  donated: ClassVar[tuple[int, ...]] = (0,)  # Arguments of the step whose memory its results take: the state.

  @property
  def network(self) -> str:
    """Its name as a row has it."""
    width = f' of width {self.width}' if self.width not in (0, WIDTHS[self.backbone]) else ''
    return f'{self.backbone}{width} at {self.size} px'

  @property
  def title(self) -> str:
    """The same with batch and type."""
    return f'{self.network}, batch {self.batch}, {self.dtype}'

  @cached_property
  def model(self) -> Network:
    dtype = jnp.dtype(self.dtype)
    width = {'width': self.width} if self.width else {}
    backbone = BACKBONES[self.backbone](dtype=dtype, norm_rows=self.norm_rows, **width)
    names = tuple(task.name for task in self.tasks)
    outputs = tuple((task.name, task.num_outputs) for task in self.tasks)
    return Network(MultiTaskModel(Hard(backbone, names), outputs, dtype=dtype))

  @property
  def _trained(self) -> dict[str, Any]:
    objective = fixed([1.0] * len(self.tasks))
    tx = optimizer.from_config(config(self.batch).optimizer, steps=config(self.batch).train.steps)
    return {'model': self.model, 'tx': tx, 'objective': objective, 'ema_decay': 0.0}

  def make_state(self, **given: Any) -> TrainState:
    """The state before the first step."""
    return init_state(0, label_stats=self.label_stats, input_shape=(self.size, self.size, 3), **self._trained, **given)

  @property
  def label_stats(self) -> dict[str, Any]:
    """Of its batch."""
    labels, mask = (make_labels(self.tasks, self.batch)[name] for name in ('labels', 'mask'))
    return {t.name: t.stats(labels[t.name], mask=mask[t.name], standardize=True) for t in self.tasks}

  @property
  def one_step(self) -> Any:
    """The library's step, without augmentation: `(state, batch) -> (state, metrics)`."""
    return partial(train_step, tasks=self.tasks, augmentation=Augmentation(), seed=0, **self._trained)

  def lowered(self, state: Any, batch: Any, *, mesh: Mesh) -> Any:
    """The step's program for the devices of a mesh, which share the batch's rows; of arrays or of their shapes."""
    whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    step = jax.jit(
      self.one_step,
      donate_argnums=self.donated,
      compiler_options=xla.step_options(),
      in_shardings=(whole, rows),
      out_shardings=whole,
    )
    return step.lower(state, batch)

  def make_batch(self) -> dict[str, Any]:
    """Random images, and labels that are all there, as NumPy arrays."""
    return make_rows(self.tasks, self.batch, self.size)


def make_rows(tasks: Sequence[Task], rows: int, size: int) -> dict[str, Any]:
  """So many random examples."""
  images = np.random.default_rng(1).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
  return {'image': images, **make_labels(tasks, rows), 'example_id': np.arange(rows, dtype=np.int32)}


def make_labels(tasks: Sequence[Task], rows: int) -> dict[str, Any]:
  """Their labels, and the masks of those."""
  random = np.random.default_rng(0)
  shapes = {task.name: (rows, len(task.labels)) for task in tasks}
  return {
    'labels': {name: random.integers(0, 2, shape).astype(np.float32) for name, shape in shapes.items()},
    'mask': {name: np.ones(shape, bool) for name, shape in shapes.items()},
  }


class Steps:
  """The compiled step on a constant batch, on the devices of a mesh or on one, with a state of its own."""

  def __init__(self, workload: Workload, *, state: TrainState | None = None, mesh: Mesh | None = None):
    self.workload = workload
    mesh = sharding.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    self._state = jax.jit(workload.make_state, out_shardings=sharding.replicated(mesh))() if state is None else state
    self._batch = jax.device_put(workload.make_batch(), sharding.by_rows(mesh))
    lowered = workload.lowered(self._state, self._batch, mesh=mesh)
    began = time.perf_counter()
    self.compiled = lowered.compile()
    self.compile_secs = time.perf_counter() - began
    self._taken = 0
    self.losses: list[float] = []
    self.advance(1)

  def step(self, state: TrainState, batch: Any) -> Any:
    """One of them."""
    return self.compiled(state, batch)

  def advance(self, steps: int) -> int:
    """Takes steps to their end; returns how many images that were."""
    flying = []
    for _ in range(steps):
      self._state, metrics = self.step(self._state, self._batch)
      flying.append(metrics['loss'])
      sharding.limit_in_flight(flying)
    jax.block_until_ready(self._state)
    self._taken += steps
    self.losses.append(float(flying[-1]))
    return steps * self.workload.batch

  def check(self) -> None:
    """The device took those steps, and learned from them."""
    assert int(self._state.step) == self._taken, 'steps are missing'
    check_losses(self.losses)

  @property
  def memory_bytes(self) -> int:
    """Device memory of the step: arguments, what it keeps for a while, and results that take no argument's place."""
    found: Any = self.compiled.memory_analysis()
    return (
      found.argument_size_in_bytes
      + found.temp_size_in_bytes
      + found.output_size_in_bytes
      - found.alias_size_in_bytes
      + found.generated_code_size_in_bytes
    )

  @property
  def bytes_accessed(self) -> float:
    """Bytes that the compiled program reads and writes, as XLA counts them."""
    found: Any = self.compiled.cost_analysis()
    return float((found or {}).get('bytes accessed', math.nan))


def check_losses(losses: Sequence[float]) -> None:
  """Training changed the loss, and did not break it."""
  assert np.isfinite(losses).all(), f'losses {losses}'
  assert len(set(losses)) > 1, 'the loss never changed'
