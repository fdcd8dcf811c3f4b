"""A look at one batch: what a step along each task's gradient would do to every task's loss, and how gradients lie.

The look-ahead is that of Fifty et al. 2021, "Efficiently identifying task groupings for multi-task learning" (TAG):
the shared parameters take a plain gradient step on task i's loss alone, the heads stay, and every loss is taken again
on the same batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from mtl_jax.config import with_fields
from mtl_jax.models import multitask
from mtl_jax.models.network import split
from mtl_jax.objectives import loss_terms, passes
from mtl_jax.platform import sharding
from mtl_jax.run.state import TrainState
from mtl_jax.training import gradients
from mtl_jax.training.building import Run
from mtl_jax.training.forward import Forward, Params
from mtl_jax.training.step import forward_of


class Look(NamedTuple):
  """Results of a look; entry `[i, j]` of a matrix is the effect of source i on target j.

  Attributes:
    before: each loss of the batch.
    after: row i holds the losses after a step of the shared parameters on loss i alone.
    gram: products of the gradients at the shared parameters.
    present: which losses have a label in the batch; the rows and columns of the others mean nothing.
  """

  before: Float[Array, ' k']
  after: Float[Array, 'k k']
  gram: Float[Array, 'k k']
  present: Bool[Array, ' k']


def look(forward: Forward, params: Params, *, step_size: ArrayLike, chunk: int = 0, memory: int = 0) -> Look:
  """Looks at a batch from these parameters, several tasks side by side.

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

  def ahead(point: Any) -> tuple[Float[Array, ' k']]:
    (gradient,) = pull(point)
    moved = jax.tree.map(lambda parameter, slope: parameter - step_size * slope, shared, gradient)
    return (forward.losses({**moved, **heads})[0].mean(0),)

  return Look(
    before=found.losses.mean(0),
    after=passes.at_parameters(ahead, points, chunk=side_by_side),
    gram=passes.gram_at_parameters(pull, points, chunk=side_by_side, keep=keep).plain(),
    present=forward.present,
  )


def compile_look(run: Run) -> Callable[[TrainState, Any, Any], Look]:
  """`(state, source, items) -> Look` at the first of a dispatch's batches, jitted on the mesh.

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

  def first_look(state: TrainState, source: Any, items: Any) -> Look:
    batch = run.input.fetch(source, jax.tree.map(lambda leaf: leaf[0], items))
    forward, _ = forward_for(state, batch)
    step_size = run.config.affinity.step_size or run.schedule(jnp.maximum(state.step, 1))  # Warm-up begins at 0.
    with jax.default_matmul_precision('highest'):  # Accelerators would round operands to 8 or 10 bits.
      return look(forward, state.variables['params'], step_size=step_size, chunk=settings.chunk, memory=settings.memory)

  whole = sharding.replicated(run.mesh)
  return jax.jit(
    first_look,
    in_shardings=(
      sharding.of_state(run.mesh, run.make_state),
      sharding.by_rows(run.mesh),
      sharding.by_rows(run.mesh, axis=1),
    ),
    out_shardings=whole,
  )
