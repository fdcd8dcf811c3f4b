"""Tasks of real numbers."""

import dataclasses
from typing import ClassVar

from mtl_jax.metrics.metric import Metric
from mtl_jax.metrics.regression import METRICS, regression
from mtl_jax.tasks import losses
from mtl_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class RegressionTask(Task):
  """Real numbers in a unit of their own, such as an age in years."""

  kind: ClassVar[str] = 'regression'
  measures: ClassVar[tuple[Metric, ...]] = METRICS
  score = staticmethod(regression)
  baseline_name: ClassVar[str] = 'mean'
  unit: ClassVar[str] = "the label's own, such as years of an age"
  standardized: ClassVar[bool] = True

  def loss(self, outputs, targets):
    return losses.squared_error(outputs, targets)
