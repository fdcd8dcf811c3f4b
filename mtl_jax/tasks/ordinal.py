"""Tasks of one choice among bins that have an order, such as ages by decade."""

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.metrics.metric import Metric
from mtl_jax.metrics.ordinal import METRICS, median, ordinal
from mtl_jax.tasks.task import ChoiceTask, Task

LEAST_GAP = 1e-3  # Between successive thresholds, in logits, so that no bin's likelihood is 0.


@dataclasses.dataclass(frozen=True)
class OrdinalTask(ChoiceTask):
  """One label, the number of a bin; with `edges`, a source states a number instead, and it falls into a bin.

  Bin 0 lies below the first edge, the last bin from the last edge on.
  """

  edges: tuple[float, ...] = ()

  kind: ClassVar[str] = 'ordinal'
  measures: ClassVar[tuple[Metric, ...]] = METRICS
  score = staticmethod(ordinal)
  baseline_name: ClassVar[str] = 'share of each bin'
  unit: ClassVar[str] = 'probability of the bin'

  def __post_init__(self) -> None:
    super().__post_init__()
    if not (isinstance(self.edges, tuple) and all(isinstance(edge, int | float) for edge in self.edges)):
      raise ValueError(f'the edges of task {self.name!r} must be a tuple of numbers, not {self.edges!r:.60}')
    rising = all(a < b for a, b in itertools.pairwise(self.edges))
    if self.edges and not (rising and len(self.edges) == len(self.classes) - 1):
      raise ValueError(f'the edges of task {self.name!r} must rise, one fewer than its bins, not {self.edges!r:.60}')

  @property
  def num_outputs(self) -> int:
    return len(self.classes) - 1

  def check(self, labels):
    """Raises ValueError as for classes; with edges any number falls into a bin."""
    (Task if self.edges else ChoiceTask).check(self, labels)

  def from_source(self, labels, *, width, height):
    del width, height
    if not self.edges:
      return labels
    return np.where(np.isnan(labels), np.nan, np.digitize(labels, self.edges)).astype(np.float32)

  def loss(self, outputs, targets):
    """Negative log-likelihood of the bin in nats under a cumulative logit link (McCullagh 1980, section 2)."""
    above, gaps = _cumulative_logits(outputs)
    # P(bin) = s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), of the logits of reaching it and of going beyond.
    first, last = jnp.zeros_like(above[:, :1]), jnp.zeros_like(above[:, :1])
    likelihood = (
      jnp.concatenate([first, jax.nn.log_sigmoid(above)], axis=1)
      + jnp.concatenate([jax.nn.log_sigmoid(-above), last], axis=1)
      + jnp.concatenate([first, jnp.log(-jnp.expm1(-gaps)), last], axis=1)
    )
    return -jnp.take_along_axis(likelihood, targets.astype(jnp.int32), axis=1)

  def predict(self, outputs):
    reached = jax.nn.sigmoid(_cumulative_logits(outputs)[0])
    ends = jnp.ones_like(reached[:, :1]), jnp.zeros_like(reached[:, :1])
    return -jnp.diff(jnp.concatenate([ends[0], reached, ends[1]], axis=1), axis=1)

  def errors(self, predictions, labels):
    """Distance of the median bin from the true one, in bins."""
    return np.abs(median(predictions)[:, None] - labels)


def _cumulative_logits(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Falling logits `[b, c - 1]` of reaching each bin but the first, and the gaps `[b, c - 2]` between them."""
  gaps = jax.nn.softplus(outputs[:, 1:]) + LEAST_GAP
  return outputs[:, :1] - jnp.concatenate([jnp.zeros_like(outputs[:, :1]), jnp.cumsum(gaps, axis=1)], axis=1), gaps
