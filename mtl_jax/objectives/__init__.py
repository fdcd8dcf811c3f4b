"""Losses, and the ways to make one objective of several: see `Objective` for what they all are."""

from collections.abc import Callable

from mtl_jax.objectives.balancing.closed_forms import aligned_mtl, conflict_free, imtl, imtl_g
from mtl_jax.objectives.balancing.convex import cagrad, dualproj, mgda, mgda_ub, upgrad
from mtl_jax.objectives.balancing.cr_mogm import cr_mogm
from mtl_jax.objectives.balancing.fairness import fairgrad, nash_mtl, pivrg
from mtl_jax.objectives.balancing.graddrop import graddrop
from mtl_jax.objectives.balancing.sdmgrad import modo, sdmgrad
from mtl_jax.objectives.balancing.surgery import gradvac, pcgrad
from mtl_jax.objectives.balancing.tracked import db_mtl, excess_mtl, moco
from mtl_jax.objectives.declared import with_ranges
from mtl_jax.objectives.differentiate import value_and_grad
from mtl_jax.objectives.matrix import aggregate
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting.epoch import dwa, stch
from mtl_jax.objectives.weighting.famo import famo
from mtl_jax.objectives.weighting.go4align import go4align
from mtl_jax.objectives.weighting.gradnorm import gradnorm
from mtl_jax.objectives.weighting.learned import imtl_l, ldc_mtl, uncertainty
from mtl_jax.objectives.weighting.scalarizations import cosmos, fixed, gls, pbi, rlw, scale_invariant, uw_so

# A new objective is a function in a file of its family or of its own, its import, and its name here.
OBJECTIVES: dict[str, Callable[..., Objective]] = with_ranges(
  fixed, scale_invariant, uncertainty, uw_so, dwa, gls, rlw, imtl_l, stch, famo, go4align, ldc_mtl, pbi, cosmos,
  gradnorm, mgda, mgda_ub, pcgrad, gradvac, graddrop, cagrad, imtl_g, imtl, nash_mtl, aligned_mtl, fairgrad, pivrg,
  upgrad, dualproj, conflict_free, cr_mogm, excess_mtl, db_mtl, moco, modo, sdmgrad,
)  # fmt: skip

__all__ = [*OBJECTIVES, 'OBJECTIVES', 'Objective', 'aggregate', 'on_gram', 'value_and_grad']  # pyright: ignore
