"""Tasks of points in the image."""

import dataclasses
import math
import re
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from mtl_jax.kinds import shown
from mtl_jax.metrics.landmarks import DIAGONAL, METRICS, NORMALIZED, Over, eyes, landmarks
from mtl_jax.metrics.metric import Metric
from mtl_jax.tasks import losses
from mtl_jax.tasks.task import Task

SIDES = {'left': 'right', 'right': 'left'}


@dataclasses.dataclass(frozen=True)
class LandmarkTask(Task):
  """Points as x and y in turn, `<point>_x`, `<point>_y`, in [0, 1] of the stored image's width and height.

  Attributes:
    nme_over: what NME divides an error by: two points, whose true distance it is; `diagonal`, the source image's; or a
      number of its pixels. Empty: the distance between the eyes, where points are named so; else the task has no NME,
      and its main metric is MAE.
  """

  coordinate_loss: str = 'squared'
  nme_over: Over = ''

  kind: ClassVar[str] = 'landmarks'
  measures: ClassVar[tuple[Metric, ...]] = METRICS
  baseline_name: ClassVar[str] = 'mean face'
  unit: ClassVar[str] = "fraction of the image's width (x) or height (y), from its upper left corner"
  standardized: ClassVar[bool] = True
  coordinates: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    points = self.points
    if self.labels != tuple(f'{point}_{axis}' for point in points for axis in 'xy'):
      raise ValueError(f'the labels of task {self.name!r} must be POINT_x and POINT_y in turn, not {self.labels!r:.60}')
    for point in points:
      for side, other in SIDES.items():
        if point.startswith(side) and other + point.removeprefix(side) not in points:
          raise ValueError(f'{point[:40]!r} needs its {other} partner in task {self.name!r}: images are mirrored')
    over = self.nme_over
    two_points = isinstance(over, tuple) and len(over) == 2 and over[0] != over[1] and all(p in points for p in over)
    pixels = type(over) in (int, float) and 0 < over < math.inf  # pyright: ignore
    if not (two_points or pixels or (isinstance(over, str) and over in ('', DIAGONAL))):
      raise ValueError(
        f'nme_over of task {self.name!r} must be two of its points, {DIAGONAL!r} or a number of pixels above 0, '
        f'not {shown(over)}'
      )

  @property
  def points(self) -> tuple[str, ...]:
    """Names of the points, half as many as labels."""
    return tuple(label.removesuffix('_x') for label in self.labels[::2])

  @property
  def mirrored(self) -> tuple[int, ...]:
    """The column that each label column comes from when the image is mirrored: left and right swap."""
    swapped = [re.sub('^(left|right)', lambda side: SIDES[side[0]], label) for label in self.labels]
    return tuple(map(self.labels.index, swapped))

  @property
  def undefined(self):
    return frozenset() if self.nme_over or eyes(self.points) else NORMALIZED

  def loss(self, outputs, targets):
    return losses.COORDINATE_LOSSES[self.coordinate_loss](outputs, targets)

  def with_coordinate_loss(self, name):
    return dataclasses.replace(self, coordinate_loss=name)

  def to_json(self):
    """JSON without the loss: how the task is learned is the config's to say, not the data's."""
    left_out = {'coordinate_loss', *(() if self.nme_over else ('nme_over',))}  # As sets had it before there was one.
    return {key: value for key, value in super().to_json().items() if key not in left_out}

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

  def in_box(self, labels, box, *, width, height):
    del width, height
    return labels - np.tile(np.array(box[:2], np.float32), len(self.points))

  def on_picture(self, predictions, view):
    return (predictions.reshape(-1, 2) @ view[:, :2].T + view[:, 2]).reshape(-1)

  def metrics(self, predictions, labels, *, mask, source_size, draws=None):
    return landmarks(
      predictions,
      labels,
      mask=mask,
      points=self.points,
      source_size=source_size,
      over=self.nme_over,
      draws=draws,
    )

  def describe(self, predictions, *, width, height):
    points = predictions.reshape(-1, 2) * np.array([width, height])
    return {name: [float(x), float(y)] for name, (x, y) in zip(self.points, points, strict=True)}

  def captions(self, described):
    del described
    return []

  def marks(self, values):
    return np.asarray(values, np.float64).reshape(-1, 2)
