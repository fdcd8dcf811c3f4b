"""Tasks of one choice among classes."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.metrics.categorical import METRICS, categorical
from mtl_jax.metrics.metric import Metric
from mtl_jax.tasks import losses
from mtl_jax.tasks.task import ChoiceTask


@dataclasses.dataclass(frozen=True)
class CategoricalTask(ChoiceTask):
  """One choice; `mirrored[c]` is what class c becomes when the image is mirrored."""

  mirrored: tuple[int, ...] = ()

  kind: ClassVar[str] = 'categorical'
  measures: ClassVar[tuple[Metric, ...]] = METRICS
  score = staticmethod(categorical)
  baseline_name: ClassVar[str] = 'majority class'
  unit: ClassVar[str] = 'probability of the class'

  @property
  def num_outputs(self) -> int:
    return len(self.classes)

  def loss(self, outputs, targets):
    return losses.categorical_cross_entropy(outputs, targets)

  def predict(self, outputs):
    return jax.nn.softmax(outputs)

  def move(self, labels, mask, geometry):
    if not self.mirrored:
      return labels, mask
    mirrored = jnp.array(self.mirrored, labels.dtype)[losses.guard(labels, mask).astype(jnp.int32)]
    return jnp.where(geometry.flip[:, None], mirrored, labels), mask

  def errors(self, predictions, labels):
    """One minus the probability of the true class."""
    return 1 - np.take_along_axis(predictions, labels.astype(np.int64), axis=-1)
