"""Gradient balancing: one update of K task gradients, from their Gram matrix."""

from collections.abc import Callable

from mtl_jax.objectives.balancing.aligned_mtl import aligned_mtl
from mtl_jax.objectives.balancing.cagrad import cagrad
from mtl_jax.objectives.balancing.conflict_free import conflict_free
from mtl_jax.objectives.balancing.cr_mogm import cr_mogm
from mtl_jax.objectives.balancing.dualproj import dualproj
from mtl_jax.objectives.balancing.fairgrad import fairgrad
from mtl_jax.objectives.balancing.gradvac import gradvac
from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.objectives.balancing.imtl_g import imtl_g
from mtl_jax.objectives.balancing.mgda import mgda
from mtl_jax.objectives.balancing.nash_mtl import nash_mtl
from mtl_jax.objectives.balancing.pcgrad import pcgrad
from mtl_jax.objectives.balancing.pivrg import pivrg
from mtl_jax.objectives.balancing.upgrad import upgrad

METHODS: dict[str, Callable[..., GramWeighting]] = {
  'mgda': mgda,
  'pcgrad': pcgrad,
  'gradvac': gradvac,
  'cagrad': cagrad,
  'imtl_g': imtl_g,
  'nash_mtl': nash_mtl,
  'aligned_mtl': aligned_mtl,
  'fairgrad': fairgrad,
  'pivrg': pivrg,
  'upgrad': upgrad,
  'dualproj': dualproj,
  'conflict_free': conflict_free,
  'cr_mogm': cr_mogm,
}
__all__ = [*METHODS, 'METHODS', 'GramWeighting']  # pyright: ignore
