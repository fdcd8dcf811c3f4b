"""Test images with their labels and what runs or arms predict for them. They may show real people."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mtl_jax.data.input.pipeline import Split
from mtl_jax.evaluation.predict import lay_over
from mtl_jax.reports.charts import Side
from mtl_jax.reports.page import Block, Heading, Picture, Pictures, Text
from mtl_jax.tasks import Task

MAX_IMAGES = 12  # Of each task.
LONGER_SIDE = 320  # Of a picture, in pixels.
# On photographs a colour needs no theme: bright ones, told apart with any kind of colour vision.
COLOURS = ('#56b4e9', '#ff9a3d', '#2ad4a0', '#f0a6d0', '#f0e442', '#ffffff')

# For each side the predictions `[n, ...]` of a test split's images, by each of its seeds.
Predictions = Mapping[Side, Sequence[np.ndarray]]


def can_draw(task: Task, test: Split) -> bool:
  """True for a task whose labels are places in the image."""
  label = next(iter(test.labels[task.name]), None)
  return label is not None and bool(len(task.marks(label)) or task.overlay(np.zeros_like(label)) is not None)


def of_task(task: Task, test: Split, predictions: Predictions, *, worst: bool) -> list[Block]:
  """Test images at even distances through the split, or those with the greatest errors of the first side.

  Labels that stand each for itself are judged by the worst of them, others by their mean.
  """
  labels, mask = test.labels[task.name], test.mask[task.name]
  errors = {side: _errors(task, values, labels, mask) for side, values in predictions.items()}
  labelled = np.flatnonzero(mask.reshape(len(mask), -1).any(-1))
  if worst:
    judged = np.nanmax(next(iter(errors.values()))[labelled], axis=-1)
    rows = labelled[np.argsort(-judged, kind='stable')[:MAX_IMAGES]]
  else:
    rows = labelled[np.linspace(0, len(labelled) - 1, min(MAX_IMAGES, len(labelled))).astype(int)]
  drawn = []
  for row in rows:
    caption = _caption(task, {side: values[row] for side, values in errors.items()}, labels[row])
    truth, own = (labels[row], mask[row]), {side: values[0][row] for side, values in predictions.items()}
    picture = _draw(test.read(np.array([row]))['image'][0], task, *truth, predictions=own)
    drawn.append(Picture(_uri(picture), f'Test image {row}. {caption}', caption))
  said = _legend(task, test, list(predictions))
  if not task.splittable and labels[0].size > 1:
    said += ' Off by: the mean error over the labels of an image.'
  return [Heading(task.name, 3), Text(said, 'quiet'), Pictures(drawn)]


def _errors(task: Task, predictions: Sequence[np.ndarray], labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Errors `[n, k]`, means over seeds, NaN without a label; of labels that belong together their mean, `[n, 1]`."""
  errors = np.mean([task.errors(one, labels) for one in predictions], axis=0).reshape(len(mask), -1)
  mask = mask.reshape(len(mask), -1)
  if task.splittable:
    return np.where(mask, errors, np.nan)
  with np.errstate(invalid='ignore'):
    return np.where(mask, errors, 0).sum(-1, keepdims=True) / mask.sum(-1, keepdims=True)


def _caption(task: Task, errors: Mapping[Side, np.ndarray], label: np.ndarray) -> str:
  i = int(np.nanargmax(next(iter(errors.values()))))
  said = f'{task.labels[i].replace("_", " ")} is {label[i]:g}: ' if task.splittable or label.size == 1 else ''
  return f'{said}off by ' + ', '.join(f'{values[i]:.2g} ({side.name})' for side, values in errors.items())


def _legend(task: Task, test: Split, sides: Sequence[Side]) -> str:
  if not can_draw(task, test):
    return 'Errors are means over seeds.'
  if len(task.marks(test.labels[task.name][0])):
    marks = ', '.join(f'{"x+"[i % 2]} where {side.name} puts it' for i, side in enumerate(sides))
    return f'A ring where a landmark is, {marks}.'
  return (
    f'From the left: the label, then what {", ".join(side.name for side in sides)} predict{"s" * (len(sides) == 1)}.'
  )


def _draw(
  image: np.ndarray, task: Task, label: np.ndarray, mask: np.ndarray, *, predictions: Mapping[Side, np.ndarray]
) -> Image.Image:
  """A test image uint8 `[h, w, 3]`: maps beside each other, or points in it, rings for the label, crosses for sides."""
  scale = LONGER_SIDE / max(image.shape[:2])
  size = round(image.shape[1] * scale), round(image.shape[0] * scale)
  picture = Image.fromarray(np.asarray(image)).resize(size, Image.Resampling.BICUBIC)
  if (overlay := task.overlay(np.where(mask, label, 0))) is not None:
    overlays = [overlay, *map(task.overlay, predictions.values())]
    tiles = [np.asarray(lay_over(picture, one)) for one in overlays if one is not None]
    return Image.fromarray(np.concatenate(tiles, axis=1))
  draw, extent = ImageDraw.Draw(picture), np.array(picture.size)
  for x, y in _inside(task.marks(np.where(mask, label, np.nan))) * extent:
    for radius, colour, thickness in ((10, 'black', 4), (9, 'white', 2)):
      draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=thickness)
  for i, (side, values) in enumerate(predictions.items()):
    for x, y in _inside(task.marks(values)) * extent:
      for colour, thickness in (('black', 4), (COLOURS[side.number % len(COLOURS)], 2)):
        for dx, dy in ((0, 6), (6, 0)) if i % 2 else ((5, 5), (5, -5)):
          draw.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=thickness)
  return picture


def _inside(points: np.ndarray) -> np.ndarray:
  """Those of the points `[p, 2]` that there are."""
  return points[np.isfinite(points).all(-1)]


def _uri(picture: Image.Image) -> str:
  stream = io.BytesIO()
  picture.save(stream, 'JPEG', quality=88)
  return 'data:image/jpeg;base64,' + base64.b64encode(stream.getvalue()).decode()
