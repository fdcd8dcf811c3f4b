"""Dynamic weight average (Liu, Johns and Davison 2019, "MTAN", arXiv:1803.10704). Class L."""

from typing import NamedTuple

import jax.numpy as jnp

from mtl_jax.objectives.declared import Period, Temperature, declared
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Float
from mtl_jax.objectives.weighting import guard
from mtl_jax.objectives.weighting.epoch import EpochMean


class State(NamedTuple):
  """This epoch's sums, and the mean losses of the last two epochs, NaN before they are known."""

  running: EpochMean
  last: Float[Array, ' k']
  before: Float[Array, ' k']


@declared
def dwa(temperature: Temperature = 2.0, steps_per_epoch: Period = 1) -> Objective:
  """`sum_k w_k L_k`, `w = K softmax(r / T)`, `r_k = L_k(t-1) / L_k(t-2)` of epoch means; at first all `w_k` are 1.

  Args:
    temperature: T; the larger, the more equal the weights.
    steps_per_epoch: steps over which losses are averaged; a run's config gives those of an epoch.
  """

  def start(num_tasks, like=None):
    unknown = jnp.full(num_tasks, jnp.nan)
    return State(EpochMean.begin(num_tasks), unknown, unknown)

  def update(losses, state, *, present, key):
    ratio = state.last / jnp.maximum(state.before, guard.LEAST_LOSS)
    # A task without a history falls like the mean of the others, so that it does not move their weights.
    known = present & jnp.isfinite(ratio)
    ratio = jnp.where(known, ratio, jnp.where(known.any(), guard.mean(jnp.where(known, ratio, 0), known), 1))
    weights = guard.count(present) * guard.softmax(ratio / temperature, present)
    running, ended, mean = state.running.add(losses, present, steps_per_epoch=steps_per_epoch)
    mean = jnp.where(jnp.isfinite(mean), mean, state.last)
    next_state = State(running, jnp.where(ended, mean, state.last), jnp.where(ended, state.last, state.before))
    return guard.total(weights * losses, present), next_state

  return Objective(start, update)
