"""Gradient balancing: one update of K task gradients, from their Gram matrix."""

from mtl_jax.objectives.balancing.aligned_mtl import aligned_mtl
from mtl_jax.objectives.balancing.cagrad import cagrad
from mtl_jax.objectives.balancing.fairgrad import fairgrad
from mtl_jax.objectives.balancing.gradvac import gradvac
from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.objectives.balancing.imtl_g import imtl_g
from mtl_jax.objectives.balancing.mgda import mgda
from mtl_jax.objectives.balancing.nash_mtl import nash_mtl
from mtl_jax.objectives.balancing.pcgrad import pcgrad
from mtl_jax.objectives.balancing.upgrad import upgrad

__all__ = [
  'GramWeighting',
  'aligned_mtl',
  'cagrad',
  'fairgrad',
  'gradvac',
  'imtl_g',
  'mgda',
  'nash_mtl',
  'pcgrad',
  'upgrad',
]
