"""Tasks of independent yes-or-no labels."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from mtl_jax.metrics.binary import METRICS, THRESHOLD, best_threshold, binary
from mtl_jax.metrics.metric import Metric
from mtl_jax.tasks import losses
from mtl_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class BinaryTask(Task):
  """Independent yes-or-no labels, 1 or 0; predictions are probabilities.

  Attributes:
    thresholds: of the labels, where they were tuned; empty: 0.5.
  """

  thresholds: tuple[float, ...] = ()

  kind: ClassVar[str] = 'binary'
  measures: ClassVar[tuple[Metric, ...]] = METRICS
  baseline_name: ClassVar[str] = 'majority class'
  unit: ClassVar[str] = 'probability that the label is 1'
  splittable: ClassVar[bool] = True
  discrete: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.thresholds and not (len(self.thresholds) == len(self.labels) and all(0 <= t <= 1 for t in self.thresholds)):
      raise ValueError(f'the thresholds of task {self.name!r} must be one from 0 to 1 for each of its labels')

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
    thresholds = self.thresholds or THRESHOLD
    return binary(predictions, labels, mask=mask, names=self.labels, thresholds=thresholds, draws=draws)

  def to_json(self):
    """JSON without thresholds, which a run has and not its data."""
    return {key: value for key, value in super().to_json().items() if key != 'thresholds'}

  def best_thresholds(self, predictions, labels, *, mask, by):
    columns = zip(self.labels, predictions.T, labels.T == 1, mask.T, strict=True)
    return {label: best_threshold(p[m], y[m], by=by) for label, p, y, m in columns}

  def with_thresholds(self, thresholds):
    return dataclasses.replace(self, thresholds=tuple(thresholds[label] for label in self.labels))

  def decisions(self, predictions):
    tuned = zip(self.labels, predictions.astype(np.float64), self.thresholds, strict=bool(self.thresholds))
    return {label: bool(probability >= threshold) for label, probability, threshold in tuned}

  def captions(self, described):
    """The labels that are true by the thresholds, the most likely first."""
    thresholds = self.thresholds or [THRESHOLD] * len(self.labels)
    likely = [(p, name) for (name, p), least in zip(described.items(), thresholds, strict=True) if p >= least]
    return [f'{name.replace("_", " ")}  {p:.2f}' for p, name in sorted(likely, reverse=True)]
