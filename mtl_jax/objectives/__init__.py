"""Losses, and the ways to make one objective of several: see `Objective` for what they all are."""

from collections.abc import Callable

from mtl_jax.objectives.balancing.aligned_mtl import aligned_mtl
from mtl_jax.objectives.balancing.cagrad import cagrad
from mtl_jax.objectives.balancing.conflict_free import conflict_free
from mtl_jax.objectives.balancing.cr_mogm import cr_mogm
from mtl_jax.objectives.balancing.db_mtl import db_mtl
from mtl_jax.objectives.balancing.excess_mtl import excess_mtl
from mtl_jax.objectives.balancing.fairgrad import fairgrad
from mtl_jax.objectives.balancing.graddrop import graddrop
from mtl_jax.objectives.balancing.gradvac import gradvac
from mtl_jax.objectives.balancing.imtl import imtl, imtl_g
from mtl_jax.objectives.balancing.mgda import mgda, mgda_ub
from mtl_jax.objectives.balancing.moco import moco
from mtl_jax.objectives.balancing.nash_mtl import nash_mtl
from mtl_jax.objectives.balancing.pcgrad import pcgrad
from mtl_jax.objectives.balancing.pivrg import pivrg
from mtl_jax.objectives.balancing.sdmgrad import modo, sdmgrad
from mtl_jax.objectives.balancing.upgrad import dualproj, upgrad
from mtl_jax.objectives.declared import with_ranges
from mtl_jax.objectives.differentiate import value_and_grad
from mtl_jax.objectives.matrix import aggregate
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting.cosmos import cosmos
from mtl_jax.objectives.weighting.dwa import dwa
from mtl_jax.objectives.weighting.famo import famo
from mtl_jax.objectives.weighting.fixed import fixed
from mtl_jax.objectives.weighting.gls import gls
from mtl_jax.objectives.weighting.go4align import go4align
from mtl_jax.objectives.weighting.gradnorm import gradnorm
from mtl_jax.objectives.weighting.imtl_l import imtl_l
from mtl_jax.objectives.weighting.ldc_mtl import ldc_mtl
from mtl_jax.objectives.weighting.pbi import pbi
from mtl_jax.objectives.weighting.rlw import rlw
from mtl_jax.objectives.weighting.scale_invariant import scale_invariant
from mtl_jax.objectives.weighting.stch import stch
from mtl_jax.objectives.weighting.uncertainty import uncertainty
from mtl_jax.objectives.weighting.uw_so import uw_so

# A new objective is a file in weighting/ or balancing/, its import, and its name here.
OBJECTIVES: dict[str, Callable[..., Objective]] = with_ranges(
  fixed, scale_invariant, uncertainty, uw_so, dwa, gls, rlw, imtl_l, stch, famo, go4align, ldc_mtl, pbi, cosmos,
  gradnorm, mgda, mgda_ub, pcgrad, gradvac, graddrop, cagrad, imtl_g, imtl, nash_mtl, aligned_mtl, fairgrad, pivrg,
  upgrad, dualproj, conflict_free, cr_mogm, excess_mtl, db_mtl, moco, modo, sdmgrad,
)  # fmt: skip

__all__ = [*OBJECTIVES, 'OBJECTIVES', 'Objective', 'aggregate', 'on_gram', 'value_and_grad']  # pyright: ignore
