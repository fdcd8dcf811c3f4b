"""Mean losses over an epoch, for the weightings that look at them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives.shapes import Array, Bool, Float, Int32


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
