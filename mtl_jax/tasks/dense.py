"""Tasks of a class for every pixel, such as the parts of a face."""

import colorsys
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from mtl_jax.errors import DataError
from mtl_jax.metrics.dense import METRICS, dense
from mtl_jax.metrics.metric import Metric
from mtl_jax.tasks.task import LabelStats, Task, require_classes

OPACITY = 120  # Of a mask laid over a picture, of 255.
_MISSING = 255


@dataclasses.dataclass(frozen=True)
class DenseTask(Task):
  """A map of class numbers, uint8 `[h, w]`; a source states it in pixels of its image, NaN where there is no label.

  Class 0 is what lies around the others: it is not drawn. `mirrored[c]` is what class c becomes when the image is
  mirrored. `size` is the height and width of the map, that of a prepared set's images. A prediction is a map, too.
  """

  classes: tuple[str, ...] = ()
  mirrored: tuple[int, ...] = ()
  size: tuple[int, ...] = (0, 0)

  kind: ClassVar[str] = 'dense'
  measures: ClassVar[tuple[Metric, ...]] = METRICS
  score = staticmethod(dense)
  baseline_name: ClassVar[str] = 'majority class of each pixel'
  unit: ClassVar[str] = 'number of the class of each pixel, in the order of the names'
  dense: ClassVar[bool] = True
  label_dtype: ClassVar[type[np.generic]] = np.uint8

  def __post_init__(self) -> None:
    super().__post_init__()
    require_classes(self, most=_MISSING)
    if not (isinstance(self.size, tuple) and len(self.size) == 2 and all(type(s) is int and s >= 0 for s in self.size)):
      raise ValueError(f'the size of task {self.name!r} must be height and width, not {self.size!r:.60}')

  @property
  def label_shape(self):
    return self.size

  @property
  def prediction_shape(self):
    return self.size

  @property
  def num_outputs(self) -> int:
    return len(self.classes)

  @property
  def output_names(self):
    return self.classes

  def at_size(self, height, width):
    return dataclasses.replace(self, size=(height, width))

  def check(self, labels):
    if labels.ndim != 2:
      raise ValueError(f'a map has height and width, not shape {labels.shape}')
    if not (np.isnan(labels) | np.isin(labels, np.arange(len(self.classes)))).all():
      raise ValueError(f'a pixel is of no class; they are 0 to {len(self.classes) - 1}')

  def from_source(self, labels, *, width, height):
    """The map at the size of the prepared set, by nearest neighbours."""
    _require_shape(labels, (height, width))
    stated = Image.fromarray(np.where(np.isnan(labels), _MISSING, labels).astype(np.uint8))
    rows, columns = self.size
    resized = np.asarray(stated.resize((columns, rows), Image.Resampling.NEAREST), np.float32)
    return np.where(resized == _MISSING, np.nan, resized)

  def in_box(self, labels, box, *, width, height):
    _require_shape(labels, (height, width))
    left, top, right, bottom = box
    found = np.full((bottom - top, right - left), np.nan, np.float32)
    inside = labels[max(top, 0) : bottom, max(left, 0) : right]
    row, column = max(-top, 0), max(-left, 0)
    found[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return found

  def on_picture(self, predictions, view):
    """The map over the whole picture, at its own size: what the network did not see is of class 0."""
    height, width = predictions.shape
    y, x = np.mgrid[:height, :width] + 0.5
    there = np.stack([x / width, y / height], -1) - view[:, 2]
    x, y = np.moveaxis(np.floor(there @ np.linalg.inv(view[:, :2]).T * (width, height)).astype(int), -1, 0)
    seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(seen, predictions[y.clip(0, height - 1), x.clip(0, width - 1)], 0)

  def stats(self, labels, *, mask, standardize):
    del standardize
    if not mask.any():
      raise DataError(f'no example of the train split has a label of task {self.name!r}')
    counts = np.stack([((labels == number) & mask).sum(0) for number in range(len(self.classes))])
    return LabelStats(np.zeros(1, np.float32), np.ones(1, np.float32), counts.argmax(0).astype(np.float32))

  def loss(self, outputs, targets):
    """Cross-entropy of each pixel in nats, of logits `[b, h', w', c]` that are enlarged to the labels' size."""
    return optax.softmax_cross_entropy_with_integer_labels(self._enlarged(outputs), targets.astype(jnp.int32))

  def predict(self, outputs):
    return self._enlarged(outputs).argmax(-1).astype(jnp.uint8)

  def _enlarged(self, outputs: jax.Array) -> jax.Array:
    shape = (*self.size, outputs.shape[-1])
    return jax.vmap(lambda one: jax.image.resize(one, shape, 'bilinear'))(outputs)

  def move(self, labels, mask, geometry):
    """Each pixel takes the label that lies nearest to where it comes from; from outside it has none."""
    height, width = self.size
    rows, columns = jnp.mgrid[:height, :width]
    places = jnp.stack([(columns + 0.5) / width, (rows + 0.5) / height], -1).reshape(1, -1, 2)
    places = jnp.where(geometry.flip[:, None, None], jnp.array([1.0, 0.0]) + jnp.array([-1.0, 1.0]) * places, places)
    if geometry.turn is not None:
      places = 0.5 + jnp.einsum('bij,bpj->bpi', jnp.linalg.inv(geometry.turn), places - 0.5)
    places = places * geometry.scale[:, None] + geometry.offset[:, None]
    x, y = jnp.moveaxis(jnp.floor(places * jnp.array([width, height])).astype(jnp.int32), -1, 0)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    sources = jnp.where(inside, y * width + x, 0)
    take = lambda values: jnp.take_along_axis(values.reshape(len(values), -1), sources, axis=1)  # noqa: E731
    moved = take(labels)
    if self.mirrored:
      moved = jnp.where(geometry.flip[:, None], jnp.array(self.mirrored, moved.dtype)[moved.astype(jnp.int32)], moved)
    return moved.reshape(labels.shape), (take(mask) & inside).reshape(mask.shape)

  def errors(self, predictions, labels):
    """1 for each wrong pixel."""
    return (predictions != labels).astype(np.float64)

  def describe(self, predictions, *, width, height):
    """The share of the picture that each class takes."""
    del width, height
    shares = np.bincount(predictions.astype(np.int64).ravel(), minlength=len(self.classes)) / predictions.size
    return {name: float(share) for name, share in zip(self.classes, shares, strict=True)}

  def captions(self, described):
    return [f'{name}  {share:.0%}' for name, share in list(described.items())[1:] if share >= 0.005]

  def overlay(self, predictions):
    hues = np.arange(len(self.classes) - 1) / max(len(self.classes) - 1, 1)
    colours = [(0, 0, 0, 0), *((*(255 * np.array(colorsys.hsv_to_rgb(hue, 0.9, 1.0))), OPACITY) for hue in hues)]
    return np.array(colours).astype(np.uint8)[predictions.astype(np.int64)]


def _require_shape(labels: np.ndarray, shape: tuple[int, int]) -> None:
  if labels.shape != shape:
    raise ValueError(f'the map has shape {labels.shape}, the image {shape}')
