"""A run as the library trains it, on random images, without a prepared set or a configuration file."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import absent  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from workload import Workload, check_losses, config, make_rows

from mtl_jax.data.input import resident
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.input.sampler import make_sampler
from mtl_jax.platform import sharding
from mtl_jax.training import gradients, loop
from mtl_jax.training.building import Run


class Pixels(np.ndarray):
  """Images `[n, h, w, 3]` in the host's memory, with the methods that a split wants of them."""

  num_corrupt = 0

  def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
    return np.take(np.asarray(self), rows, axis=axis)

  def good(self, rows: np.ndarray) -> np.ndarray:
    return np.ones(len(rows), bool)


def make_split(workload: Workload, num_images: int) -> Split:
  """Random examples in the host's memory."""
  rows = make_rows(workload.tasks, num_images, workload.size)
  images: Any = rows['image'].view(Pixels)
  return Split(images, rows['labels'], rows['mask'], rows['example_id'], np.zeros((num_images, 2), np.int32))


def make_run(workload: Workload, split: Split, *, mode: str) -> Run:
  """The run that `building.build` makes of such a set; `mode` is resident or streamed."""
  options = config(workload.batch)
  options.data = SimpleNamespace(mode=mode, resident_share=1.0)
  store: Any = SimpleNamespace(image_size=(workload.size, workload.size))
  return Run(
    config=options,
    store=store,
    mesh=sharding.make_mesh(),
    tasks=workload.tasks,
    train=split,
    val=None,
    label_stats=workload.label_stats,
    make_sampler=partial(make_sampler, sizes=(len(split),), rows=(workload.batch,)),
    model=workload.model,
    settings=gradients.PLAIN,
    make_state=workload.make_state,
    one_step=workload.one_step,
  )


def random_on_devices(workload: Workload, run: Run) -> dict[str, Any]:
  """A resident source of random bytes, made where it lies: the host never has it.

  Images are drawn some thousand at a time, since random bits take several times their size while they are made.
  """
  rows = resident.rows_of_devices(run.sampler, run.mesh)
  most, by_rows = max(map(len, rows)), sharding.by_rows(run.mesh)
  chunk = max(n for n in range(1, 4097) if most % n == 0)
  numbers = workload.size**2 * 3

  def draw(key: Any) -> dict[str, Any]:
    keys = jax.random.split(key, len(rows) * most // chunk)
    images = jax.lax.map(lambda one: jax.random.bits(one, (chunk, numbers), np.uint8), keys)
    labels = {
      task.name: jax.random.bernoulli(key, 0.5, (len(rows) * most, len(task.labels))).astype(jnp.float32)
      for task in workload.tasks
    }
    return {
      'image': images.reshape(-1, numbers),
      'labels': labels,
      'mask': {name: values >= 0 for name, values in labels.items()},
      'example_id': jnp.arange(len(rows) * most, dtype=jnp.int32),
    }

  source = jax.jit(draw, out_shardings=by_rows)(jax.random.key(0, impl='rbg'))
  return jax.block_until_ready(source)


class Stepper:
  """Takes steps as `loop.train_from` does; or, with `constant`, on its first batch over and over."""

  def __init__(self, run: Run, *, source: Any = None, constant: bool = False, state: Any = None):
    self.run = run
    self._state = jax.jit(run.make_state, out_shardings=sharding.replicated(run.mesh))() if state is None else state
    self._source = run.input.place() if source is None else source
    self._items: Iterator[Any] = loop.input_items(run, 0)
    self._constant = next(self._items) if constant else None
    self._steps = 0
    self.losses: list[float] = []

  def advance(self, dispatches: int) -> int:
    """Takes steps to their end; returns how many images that were."""
    before, flying = self._steps, []
    for size, items in islice(iter(lambda: self._constant or next(self._items), None), dispatches):
      self._state, metrics = self.run.compiled_steps(self._state, self._source, items)
      self._steps += size
      flying.append(metrics['loss'])
      sharding.limit_in_flight(flying)
    jax.block_until_ready((self._state, flying))
    self.losses.append(float(flying[-1][-1]))
    return (self._steps - before) * self.run.config.train.batch_size

  def check(self) -> None:
    """The devices took those steps, and learned from them."""
    assert int(self._state.step) == self._steps, 'steps are missing'
    check_losses(self.losses)
