"""Tasks of independent yes-or-no labels."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from mtl_jax.metrics.binary import METRICS, binary
from mtl_jax.metrics.metric import Metric
from mtl_jax.tasks import losses
from mtl_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class BinaryTask(Task):
  """Independent yes-or-no labels, 1 or 0; predictions are probabilities."""

  kind: ClassVar[str] = 'binary'
  measures: ClassVar[tuple[Metric, ...]] = METRICS
  baseline_name: ClassVar[str] = 'majority class'
  unit: ClassVar[str] = 'probability that the label is 1'
  splittable: ClassVar[bool] = True
  discrete: ClassVar[bool] = True

  def check(self, labels):
    super().check(labels)
    for name, label in zip(self.labels, labels, strict=True):
      if not (np.isnan(label) or label in (0, 1)):
        raise ValueError(f'{name} is {label:g}, not 0 or 1')

  def loss(self, outputs, targets):
    return losses.binary_cross_entropy(outputs, targets)

  def predict(self, outputs):
    return jax.nn.sigmoid(outputs)

  def metrics(self, predictions, labels, *, mask, source_size, draws=None):
    del source_size
    return binary(predictions, labels, mask=mask, names=self.labels, draws=draws)
