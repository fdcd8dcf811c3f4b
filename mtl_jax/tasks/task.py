"""The interface of tasks: outputs, loss, metrics, and how labels change when the image is moved."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from mtl_jax.config import choose
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.kinds import shown
from mtl_jax.metrics.draws import Draws
from mtl_jax.metrics.metric import Metric

Box: TypeAlias = tuple[int, int, int, int]  # Left, top, right and bottom, in pixels.


@dataclasses.dataclass(frozen=True)
class Geometry:
  """The change of each image of a batch: `x' = (x - offset) / scale`, then turned, then mirrored where `flip`.

  Coordinates are fractions of the image's width and height. `turn` multiplies what they are off the centre; None: not.
  """

  flip: Bool[Array, ' b']
  offset: Float[Array, 'b 2']
  scale: Float[Array, 'b 2']
  turn: Float[Array, 'b 2 2'] | None = None


class LabelStats(struct.PyTreeNode):
  """Statistics of a task's labels in the train split, kept with the model.

  Attributes:
    mean: `[k]`, subtracted from labels before the loss; 0 where labels are learned as they are.
    std: `[k]`, the unit in which labels are learned; 1 likewise.
    baseline: `[n]`, the constant prediction that the train split suggests: the mean face, the share of each class.
  """

  mean: Float[Array | np.ndarray, ' k']
  std: Float[Array | np.ndarray, ' k']
  baseline: Float[Array | np.ndarray, ' n']


@dataclasses.dataclass(frozen=True)
class Task:
  """One thing to predict: `k = len(labels)` label columns from `num_outputs` network outputs.

  A label and its mask have the shape `label_shape`, `[k]` or, of a dense task, `[h, w]`: where a method says `b k` or
  `n k`, labels, masks and losses of a dense task are `b h w`.

  The name's part before a `/` is the group, the array of a prepared set that the labels are read from.
  """

  name: str
  labels: tuple[str, ...]

  kind: ClassVar[str]
  measures: ClassVar[tuple[Metric, ...]]  # Its metrics, the main one first.
  score: ClassVar[Callable[..., dict[str, Any]]]  # Computes them, as the functions of `mtl_jax.metrics` do.
  baseline_name: ClassVar[str]  # What the constant prediction of `LabelStats` amounts to.
  standardized: ClassVar[bool] = False  # Learned in units of the train split's spread.
  splittable: ClassVar[bool] = False  # Each label makes sense as a task of its own.
  discrete: ClassVar[bool] = False  # Labels are numbers of classes, so that batches can be balanced by them.
  dense: ClassVar[bool] = False  # A label a pixel, learned by heads that give a map.
  label_dtype: ClassVar[type[np.generic]] = np.float32  # In a prepared set and a batch.
  coordinates: ClassVar[bool] = False  # Outputs are x and y of points in turn, which spatial heads can give.
  unit: ClassVar[str] = ''  # Of the predictions, for those who get them as an array.

  def __post_init__(self) -> None:
    """Raises ValueError for a task that cannot be."""
    if not (isinstance(self.name, str) and self.group.isidentifier()):
      raise ValueError(f'the task {shown(self.name)} must be named by letters, digits and _')
    require_names(self.labels, f'the labels of task {self.name!r}')

  @property
  def undefined(self) -> frozenset[str]:
    """Names of those of its kind's metrics that this task has no values of."""
    return frozenset()

  @property
  def main_metric(self) -> str:
    """The metric that is tested and that the task is judged by."""
    return next(metric.name for metric in self.measures if metric.name not in self.undefined)

  @property
  def shown(self) -> tuple[str, ...]:
    """Names of the metrics that reports have columns for."""
    return tuple(metric.name for metric in self.measures if metric.shown and metric.name not in self.undefined)

  @property
  def group(self) -> str:
    return self.name.split('/')[0]

  @property
  def num_outputs(self) -> int:
    return len(self.labels)

  @property
  def label_shape(self) -> tuple[int, ...]:
    """The shape of one example's label, and of its mask."""
    return (len(self.labels),)

  @property
  def prediction_shape(self) -> tuple[int, ...]:
    """The shape of one example's prediction."""
    return (self.num_outputs,)

  @property
  def output_names(self) -> tuple[str, ...]:
    """Names of the outputs."""
    return self.labels

  def loss(self, outputs: Float[Array, 'b n'], targets: Float[Array, 'b k']) -> Float[Array, 'b k']:
    """The loss of each label."""
    raise NotImplementedError(f'{type(self).__name__} has no method loss(self, outputs, targets)')

  def predict(self, outputs: Float[Array, 'b n']) -> Float[Array, 'b n']:
    """Outputs (already in the labels' own units) as predictions."""
    return outputs

  def move(
    self, labels: Float[Array | np.ndarray, '*b'], mask: Bool[Array | np.ndarray, '*b'], geometry: Geometry
  ) -> tuple[Float[Array | np.ndarray, '*b'], Bool[Array | np.ndarray, '*b']]:
    """Labels and mask after the image was cropped and mirrored."""
    del geometry
    return labels, mask

  def check(self, labels: np.ndarray) -> None:
    """Raises ValueError for labels `[k]` that no source may state; NaN says that a label is missing."""
    if labels.shape != self.label_shape:
      has = f'{labels.size} labels' if labels.ndim == 1 else f'an array of shape {labels.shape}'
      raise ValueError(f'{has}, not {len(self.labels)} labels')
    if np.isinf(labels).any():
      raise ValueError('a label is infinite')

  def at_size(self, height: int, width: int) -> 'Task':
    """The same task in a prepared set whose images have that size in pixels."""
    del height, width
    return self

  def from_source(self, labels: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Labels `[k]` as a source states them, in the units of a prepared set; NaN says that a label is missing."""
    del width, height
    return labels

  def in_box(self, labels: np.ndarray, box: Box, *, width: int, height: int) -> np.ndarray:
    """Labels that a source states of an image of that size, stated of a part of it; the part may reach past its edges.

    Raises:
      ValueError: for labels that are not of such an image.
    """
    del box, width, height
    return labels

  def on_picture(self, predictions: np.ndarray, view: np.ndarray) -> np.ndarray:
    """One example's predictions, seen in the picture that the network's input was made of.

    `view` `[2, 3]` takes x, y and 1, fractions of the input's width and height, to fractions of the picture's.
    """
    del view
    return predictions

  def stats(self, labels: np.ndarray, *, mask: np.ndarray, standardize: bool) -> LabelStats:
    """Statistics of the train split's labels `[n, k]`, over those under a True mask.

    Raises:
      DataError: for a label that no example has.
    """
    for name, count in zip(self.labels, mask.sum(0), strict=True):
      if not count:
        raise DataError(f'no example of the train split has the label {name!r} of task {self.name!r}')
    mean = np.mean(labels, axis=0, where=mask, dtype=np.float64)
    std = np.std(labels, axis=0, where=mask, dtype=np.float64)
    baseline = self.constant_prediction(labels, mask=mask)
    if not (self.standardized and standardize):
      mean, std = np.zeros_like(mean), np.ones_like(std)
    std = np.where(std > 0, std, 1.0)
    return LabelStats(*(np.asarray(value, np.float32) for value in (mean, std, baseline)))

  def empty_stats(self) -> LabelStats:
    """Statistics of the right shapes, for a checkpoint to be restored into."""
    columns = np.zeros(len(self.labels), np.float32)
    return LabelStats(columns, columns, np.zeros(self.prediction_shape, np.float32))

  def constant_prediction(self, labels: np.ndarray, *, mask: np.ndarray) -> np.ndarray:
    """The prediction `[n]` to make without looking at the image: the mean label."""
    return np.asarray(np.mean(labels, axis=0, where=mask, dtype=np.float64))

  def metrics(
    self,
    predictions: np.ndarray,
    labels: np.ndarray,
    *,
    mask: np.ndarray,
    source_size: np.ndarray,
    draws: Draws | None = None,
  ) -> dict[str, Any]:
    """Metrics of a whole split, ready for JSON, or `[B]` of each with `draws`.

    `source_size` holds width and height of the source images in pixels, `[n, 2]`.
    """
    del source_size
    return self.score(predictions, labels, mask=mask, names=self.output_names, draws=draws)

  def best_thresholds(
    self, predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, by: str
  ) -> dict[str, float | None]:
    """The best threshold of each label by a metric, None where none is better than another; of most tasks nothing."""
    del predictions, labels, mask, by
    return {}

  def with_thresholds(self, thresholds: Mapping[str, float]) -> 'Task':
    """The same task, whose yes-or-no labels are decided by other thresholds, if it has such labels."""
    del thresholds
    return self

  def decisions(self, predictions: np.ndarray) -> dict[str, bool]:
    """Yes or no for each label of one example's predictions `[n]`, where thresholds were given; else nothing."""
    del predictions
    return {}

  def errors(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Distance of each prediction `[n, outputs]` from its label, `[n, k]`, in the label's unit."""
    return np.abs(predictions - labels)

  def describe(self, predictions: np.ndarray, *, width: int, height: int) -> dict[str, Any]:
    """One example's predictions `[n]` by name; coordinates in pixels of an image of that size."""
    del width, height
    return {name: float(value) for name, value in zip(self.labels, predictions, strict=True)}

  def captions(self, described: dict[str, Any]) -> list[str]:
    """Lines of text for a picture, from what `describe` gave."""
    return [f'{name}: {value:.1f}' for name, value in described.items()]

  def overlay(self, predictions: np.ndarray) -> np.ndarray | None:
    """A picture to lay over the image, RGBA uint8 `[h, w, 4]`, from one example's predictions or
    labels; None: nothing."""
    del predictions
    return None

  def marks(self, values: np.ndarray) -> np.ndarray:
    """Points to mark in a picture, `[p, 2]` of its width and height, from one example's predictions or labels."""
    del values
    return np.zeros((0, 2))

  def subset(self, labels: Sequence[str], *, field: str, name: str | None = None) -> 'Task':
    """The same kind of task with only some of the labels; `field` of the config is to blame for a wrong one."""
    for i, label in enumerate(labels):
      choose(label, self.labels, field=field)
      if label in labels[:i]:
        raise ConfigError(f'{field}: {label!r} is named twice')
    try:
      return dataclasses.replace(self, labels=tuple(labels), name=name or self.name)
    except ValueError as error:
      raise ConfigError(f'{field}: {error}') from error

  def numbers_of(self, other: 'Task') -> list[int]:
    """This task's number of each class of the same task in another set; empty where labels are no classes.

    Raises:
      ValueError: where the other's labels mean something else.
    """
    if other.kind != self.kind:
      raise ValueError(f'is {other.kind}, not {self.kind}')
    own, theirs = (getattr(task, 'classes', ()) for task in (self, other))
    if sorted(own) != sorted(theirs):
      raise ValueError(f'has the classes {", ".join(theirs)}, not {", ".join(own)}')
    if getattr(self, 'edges', ()) != getattr(other, 'edges', ()):
      raise ValueError('has bins with other edges')
    return [own.index(name) for name in theirs]

  def with_coordinate_loss(self, name: str) -> 'Task':
    """The same task, learned by one of `losses.COORDINATE_LOSSES` if it is one of coordinates."""
    del name
    return self

  def to_json(self) -> dict[str, Any]:
    return {'kind': self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class ChoiceTask(Task):
  """One label, the number of a class; predictions are probabilities of the classes."""

  classes: tuple[str, ...] = ()

  discrete: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    require_classes(self)

  @property
  def prediction_shape(self):
    return (len(self.classes),)

  @property
  def output_names(self):
    return self.classes

  def check(self, labels):
    super().check(labels)
    for name, label in zip(self.labels, labels, strict=True):
      if not (np.isnan(label) or label in range(len(self.classes))):
        raise ValueError(f'{name} is {label:g}, not the number of a class, from 0 to {len(self.classes) - 1}')

  def constant_prediction(self, labels, *, mask):
    """The share of each class."""
    counts = np.bincount(labels[mask].astype(np.int64), minlength=len(self.classes))
    return counts / counts.sum()

  def describe(self, predictions, *, width, height):
    del width, height
    return {name: float(p) for name, p in zip(self.classes, predictions, strict=True)}

  def captions(self, described):
    """The class of the greatest probability, whatever that is."""
    best = max(described, key=lambda name: described[name])
    return [f'{best.replace("_", " ")}  {described[best]:.2f}']


def require_names(names: Any, what: str, *, least: int = 1, most: float = math.inf) -> None:
  """Raises ValueError, which says what they are, for anything but a tuple of so many different names."""
  if not (isinstance(names, tuple) and all(isinstance(name, str) and name.isprintable() and name for name in names)):
    raise ValueError(f'{what} must be a tuple of names, not {shown(names)}')
  if len(set(names)) < len(names) or not least <= len(names) <= most:
    number = f'at least {least}' if most == math.inf else f'{least}' if most == least else f'{least} to {most:g}'
    raise ValueError(f'{what} must be different names, {number}, not {shown(names)}')


def require_classes(task: Any, *, most: float = math.inf) -> None:
  """Raises ValueError where a task of one choice has not one label, or its classes or mirrored ones are wrong."""
  require_names(task.labels, f'the labels of task {task.name!r}', most=1)
  require_names(task.classes, f'the classes of task {task.name!r}', least=2, most=most)
  mirrored, num = getattr(task, 'mirrored', ()), len(task.classes)
  swaps = isinstance(mirrored, tuple) and len(mirrored) in (0, num)
  if not (swaps and all(type(m) is int and 0 <= m < num and mirrored[m] == i for i, m in enumerate(mirrored))):
    raise ValueError(
      f'mirrored of task {task.name!r} must give for each class, 0 to {num - 1}, the one that it becomes, which '
      f'becomes it, not {shown(mirrored)}'
    )
