"""A task is a value: its outputs, its loss, its metrics, and how its labels move when the image does.

Everything that differs between kinds of task is a method here. To add a task, a data set's reader makes a
value of one of these classes; to add a kind, write a class and list it in `KINDS`. Its metrics go to
`evaluation/metrics.py`, their names to `report/scoreboard.py`, and how they are bootstrapped to `study/bootstrap.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from mtl_jax.config import choose
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluation import metrics
from mtl_jax.objectives import losses


@dataclasses.dataclass(frozen=True)
class Geometry:
  """What was done to each image of a batch: `x' = (x - offset) / scale`, then turned, then mirrored where `flip`.

  Coordinates are fractions of the image's width and height. `turn` multiplies what they are off the centre; None: not.
  """

  flip: Bool[Array, ' b']
  offset: Float[Array, 'b 2']
  scale: Float[Array, 'b 2']
  turn: Float[Array, 'b 2 2'] | None = None


class LabelStats(struct.PyTreeNode):
  """What the train split says of a task's labels, kept with the model.

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

  The name's part before a `/` is the group, the array of a prepared set that the labels are read from.
  """

  name: str
  labels: tuple[str, ...]

  kind: ClassVar[str]
  main_metric: ClassVar[str]
  shown: ClassVar[tuple[str, ...]]  # Its metrics in reports, the main one first.
  baseline_name: ClassVar[str]  # What the constant prediction of `LabelStats` amounts to.
  standardized: ClassVar[bool] = False  # Learned in units of the train split's spread.
  splittable: ClassVar[bool] = False  # Each label makes sense as a task of its own.
  discrete: ClassVar[bool] = False  # Labels are numbers of classes, so that batches can be balanced by them.
  coordinates: ClassVar[bool] = False  # Outputs are x and y of points in turn, which spatial heads can give.
  unit: ClassVar[str] = ''  # Of the predictions, for those who get them as an array.

  @property
  def group(self) -> str:
    return self.name.split('/')[0]

  @property
  def num_outputs(self) -> int:
    return len(self.labels)

  @property
  def output_names(self) -> tuple[str, ...]:
    """What each output predicts."""
    return self.labels

  def loss(self, outputs: Float[Array, 'b n'], targets: Float[Array, 'b k']) -> Float[Array, 'b k']:
    """The loss of each label."""
    raise NotImplementedError

  def predict(self, outputs: Float[Array, 'b n']) -> Float[Array, 'b n']:
    """Outputs (already in the labels' own units) as predictions."""
    return outputs

  def move(
    self, labels: Float[Array, 'b k'], mask: Bool[Array, 'b k'], geometry: Geometry
  ) -> tuple[Float[Array, 'b k'], Bool[Array, 'b k']]:
    """Labels and mask after the image was cropped and mirrored."""
    del geometry
    return labels, mask

  def check(self, labels: np.ndarray) -> None:
    """Raises ValueError for labels `[k]` that no source may state; NaN says that a label is missing."""
    if np.isinf(labels).any():
      raise ValueError('a label is infinite')

  def from_source(self, labels: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Labels `[k]` as a source states them, in the units of a prepared set; NaN says that a label is missing."""
    del width, height
    return labels

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
    return LabelStats(columns, columns, np.zeros(self.num_outputs, np.float32))

  def constant_prediction(self, labels: np.ndarray, *, mask: np.ndarray) -> np.ndarray:
    """The prediction `[n]` to make without looking at the image: the mean label."""
    return np.asarray(np.mean(labels, axis=0, where=mask, dtype=np.float64))

  def metrics(
    self, predictions: np.ndarray, labels: np.ndarray, *, mask: np.ndarray, source_size: np.ndarray
  ) -> dict[str, Any]:
    """Metrics of a whole split; `source_size` holds width and height of the source images in pixels, `[n, 2]`."""
    raise NotImplementedError

  def errors(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far each prediction `[n, outputs]` is off its label, `[n, k]`, in the label's unit."""
    return np.abs(predictions - labels)

  def describe(self, predictions: np.ndarray, *, width: int, height: int) -> dict[str, Any]:
    """One example's predictions `[n]` by name; coordinates in pixels of an image of that size."""
    del width, height
    return {name: float(value) for name, value in zip(self.labels, predictions, strict=True)}

  def captions(self, described: dict[str, Any]) -> list[str]:
    """Lines of text for a picture, from what `describe` gave: here what is more likely than not."""
    likely = sorted(((p, name) for name, p in described.items() if p >= 0.5), reverse=True)
    return [f'{name.replace("_", " ")}  {p:.2f}' for p, name in likely]

  def marks(self, described: dict[str, Any]) -> list[tuple[float, float]]:
    """Points to mark in a picture, in its pixels, from what `describe` gave."""
    del described
    return []

  def subset(self, labels: Sequence[str], *, field: str, name: str | None = None) -> 'Task':
    """The same kind of task with only some of the labels; `field` of the config is to blame for a wrong one."""
    for i, label in enumerate(labels):
      choose(label, self.labels, field=field)
      if label in labels[:i]:
        raise ConfigError(f'{field}: {label!r} is named twice')
    return dataclasses.replace(self, labels=tuple(labels), name=name or self.name)

  def with_coordinate_loss(self, name: str) -> 'Task':
    """The same task, learned by one of `losses.COORDINATE_LOSSES` if it is one of coordinates."""
    del name
    return self

  def to_json(self) -> dict[str, Any]:
    return {'kind': self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class BinaryTask(Task):
  """Independent yes-or-no labels, 1 or 0; predictions are probabilities."""

  kind: ClassVar[str] = 'binary'
  main_metric: ClassVar[str] = 'macro_accuracy'
  shown: ClassVar[tuple[str, ...]] = ('macro_accuracy', 'macro_balanced_accuracy', 'macro_f1', 'macro_ap')
  baseline_name: ClassVar[str] = 'majority class'
  unit: ClassVar[str] = 'probability that the label is 1'
  splittable: ClassVar[bool] = True
  discrete: ClassVar[bool] = True

  def check(self, labels):
    for name, label in zip(self.labels, labels, strict=True):
      if not (np.isnan(label) or label in (0, 1)):
        raise ValueError(f'{name} is {label:g}, not 0 or 1')

  def loss(self, outputs, targets):
    return losses.binary_cross_entropy(outputs, targets)

  def predict(self, outputs):
    return jax.nn.sigmoid(outputs)

  def metrics(self, predictions, labels, *, mask, source_size):
    del source_size
    return metrics.binary(predictions, labels, mask=mask, names=self.labels)


@dataclasses.dataclass(frozen=True)
class LandmarkTask(Task):
  """Points as x and y in turn, `<point>_x`, `<point>_y`, in [0, 1] of the stored image's width and height."""

  coordinate_loss: str = 'squared'

  kind: ClassVar[str] = 'landmarks'
  main_metric: ClassVar[str] = 'nme'
  shown: ClassVar[tuple[str, ...]] = ('nme', 'failure_rate_10', 'mae')
  baseline_name: ClassVar[str] = 'mean face'
  unit: ClassVar[str] = "fraction of the image's width (x) or height (y), from its upper left corner"
  standardized: ClassVar[bool] = True
  coordinates: ClassVar[bool] = True

  @property
  def points(self) -> tuple[str, ...]:
    """Names of the points, half as many as labels."""
    return tuple(label.removesuffix('_x') for label in self.labels[::2])

  @property
  def mirrored(self) -> tuple[int, ...]:
    """For each label column, the column it comes from when the image is mirrored: left and right swap."""
    swap = {'left': 'right', 'right': 'left'}
    columns = []
    for label in self.labels:
      side = next((s for s in swap if label.startswith(s)), '')
      partner = swap[side] + label.removeprefix(side) if side else label
      columns.append(self.labels.index(partner))
    return tuple(columns)

  def loss(self, outputs, targets):
    return losses.COORDINATE_LOSSES[self.coordinate_loss](outputs, targets)

  def with_coordinate_loss(self, name):
    return dataclasses.replace(self, coordinate_loss=name)

  def to_json(self):
    """How it is learned is the config's to say, not the data's."""
    return {key: value for key, value in super().to_json().items() if key != 'coordinate_loss'}

  def move(self, labels, mask, geometry):
    points = labels.reshape(labels.shape[0], -1, 2)
    points = (points - geometry.offset[:, None]) / geometry.scale[:, None]
    if geometry.turn is not None:
      points = 0.5 + jnp.einsum('bij,bpj->bpi', geometry.turn, points - 0.5)
    points = jnp.where(geometry.flip[:, None, None], jnp.array([1.0, 0.0]) + jnp.array([-1.0, 1.0]) * points, points)
    labels = points.reshape(labels.shape)
    columns = jnp.array(self.mirrored)
    labels = jnp.where(geometry.flip[:, None], labels[:, columns], labels)
    mask = jnp.where(geometry.flip[:, None], mask[:, columns], mask)
    # Only labels that exist can lie outside: what is under a False mask must not reach its point's other coordinate.
    outside = (((labels < 0) | (labels > 1)) & mask).reshape(labels.shape[0], -1, 2).any(-1)
    return labels, mask & ~jnp.repeat(outside, 2, axis=1)

  def from_source(self, labels, *, width, height):
    """Pixels to fractions; a point outside the image is no label."""
    points = labels.reshape(-1, 2) / np.array([width, height], np.float32)
    outside = ((points < 0) | (points > 1)).any(-1)
    points[outside] = np.nan
    return points.reshape(-1)

  def metrics(self, predictions, labels, *, mask, source_size):
    return metrics.landmarks(predictions, labels, mask=mask, points=self.points, source_size=source_size)

  def describe(self, predictions, *, width, height):
    points = predictions.reshape(-1, 2) * np.array([width, height])
    return {name: [float(x), float(y)] for name, (x, y) in zip(self.points, points, strict=True)}

  def captions(self, described):
    del described
    return []

  def marks(self, described):
    return [(x, y) for x, y in described.values()]


@dataclasses.dataclass(frozen=True)
class RegressionTask(Task):
  """Real numbers in a unit of their own, such as an age in years."""

  kind: ClassVar[str] = 'regression'
  main_metric: ClassVar[str] = 'mae'
  shown: ClassVar[tuple[str, ...]] = ('mae', 'rmse')
  baseline_name: ClassVar[str] = 'mean'
  unit: ClassVar[str] = "the label's own, such as years of an age"
  standardized: ClassVar[bool] = True

  def loss(self, outputs, targets):
    return losses.squared_error(outputs, targets)

  def metrics(self, predictions, labels, *, mask, source_size):
    del source_size
    return metrics.regression(predictions, labels, mask=mask, names=self.labels)

  def captions(self, described):
    return [f'{name}: {value:.1f}' for name, value in described.items()]


@dataclasses.dataclass(frozen=True)
class CategoricalTask(Task):
  """One label, the number of a class; `mirrored[c]` is what class c becomes when the image is mirrored."""

  classes: tuple[str, ...] = ()
  mirrored: tuple[int, ...] = ()

  kind: ClassVar[str] = 'categorical'
  main_metric: ClassVar[str] = 'accuracy'
  shown: ClassVar[tuple[str, ...]] = ('accuracy', 'balanced_accuracy')
  baseline_name: ClassVar[str] = 'majority class'
  unit: ClassVar[str] = 'probability of the class'
  discrete: ClassVar[bool] = True

  @property
  def num_outputs(self) -> int:
    return len(self.classes)

  @property
  def output_names(self):
    return self.classes

  def check(self, labels):
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

  def metrics(self, predictions, labels, *, mask, source_size):
    del source_size
    return metrics.categorical(predictions, labels, mask=mask, names=self.classes)

  def errors(self, predictions, labels):
    """What the true class lacks of probability 1."""
    return 1 - np.take_along_axis(predictions, labels.astype(np.int64), axis=-1)

  def describe(self, predictions, *, width, height):
    del width, height
    return {name: float(p) for name, p in zip(self.classes, predictions, strict=True)}


KINDS: dict[str, type[Task]] = {c.kind: c for c in (BinaryTask, LandmarkTask, RegressionTask, CategoricalTask)}


def from_json(value: dict[str, Any]) -> Task:
  """The task that `Task.to_json` wrote."""
  fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != 'kind'}
  if value.get('kind') not in KINDS:
    raise DataError(f'unknown kind of task {value.get("kind")!r}; this version knows {", ".join(KINDS)}')
  return KINDS[value['kind']](**fields)


def select(
  available: Sequence[Task], names: str | Sequence[str], *, attributes: Sequence[str] = ()
) -> tuple[Task, ...]:
  """The tasks a config names, in that order.

  Args:
    available: the tasks a prepared set has labels for.
    names: task names, as a tuple or separated by commas; `name/*` splits a task into one task per label, and
      `name/label` takes one of them.
    attributes: keeps only these labels of the task `attributes`; empty keeps all.

  Raises:
    ConfigError: for an unknown or repeated task or label.
  """
  by_name = {task.name: task for task in available}
  if attributes and 'attributes' not in by_name:
    raise ConfigError(f'config.data.attributes: this data set has no attributes; it has {", ".join(by_name)}')
  if attributes:
    by_name['attributes'] = by_name['attributes'].subset(attributes, field='config.data.attributes')
  chosen: list[Task] = []
  for name in _split_names(names):
    group, _, label = name.partition('/')
    if group not in by_name:
      raise ConfigError(f'config.tasks: no task {group!r} in this data set; it has {", ".join(by_name)}')
    task = by_name[group]
    if not label:
      chosen.append(task)
    elif not task.splittable:
      raise ConfigError(f'config.tasks: {name!r} cannot be had, since {group} is one task; name {group!r}')
    else:
      wanted = task.labels if label == '*' else (label,)
      chosen.extend(task.subset((one,), field='config.tasks', name=f'{group}/{one}') for one in wanted)
  repeated = [task.name for i, task in enumerate(chosen) if task.name in {t.name for t in chosen[:i]}]
  if repeated or not chosen:
    raise ConfigError(f'config.tasks: {repeated[0]!r} is named twice' if repeated else 'config.tasks: names no task')
  return tuple(chosen)


def _split_names(names: str | Sequence[str]) -> list[str]:
  parts = names.split(',') if isinstance(names, str) else names
  return [part.strip() for part in parts if part.strip()]
