"""Losses, and the ways to make one objective of several: see `Objective` for what they all are."""

from collections.abc import Callable

from mtl_jax.objectives import balancing
from mtl_jax.objectives.balancing.db_mtl import db_mtl
from mtl_jax.objectives.balancing.excess_mtl import excess_mtl
from mtl_jax.objectives.balancing.graddrop import graddrop
from mtl_jax.objectives.balancing.imtl import imtl
from mtl_jax.objectives.balancing.moco import moco
from mtl_jax.objectives.balancing.modo import modo
from mtl_jax.objectives.balancing.sdmgrad import sdmgrad
from mtl_jax.objectives.differentiate import value_and_grad
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import gradnorm as _gradnorm
from mtl_jax.objectives.weighting.cosmos import cosmos
from mtl_jax.objectives.weighting.dwa import dwa
from mtl_jax.objectives.weighting.famo import famo
from mtl_jax.objectives.weighting.fixed import fixed
from mtl_jax.objectives.weighting.gls import gls
from mtl_jax.objectives.weighting.go4align import go4align
from mtl_jax.objectives.weighting.imtl_l import imtl_l
from mtl_jax.objectives.weighting.ldc_mtl import ldc_mtl
from mtl_jax.objectives.weighting.pbi import pbi
from mtl_jax.objectives.weighting.rlw import rlw
from mtl_jax.objectives.weighting.scale_invariant import scale_invariant
from mtl_jax.objectives.weighting.stch import stch
from mtl_jax.objectives.weighting.uncertainty import uncertainty
from mtl_jax.objectives.weighting.uw_so import uw_so

gradnorm = on_gram(_gradnorm.gradnorm, at='representation')
mgda = on_gram(balancing.mgda)
mgda_ub = on_gram(balancing.mgda, at='representation')
pcgrad = on_gram(balancing.pcgrad)
gradvac = on_gram(balancing.gradvac)
cagrad = on_gram(balancing.cagrad)
imtl_g = on_gram(balancing.imtl_g)
nash_mtl = on_gram(balancing.nash_mtl)
aligned_mtl = on_gram(balancing.aligned_mtl)
fairgrad = on_gram(balancing.fairgrad)
pivrg = on_gram(balancing.pivrg)
upgrad = on_gram(balancing.upgrad)
dualproj = on_gram(balancing.dualproj)
conflict_free = on_gram(balancing.conflict_free)
cr_mogm = on_gram(balancing.cr_mogm)

# A new objective is a file in weighting/ or balancing/ and a line here.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
  'fixed': fixed,
  'scale_invariant': scale_invariant,
  'uncertainty': uncertainty,
  'uw_so': uw_so,
  'dwa': dwa,
  'gls': gls,
  'rlw': rlw,
  'imtl_l': imtl_l,
  'stch': stch,
  'famo': famo,
  'go4align': go4align,
  'ldc_mtl': ldc_mtl,
  'pbi': pbi,
  'cosmos': cosmos,
  'gradnorm': gradnorm,
  'mgda': mgda,
  'mgda_ub': mgda_ub,
  'pcgrad': pcgrad,
  'gradvac': gradvac,
  'graddrop': graddrop,
  'cagrad': cagrad,
  'imtl_g': imtl_g,
  'imtl': imtl,
  'nash_mtl': nash_mtl,
  'aligned_mtl': aligned_mtl,
  'fairgrad': fairgrad,
  'pivrg': pivrg,
  'upgrad': upgrad,
  'dualproj': dualproj,
  'conflict_free': conflict_free,
  'cr_mogm': cr_mogm,
  'excess_mtl': excess_mtl,
  'db_mtl': db_mtl,
  'moco': moco,
  'modo': modo,
  'sdmgrad': sdmgrad,
}
# Below the table, which it looks up.
from mtl_jax.objectives.matrix import aggregate  # noqa: E402

__all__ = [*OBJECTIVES, 'OBJECTIVES', 'Objective', 'aggregate', 'on_gram', 'value_and_grad']  # pyright: ignore
