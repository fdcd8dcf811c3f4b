"""Tasks of one choice among classes."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.metrics.categorical import METRICS, categorical
from mtl_jax.metrics.metric import Metric
from mtl_jax.tasks import losses
from mtl_jax.tasks.task import Task, most_likely, require_classes


@dataclasses.dataclass(frozen=True)
class CategoricalTask(Task):
  """One label, the number of a class; `mirrored[c]` is what class c becomes when the image is mirrored."""

  classes: tuple[str, ...] = ()
  mirrored: tuple[int, ...] = ()

  kind: ClassVar[str] = 'categorical'
  measures: ClassVar[tuple[Metric, ...]] = METRICS
  baseline_name: ClassVar[str] = 'majority class'
  unit: ClassVar[str] = 'probability of the class'
  discrete: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    require_classes(self)

  @property
  def num_outputs(self) -> int:
    return len(self.classes)

  @property
  def output_names(self):
    return self.classes

  def check(self, labels):
    super().check(labels)
    for name, label in zip(self.labels, labels, strict=True):
      if not (np.isnan(label) or label in range(len(self.classes))):
        raise ValueError(f'{name} is {label:g}, not the number of a class, from 0 to {len(self.classes) - 1}')

  def loss(self, outputs, targets):
    return losses.categorical_cross_entropy(outputs, targets)

  def predict(self, outputs):
    return jax.nn.softmax(outputs)

  def constant_prediction(self, labels, *, mask):
    counts = np.bincount(labels[mask].astype(np.int64), minlength=self.num_outputs)
    return counts / counts.sum()

  def move(self, labels, mask, geometry):
    if not self.mirrored:
      return labels, mask
    mirrored = jnp.array(self.mirrored, labels.dtype)[losses.guard(labels, mask).astype(jnp.int32)]
    return jnp.where(geometry.flip[:, None], mirrored, labels), mask

  def metrics(self, predictions, labels, *, mask, source_size, draws=None):
    del source_size
    return categorical(predictions, labels, mask=mask, names=self.classes, draws=draws)

  def errors(self, predictions, labels):
    """One minus the probability of the true class."""
    return 1 - np.take_along_axis(predictions, labels.astype(np.int64), axis=-1)

  def describe(self, predictions, *, width, height):
    del width, height
    return {name: float(p) for name, p in zip(self.classes, predictions, strict=True)}

  def captions(self, described):
    return [most_likely(described)]
