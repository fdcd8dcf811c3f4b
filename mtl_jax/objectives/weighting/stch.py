"""Smooth Tchebycheff scalarization (Lin et al. 2024, arXiv:2402.19078). Class L."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.declared import Period, PeriodOr0, Temperature, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.epoch import EpochMean


class State(NamedTuple):
  """This epoch's sums, and the mean losses of the epoch after the warm-up, NaN before they are known."""

  running: EpochMean
  nadir: Float[Array, ' k']


@declared
def stch(mu: Temperature = 1.0, warmup_epochs: PeriodOr0 = 4, steps_per_epoch: Period = 1) -> Objective:
  """Smooth maximum of the losses relative to where they stood early on, as LibMTL and the authors' code have it.

  For `warmup_epochs` epochs and one more, whose mean losses become `z`: `sum_k log L_k`; from then on
  `K mu logsumexp(log(L / z) / mu)`. A task that had no label in that epoch takes its first loss after it as `z`.

  Args:
    mu: smoothing; the smaller, the nearer to the maximum.
    warmup_epochs: epochs before the one that is measured.
    steps_per_epoch: a run's config gives those of an epoch.
  """

  def start(num_tasks, like=None):
    return State(EpochMean.begin(num_tasks), jnp.full(num_tasks, jnp.nan))

  def update(losses, state, *, present, key):
    epoch = state.running.epoch(steps_per_epoch)
    logs = jnp.log(guard.safe(losses, present))
    late = present & (epoch > warmup_epochs) & jnp.isnan(state.nadir)
    nadir = jnp.where(late, jax.lax.stop_gradient(losses), state.nadir)
    relative = logs - jnp.log(guard.safe(jnp.where(jnp.isnan(nadir), 1, nadir), present))
    smooth = jax.nn.logsumexp(jnp.where(present, relative / mu, guard.NEVER))
    warm = jnp.where(present, logs, 0).sum()
    total = jnp.where(epoch <= warmup_epochs, warm, guard.count(present) * mu * smooth)
    running, ended, mean = state.running.add(losses, present, steps_per_epoch=steps_per_epoch)
    nadir = jnp.where(ended & (epoch == warmup_epochs), mean, nadir)
    return jnp.where(present.any(), total, 0), State(running, nadir)

  return Objective(start, update)
