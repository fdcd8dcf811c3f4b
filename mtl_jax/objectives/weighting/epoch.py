"""Loss weightings by the mean losses of epochs. Class L."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.declared import Period, PeriodOr0, Temperature, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float, Int32
from mtl_jax.objectives.weighting import guard


class EpochMean(NamedTuple):
  """Sums of an epoch so far.

  Attributes:
    step: steps taken in all.
    total: of each task's losses in this epoch.
    count: of the steps in which it was present.
  """

  step: Int32[Array, '']
  total: Float[Array, ' k']
  count: Float[Array, ' k']

  @classmethod
  def begin(cls, num_tasks: int) -> 'EpochMean':
    return cls(jnp.zeros((), jnp.int32), jnp.zeros(num_tasks), jnp.zeros(num_tasks))

  def epoch(self, steps_per_epoch: int) -> Int32[Array, '']:
    """The number of the epoch that this step lies in, from 0."""
    return self.step // steps_per_epoch

  def add(
    self, losses: Float[Array, ' k'], present: Bool[Array, ' k'], *, steps_per_epoch: int
  ) -> tuple['EpochMean', Bool[Array, ''], Float[Array, ' k']]:
    """The next sums, whether the epoch has ended with this step, and its mean losses, NaN of a task never present."""
    total = self.total + jnp.where(present, jax.lax.stop_gradient(losses), 0)
    seen = self.count + present
    ended = (self.step + 1) % steps_per_epoch == 0
    mean = jnp.where(seen > 0, total / jnp.maximum(seen, 1), jnp.nan)
    return EpochMean(self.step + 1, jnp.where(ended, 0, total), jnp.where(ended, 0, seen)), ended, mean


class DwaState(NamedTuple):
  """This epoch's sums, and the mean losses of the last two epochs, NaN before they are known."""

  running: EpochMean
  last: Float[Array, ' k']
  before: Float[Array, ' k']


@declared
def dwa(temperature: Temperature = 2.0, steps_per_epoch: Period = 1) -> Objective:
  """`sum_k w_k L_k`, `w = K softmax(r / T)`, `r_k = L_k(t-1) / L_k(t-2)` of epoch means; at first all `w_k` are 1.

  Dynamic weight average (Liu, Johns and Davison 2019, "MTAN", arXiv:1803.10704).

  Args:
    temperature: T; the larger, the more equal the weights.
    steps_per_epoch: steps over which losses are averaged; a run's config gives those of an epoch.
  """

  def start(num_tasks, like=None):
    unknown = jnp.full(num_tasks, jnp.nan)
    return DwaState(EpochMean.begin(num_tasks), unknown, unknown)

  def update(losses, state, *, present, key):
    ratio = state.last / jnp.maximum(state.before, guard.LEAST_LOSS)
    # A task without a history falls like the mean of the others, so that it does not move their weights.
    known = present & jnp.isfinite(ratio)
    ratio = jnp.where(known, ratio, jnp.where(known.any(), guard.mean(jnp.where(known, ratio, 0), known), 1))
    weights = guard.count(present) * guard.softmax(ratio / temperature, present)
    running, ended, mean = state.running.add(losses, present, steps_per_epoch=steps_per_epoch)
    mean = jnp.where(jnp.isfinite(mean), mean, state.last)
    next_state = DwaState(running, jnp.where(ended, mean, state.last), jnp.where(ended, state.last, state.before))
    return guard.total(weights * losses, present), next_state

  return Objective(start, update)


class StchState(NamedTuple):
  """This epoch's sums, and the mean losses of the epoch after the warm-up, NaN before they are known."""

  running: EpochMean
  nadir: Float[Array, ' k']


@declared
def stch(mu: Temperature = 1.0, warmup_epochs: PeriodOr0 = 4, steps_per_epoch: Period = 1) -> Objective:
  """Smooth maximum of the losses relative to where they stood early on, as LibMTL and the authors' code have it.

  Smooth Tchebycheff scalarization (Lin et al. 2024, arXiv:2402.19078). For `warmup_epochs` epochs and one more, whose
  mean losses become `z`: `sum_k log L_k`; from then on `K mu logsumexp(log(L / z) / mu)`. A task that had no label in
  that epoch takes its first loss after it as `z`.

  Args:
    mu: smoothing; the smaller, the nearer to the maximum.
    warmup_epochs: epochs before the one that is measured.
    steps_per_epoch: a run's config gives those of an epoch.
  """

  def start(num_tasks, like=None):
    return StchState(EpochMean.begin(num_tasks), jnp.full(num_tasks, jnp.nan))

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
    return jnp.where(present.any(), total, 0), StchState(running, nadir)

  return Objective(start, update)
