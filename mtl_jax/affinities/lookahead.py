"""The look-ahead: what a step along each task's gradient would do to every task's loss, and how gradients lie.

It is that of Fifty et al. 2021, "Efficiently identifying task groupings for multi-task learning" (TAG): the shared
parameters take a plain gradient step on task i's loss alone, the heads stay, and every loss is taken again on the same
batch. It is taken at every n-th step of an ordinary training run, which it does not change.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from ml_collections import ConfigDict

from mtl_jax.config import with_fields
from mtl_jax.errors import CheckpointError
from mtl_jax.models import multitask
from mtl_jax.models.network import split
from mtl_jax.objectives import loss_terms, passes
from mtl_jax.platform import npz, sharding
from mtl_jax.run.state import TrainState
from mtl_jax.training import gradients, loop
from mtl_jax.training.building import Run
from mtl_jax.training.forward import Forward, Params
from mtl_jax.training.step import forward_of


class Lookahead(NamedTuple):
  """Losses and gradients of one batch, or of several along a run, `t`, in the order of training.

  Entry `[i, j]` of a matrix is the effect of source i on target j.

  Attributes:
    before: each loss of the batch.
    after: row i holds the losses after a step of the shared parameters on loss i alone.
    gram: products of the gradients at the shared parameters.
    present: which losses have a label in the batch; the rows and columns of the others mean nothing.
  """

  before: Float[ArrayLike, '*t k']
  after: Float[ArrayLike, '*t k k']
  gram: Float[ArrayLike, '*t k k']
  present: Bool[ArrayLike, '*t k']

  def affinities(self) -> Float[np.ndarray, 't k k']:
    """`Z[i, j] = 1 - L_j(after a step on i) / L_j(before)`; NaN where a loss is absent, or 0 already."""
    before = np.asarray(self.before, np.float64)[:, None, :]
    known = self._pairs() & (before > 0)
    return np.where(known, (before - self.after) / np.where(before > 0, before, 1), np.nan)

  def cosines(self) -> Float[np.ndarray, 't k k']:
    """Cosines of the gradients at the shared parameters; NaN where a loss is absent or its gradient 0."""
    gram = np.asarray(self.gram, np.float64)
    norms = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0))
    both = norms[:, :, None] * norms[:, None, :]
    return np.where(self._pairs() & (both > 0), gram / np.where(both > 0, both, 1), np.nan)

  def _pairs(self) -> Bool[np.ndarray, 't k k']:
    present = np.asarray(self.present, bool)
    return present[:, :, None] & present[:, None, :]


def look_ahead(forward: Forward, params: Params, *, step_size: ArrayLike, chunk: int = 0, memory: int = 0) -> Lookahead:
  """Looks ahead from these parameters on one batch, several tasks side by side.

  Args:
    forward: the batch on its way to the losses.
    params: of the whole model.
    step_size: of the look-ahead step.
    chunk: tasks side by side, 0 for as many as memory holds: see `gradients.chunk_size`.
    memory: bytes of a device, 0 where it is not known.
  """
  shared, heads = split(params)
  representation, pull, _ = jax.vjp(forward.encode, shared, has_aux=True)
  found = gradients.through_heads(forward, representation, heads)
  points = found.points()
  num = passes.count(points)
  # A task's look-ahead holds a second forward pass and a copy of the parameters besides its backward pass.
  side_by_side = gradients.chunk_size(pull, num, asked=chunk, memory=memory // 3)
  keep = gradients.can_keep(shared, num, memory=memory)

  def ahead(point: Any) -> tuple[Float[jax.Array, ' k']]:
    (gradient,) = pull(point)
    moved = jax.tree.map(lambda parameter, slope: parameter - step_size * slope, shared, gradient)
    return (forward.losses({**moved, **heads})[0].mean(0),)

  return Lookahead(
    before=found.losses.mean(0),
    after=passes.at_parameters(ahead, points, chunk=side_by_side),
    gram=passes.gram_at_parameters(pull, points, chunk=side_by_side, keep=keep).plain(),
    present=forward.present,
  )


def compiled(run: Run) -> Callable[[TrainState, Any, Any], Lookahead]:
  """`(state, source, items) -> Lookahead` on the first of a dispatch's batches, jitted on the mesh.

  In float32 whatever the run computes in: a short step changes losses by less than bfloat16 resolves.
  """
  settings = run.settings
  forward_for = partial(  # Of the whole batch, whatever parts of it the objective asks for.
    forward_of,
    model=multitask.from_config(with_fields(run.config, model__dtype='float32').model, run.tasks),
    tasks=run.tasks,
    augmentation=run.augmentation,
    seed=run.config.train.seed,
    entries=loss_terms.entries(run.tasks, settings.grain),
  )

  def on_first(state: TrainState, source: Any, items: Any) -> Lookahead:
    batch = run.input.fetch(source, jax.tree.map(lambda leaf: leaf[0], items))
    forward, _ = forward_for(state, batch)
    step_size = run.config.affinity.step_size or run.schedule(jnp.maximum(state.step, 1))  # Warm-up begins at 0.
    params, size = state.variables['params'], {'chunk': settings.chunk, 'memory': settings.memory}
    with jax.default_matmul_precision('highest'):  # Accelerators would round operands to 8 or 10 bits.
      return look_ahead(forward, params, step_size=step_size, **size)

  rows = sharding.by_rows(run.mesh), sharding.by_rows(run.mesh, axis=1)
  return jax.jit(
    on_first,
    in_shardings=(sharding.of_state(run.mesh, run.make_state), *rows),
    out_shardings=sharding.replicated(run.mesh),
  )


def train(
  config: ConfigDict, directory: Path, *, allow_config_change: bool = False
) -> tuple[Lookahead, Float[np.ndarray, ' t']]:
  """Trains the joint model in `directory/joint`, or what is left of it, looking ahead before every n-th step.

  The same run as `mtl-jax train`'s, except that it logs at every look-ahead: dispatches of steps begin there.

  Returns:
    All look-aheads, kept in `directory/looks`, and the seconds that each took.

  Raises:
    UserError: as `loop.train`.
  """
  every, looks = config.affinity.every_steps, directory / 'looks'

  def wrap_steps(run: Run, step: int) -> Callable[..., Any]:
    """The run's compiled steps, with the look-ahead before every n-th."""
    look = compiled(run)

    def steps(state: Any, source: Any, items: Any) -> Any:
      nonlocal step
      if step % every == 0:
        jax.block_until_ready(state)  # So that what came before is not counted as the look-ahead's time.
        started = time.monotonic()
        found = jax.device_get(look(state, source, items))
        seconds = time.monotonic() - started
        npz.write(looks / f'{step:09d}.npz', {'seconds': seconds, **found._asdict()}, root=directory)
      step += jax.tree.leaves(items)[0].shape[0]
      return run.compiled_steps(state, source, items)

    return steps

  own = with_fields(config, train__log_every_steps=every)
  loop.train(own, directory / 'joint', allow_config_change=allow_config_change, name='joint', wrap_steps=wrap_steps)
  return read(looks)


def read(directory: Path) -> tuple[Lookahead, Float[np.ndarray, ' t']]:
  """All look-aheads kept in a folder, and their seconds; CheckpointError for a file that is not as it was written."""
  advice = f'remove {directory.parent / "joint"} and {directory}, and start again'
  paths = sorted(directory.glob('*.npz'))
  found = [npz.read(path, names=('seconds', *Lookahead._fields), advice=advice) for path in paths]
  if not found:
    raise CheckpointError(f'{directory} holds no look-aheads; start with mtl-jax affinity in another --workdir')
  num = found[0]['before'].size
  shapes = {'seconds': (), 'before': (num,), 'after': (num, num), 'gram': (num, num), 'present': (num,)}
  for path, one in zip(paths, found, strict=True):
    for name, shape in shapes.items():
      if one[name].shape != shape or one[name].dtype.kind not in 'fb':
        raise CheckpointError(f'{path} is not as it was written: {name} has shape {one[name].shape}; {advice}')
  stacked = {name: np.stack([one[name] for one in found]) for name in shapes}
  seconds = stacked.pop('seconds')
  return Lookahead(**stacked), seconds
