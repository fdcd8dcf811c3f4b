"""The joint run, watched: an ordinary training run whose batches are looked at now and then; each look is a file."""

import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from mtl_jax.affinities.look import Look, compile_look
from mtl_jax.config import with_fields
from mtl_jax.errors import CheckpointError
from mtl_jax.platform import npz
from mtl_jax.training import loop
from mtl_jax.training.building import Run

log = logging.getLogger('mtl_jax')


class Looks(NamedTuple):
  """All looks of a run, in the order of training.

  Attributes:
    steps: the step before which each was taken.
    before, after, gram, present: as in `Look`, with a first axis of looks.
    seconds: that each took.
  """

  steps: np.ndarray
  before: Float[np.ndarray, 't k']
  after: Float[np.ndarray, 't k k']
  gram: Float[np.ndarray, 't k k']
  present: Bool[np.ndarray, 't k']
  seconds: np.ndarray

  def affinities(self) -> Float[np.ndarray, 't k k']:
    """`Z[i, j] = 1 - L_j(after a step on i) / L_j(before)`; NaN where a loss is absent, or 0 already."""
    before = self.before[:, None, :].astype(np.float64)
    known = self._pairs() & (before > 0)
    return np.where(known, (before - self.after) / np.where(before > 0, before, 1), np.nan)

  def cosines(self) -> Float[np.ndarray, 't k k']:
    """Cosines of the gradients at the shared parameters; NaN where a loss is absent or its gradient 0."""
    gram = self.gram.astype(np.float64)
    norms = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0))
    both = norms[:, :, None] * norms[:, None, :]
    return np.where(self._pairs() & (both > 0), gram / np.where(both > 0, both, 1), np.nan)

  def _pairs(self) -> np.ndarray:
    return self.present[:, :, None] & self.present[:, None, :]


@dataclasses.dataclass(frozen=True)
class LookStore:
  """A folder of looks, each a file named by its step, so that a run that was killed keeps them."""

  directory: Path

  def put(self, step: int, look: Look, *, seconds: float) -> None:
    """Writes a look, whole or not at all."""
    path, root = self.directory / f'{step:09d}.npz', self.directory.parent
    npz.write(path, {'seconds': seconds, **look._asdict()}, root=root)

  def read(self) -> Looks:
    """All looks. Raises CheckpointError for a file that is not as it was written, or where there is none."""
    paths = sorted(self.directory.glob('*.npz'))
    advice = f'remove {self.directory.parent / "joint"} and {self.directory}, and start again'
    found = [npz.read(path, names=(*Look._fields, 'seconds'), advice=advice) for path in paths]
    if not found:
      raise CheckpointError(f'{self.directory} holds no looks; start with mtl-jax affinity in another --workdir')
    stacked = {name: np.stack([one[name] for one in found]) for name in found[0]}
    return Looks(steps=np.array([int(path.stem) for path in paths]), **stacked)


def train(config: ConfigDict, directory: Path, *, allow_config_change: bool = False) -> Looks:
  """Trains the joint model in `directory/joint`, or what is left of it, and looks on at every n-th step.

  The same run as `mtl-jax train`'s, except that it logs at every look: dispatches of steps begin there.

  Raises:
    UserError: as `loop.train`.
  """
  looks = LookStore(directory / 'looks')
  own = with_fields(config, train__log_every_steps=config.affinity.every_steps)
  watch = partial(watched, looks=looks)
  loop.train(own, directory / 'joint', allow_config_change=allow_config_change, name='joint', watch=watch)
  return looks.read()


def watched(run: Run, begun_at: int, *, looks: LookStore) -> Callable[..., Any]:
  """The run's compiled steps; before every n-th one the batch is looked at."""
  look, every, step = compile_look(run), run.config.affinity.every_steps, begun_at

  def steps(state: Any, source: Any, items: Any) -> Any:
    nonlocal step
    if step % every == 0:
      jax.block_until_ready(state)  # So that what came before is not counted as the look's time.
      started = time.monotonic()
      found = jax.device_get(look(state, source, items))
      looks.put(step, found, seconds=time.monotonic() - started)
    step += jax.tree.leaves(items)[0].shape[0]
    return run.compiled_steps(state, source, items)

  return steps


def seconds(looks: Looks) -> dict[str, float]:
  """Seconds of all looks, of the first one with its compilation, and the median of the others."""
  later = looks.seconds[1:] if len(looks.seconds) > 1 else looks.seconds
  return {'all': float(looks.seconds.sum()), 'first': float(looks.seconds[0]), 'each': float(np.median(later))}
