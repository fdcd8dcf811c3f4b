"""Multi-task objectives: loss weighting, gradient balancing, and `value_and_grad`; `Objective` is their interface."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtl_jax.kinds import choose
from mtl_jax.objectives.balancing.closed_forms import aligned_mtl, conflict_free, imtl, imtl_g
from mtl_jax.objectives.balancing.convex import cagrad, dualproj, mgda, mgda_ub, upgrad
from mtl_jax.objectives.balancing.cr_mogm import cr_mogm
from mtl_jax.objectives.balancing.fairness import fairgrad, nash_mtl, pivrg
from mtl_jax.objectives.balancing.sdmgrad import modo, sdmgrad
from mtl_jax.objectives.balancing.surgery import graddrop, gradvac, pcgrad
from mtl_jax.objectives.balancing.tracked import db_mtl, excess_mtl, moco
from mtl_jax.objectives.declared import with_ranges
from mtl_jax.objectives.differentiate import value_and_grad
from mtl_jax.objectives.objective import Objective, of_losses
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting.epoch import dwa, stch
from mtl_jax.objectives.weighting.go4align import go4align
from mtl_jax.objectives.weighting.learned import famo, gradnorm, imtl_l, ldc_mtl, uncertainty
from mtl_jax.objectives.weighting.scalarizations import cosmos, fixed, gls, pbi, rlw, scale_invariant, uw_so

# A new objective is a function in a file of its family or of its own, its import, and its name here.
OBJECTIVES: dict[str, Callable[..., Objective]] = with_ranges(
  fixed, scale_invariant, uncertainty, uw_so, dwa, gls, rlw, imtl_l, stch, famo, go4align, ldc_mtl, pbi, cosmos,
  gradnorm, mgda, mgda_ub, pcgrad, gradvac, graddrop, cagrad, imtl_g, imtl, nash_mtl, aligned_mtl, fairgrad, pivrg,
  upgrad, dualproj, conflict_free, cr_mogm, excess_mtl, db_mtl, moco, modo, sdmgrad,
)  # fmt: skip

__all__ = [*OBJECTIVES, 'OBJECTIVES', 'Objective', 'aggregate', 'of_losses', 'on_gram', 'value_and_grad']  # pyright: ignore


def aggregate(
  matrix: ArrayLike,
  method: str | Objective,
  *,
  losses: ArrayLike | None = None,
  present: ArrayLike | Sequence[bool] | None = None,
  key: Any = None,
  **options: Any,
) -> Float[Array, ' n']:
  """The update that a method computes from K gradients in its first step.

  >>> aggregate(jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]), 'upgrad').round(2)
  Array([0.29, 1.9 , 1.9 ], dtype=float32)

  Args:
    matrix: `[K, n]`, a gradient a row. A method that takes three batches is given the same in each.
    method: one of `OBJECTIVES`, whose `options` follow, or an objective.
    losses: `[K]`, of the tasks; ones by default. In class L the update is the sum of the rows times the slopes of the
      total.
    present: `[K]`, which rows count; all by default.
    key: for methods that draw; one of seed 0 by default.

  Raises:
    ValueError: the matrix is none, or another argument is not of K.
    ConfigError: there is no such method.
  """
  matrix = jnp.asarray(matrix, jnp.float32)
  if matrix.ndim != 2:
    raise ValueError(f'the matrix of gradients must be [K, n], not {list(matrix.shape)}')
  if isinstance(method, str):
    method = OBJECTIVES[choose(method, tuple(OBJECTIVES), field='method')](**options)
  objective = method
  state, key = objective.init(len(matrix), matrix[0]), jax.random.key(0) if key is None else key
  losses = jnp.ones(len(matrix)) if losses is None else jnp.asarray(losses, jnp.float32)
  if objective.needs == 'losses':
    slopes = jax.grad(lambda losses: objective.update(losses, state, present=present, key=key)[0])(losses)
    return slopes @ jnp.where(slopes[:, None] != 0, matrix, 0)
  rows = matrix if objective.parts == 1 else jnp.stack([matrix] * objective.parts)
  return objective.update(rows, state, losses=losses, present=present, key=key)[0]
