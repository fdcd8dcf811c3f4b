"""Losses, and the ways to make one objective of several: see `Objective` for what they all are."""

from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from mtl_jax.config import choose
from mtl_jax.objectives import balancing
from mtl_jax.objectives.balancing.db_mtl import db_mtl
from mtl_jax.objectives.balancing.excess_mtl import excess_mtl
from mtl_jax.objectives.balancing.graddrop import graddrop
from mtl_jax.objectives.balancing.moco import moco
from mtl_jax.objectives.balancing.sdmgrad import sdmgrad
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.options import build
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import gradnorm as _gradnorm
from mtl_jax.objectives.weighting.dwa import dwa
from mtl_jax.objectives.weighting.famo import famo
from mtl_jax.objectives.weighting.fixed import fixed
from mtl_jax.objectives.weighting.gls import gls
from mtl_jax.objectives.weighting.imtl_l import imtl_l
from mtl_jax.objectives.weighting.rlw import rlw
from mtl_jax.objectives.weighting.stch import stch
from mtl_jax.objectives.weighting.uncertainty import uncertainty

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
upgrad = on_gram(balancing.upgrad)

# A new objective is a file in weighting/ or balancing/ and a line here.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
  'fixed': fixed,
  'uncertainty': uncertainty,
  'dwa': dwa,
  'gls': gls,
  'rlw': rlw,
  'imtl_l': imtl_l,
  'stch': stch,
  'famo': famo,
  'gradnorm': gradnorm,
  'mgda': mgda,
  'mgda_ub': mgda_ub,
  'pcgrad': pcgrad,
  'gradvac': gradvac,
  'graddrop': graddrop,
  'cagrad': cagrad,
  'imtl_g': imtl_g,
  'nash_mtl': nash_mtl,
  'aligned_mtl': aligned_mtl,
  'fairgrad': fairgrad,
  'upgrad': upgrad,
  'excess_mtl': excess_mtl,
  'db_mtl': db_mtl,
  'moco': moco,
  'sdmgrad': sdmgrad,
}
__all__ = [*OBJECTIVES, 'OBJECTIVES', 'Objective', 'from_config', 'on_gram', 'task_weights']  # pyright: ignore


def task_weights(config: ConfigDict, names: Sequence[str]) -> list[float]:
  """Each loss's weight: its own, or its group's, or 1."""
  weights = config.objective.weights
  return [float(weights.get(name, weights.get(name.split('/')[0], 1.0))) for name in names]


def from_config(config: ConfigDict, names: Sequence[str], *, steps_per_epoch: int = 1) -> Objective:
  """The objective that `config.objective` asks for.

  Args:
    config: the whole configuration.
    names: of the losses it balances.
    steps_per_epoch: for the methods that count epochs.

  Raises:
    ConfigError: for an unknown name or option, or settings that the method cannot serve.
  """
  name = choose(config.objective.name, tuple(OBJECTIVES), field='config.objective.name')
  given = {'weights': task_weights(config, names), 'steps_per_epoch': steps_per_epoch}
  return build(name, OBJECTIVES[name], config.objective, given=given)
