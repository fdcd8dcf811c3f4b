"""The step with one thing changed: what the entries of `entries.py` set against the step as it is."""

import dataclasses
import os
import subprocess
import sys
from functools import partial
from typing import Any, ClassVar

import absent  # noqa: F401
import jax
import optax
from workload import OPTIMIZER, Steps, Workload, config

from mtl_jax.data.input import augment
from mtl_jax.data.input.augment import Augmentation, network_input
from mtl_jax.models.network import Network
from mtl_jax.platform import sharding, xla
from mtl_jax.run import optimizer
from mtl_jax.run.state import TrainState

AUGMENTATION = Augmentation(flip=True, shift=0.05, zoom=0.1, brightness=0.1, contrast=0.1)  # The default one.


def changed(workload: Workload, to: type[Workload]) -> Workload:
  """The same workload, of another class."""
  return to(**{field.name: getattr(workload, field.name) for field in dataclasses.fields(workload)})


class NotDonated(Workload):
  """Each step's results have memory of their own."""

  donated: ClassVar[tuple[int, ...]] = ()


class Remat(Workload):
  """Blocks are computed again in the backward pass."""

  @property
  def _trained(self) -> dict[str, Any]:
    return super()._trained | {'model': rematerialised(self.model)}


def rematerialised(model: Network) -> Network:
  shared: Any = model.module.shared
  return Network(model.module.clone(shared=shared.clone(backbone=shared.backbone.clone(remat=True))))


class Flat(Workload):
  """Clipping and Adam see one vector of all parameters; decay, which is of kernels alone, sees them as they are."""

  @property
  def _trained(self) -> dict[str, Any]:
    decay = optax.add_decayed_weights(OPTIMIZER['weight_decay'], mask=optimizer.is_kernel)
    adam = optax.flatten(optax.chain(optax.clip_by_global_norm(OPTIMIZER['clip_norm']), optax.scale_by_adam()))
    schedule = optimizer.schedule(config(self.batch).optimizer, steps=config(self.batch).train.steps)
    rate = optax.scale_by_learning_rate(schedule)
    return super()._trained | {'tx': optax.chain(adam, decay, rate)}


class Augmented(Workload):
  """Images are augmented too, in the step."""

  @property
  def one_step(self) -> Any:
    return partial(super().one_step, augmentation=AUGMENTATION)


class Several(Steps):
  """Four steps a dispatch, as long runs on a CPU take them; the first was one alone."""

  def __init__(self, workload: Workload, **given: Any):
    super().__init__(workload, **given)
    steps = jax.jit(
      lambda state, batch: jax.lax.scan(lambda one, _: workload.one_step(one, batch), state, length=4),
      donate_argnums=workload.donated,
      compiler_options=xla.step_options(),
    )
    self._four = steps.lower(self._state, self._batch).compile()

  def advance(self, steps: int) -> int:
    if self._taken == 0:
      return super().advance(steps)
    flying = []
    for _ in range(-(-steps // 4)):
      self._state, metrics = self._four(self._state, self._batch)
      flying.append(metrics['loss'])
      sharding.limit_in_flight(flying)
    jax.block_until_ready(self._state)
    self._taken += 4 * len(flying)
    self.losses.append(float(flying[-1][-1]))
    return 4 * len(flying) * self.workload.batch


class _Floats(Workload):
  """Images come normalised."""

  def make_batch(self) -> dict[str, Any]:
    batch = super().make_batch()
    return batch | {'image': jax.device_get(jax.jit(augment.normalize)(batch['image']))}


class InputApart(Steps):
  """Normalised and augmented by a program of its own, from whose images in memory the step's program begins."""

  def __init__(self, workload: Workload, **given: Any):
    self._bytes = jax.device_put(workload.make_batch())
    self._prepare = jax.jit(partial(_prepared, tasks=workload.tasks))
    super().__init__(changed(workload, _Floats), **given)

  def step(self, state: TrainState, batch: Any) -> Any:
    del batch  # Its shapes alone were needed.
    return super().step(state, self._prepare(self._bytes, state.step))


def _prepared(batch: dict[str, Any], step: Any, *, tasks: Any) -> dict[str, Any]:
  key = jax.random.split(jax.random.fold_in(jax.random.key(0), step))[0]  # As the step has it.
  pixels = network_input(batch['image'])
  images, labels, mask = augment.augment(
    pixels, batch['labels'], batch['mask'], key=key, tasks=tasks, settings=AUGMENTATION
  )
  return batch | {'image': images, 'labels': labels, 'mask': mask}


class Child:
  """A process that takes steps under XLA flags of its own, when it is told to.

  Args:
    flags: of XLA, besides those of the environment.
    command: the program, which calls `serve`, and its arguments.
  """

  def __init__(self, flags: str, command: list[str]):
    environment = os.environ | {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}'}
    self._process = subprocess.Popen(
      [sys.executable, *command], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self._answer()  # It has compiled.

  def advance(self, steps: int) -> int:
    """Has it take steps to their end; returns how many images that were."""
    assert self._process.stdin is not None
    print(steps, file=self._process.stdin, flush=True)
    return self._answer()

  def check(self) -> None:
    """Ends it; it has checked its steps.

    Raises:
      ChildProcessError: if they were none.
    """
    self._process.communicate()
    if self._process.returncode:
      raise ChildProcessError(f'ended with {self._process.returncode}')

  def close(self) -> None:
    """Ends it, if it has not ended."""
    self._process.kill()
    self._process.communicate()

  def _answer(self) -> int:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise ChildProcessError(f'ended with {self._process.wait()}')
    return int(line)


def serve(steps: Steps) -> None:
  """A child's part: takes as many steps as each line of its input says."""
  print(0, flush=True)
  for line in sys.stdin:
    print(steps.advance(int(line)), flush=True)
  steps.check()
