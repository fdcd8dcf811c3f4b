"""Normalising and augmenting a batch on the device; pure functions of a key, and labels move with the image."""

import itertools
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key, UInt8

from mtl_jax.tasks import Geometry, Task

# Mean and spread of ImageNet's pixels, which pretrained networks expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Labels = dict[str, Array]


class Augmentation(NamedTuple):
  """Ranges of the random augmentation of training images; with all at zero, none.

  Attributes:
    flip: mirror half of the images.
    shift: largest shift, as a fraction of the side.
    zoom: largest change of scale; 0.1 draws from 1/1.1 to 1.1, evenly in the logarithm.
    rotate: largest turn about the centre, in degrees.
    brightness: largest change, in units of `STD`.
    contrast: largest relative change.
  """

  flip: bool = False
  shift: float = 0.0
  zoom: float = 0.0
  rotate: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0


# Words in names of labels and classes whose meaning a change alters, unless the task moves with it.
_ALTERED = {
  'flip': {'left', 'right', 'yaw', 'roll', 'angle', 'steering', 'clockwise'},
  'zoom': {'size', 'scale', 'distance', 'depth', 'area'},
  'rotate': {'roll', 'angle', 'orientation'},
}


def augmentation_warnings(tasks: Sequence[Task], settings: Augmentation) -> list[str]:
  """Warnings about labels that augmentation may make wrong, judged by the kinds and names of tasks."""
  lines = []
  for task, field in itertools.product(tasks, _ALTERED):
    if getattr(settings, field) and (names := _altered(task, field)):
      shown = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
      said = f'config.data.augment.{field} changes images, and labels of {task.name!r} do not follow: {shown}'
      pairs = 'say what mirrors what (points named left... and right..., mirrored=...), or set it to false'
      lines.append(f'warning: {said}; {pairs if field == "flip" else "set it to 0"}')
  return lines


def _altered(task: Task, field: str) -> Sequence[str]:
  """The names of a task's points, labels and classes that should change with the image, and do not."""

  def said(names: Sequence[str]) -> list[str]:
    return [name for name in names if _ALTERED[field] & set(re.findall('[a-z]+', name.lower()))]

  if points := getattr(task, 'points', ()):
    paired = [point for point in points if point.startswith(('left', 'right'))]
    alone = [point for point in said(points) if point not in paired] or ([] if paired else points)
    return alone if field == 'flip' and len(points) > 1 else ()
  if field == 'flip':
    return () if getattr(task, 'mirrored', ()) else said((*task.labels, *getattr(task, 'classes', ())))
  return said(task.labels) if task.standardized else ()  # Of numbers.


def normalize(images: UInt8[Array, 'b h w 3']) -> Float[Array, 'b h w 3']:
  """Pixels as float32 with ImageNet's mean at 0 and its spread at 1."""
  return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


def network_input(images: Array) -> Array:
  """uint8 images `[b, h, w, 3]`, normalised; or outputs of frozen stages, floats that are taken as they are."""
  return normalize(images) if images.dtype == jnp.uint8 else images


def augment(
  images: Float[Array, 'b h w 3'],
  labels: Labels,
  mask: Labels,
  *,
  key: Key[Array, ''],
  tasks: Sequence[Task],
  settings: Augmentation,
) -> tuple[Float[Array, 'b h w 3'], Labels, Labels]:
  """Normalised images, labels and masks after a random transform of each row.

  Row i depends on the key and i alone, so the number of devices does not matter.
  """
  geometry, colour = _draw(key, images.shape, settings)
  if geometry.turn is not None:
    images = jax.vmap(_warp_turned)(images, geometry.offset, geometry.scale, geometry.turn)
  elif settings.shift or settings.zoom:
    images = jax.vmap(_warp)(images, geometry.offset, geometry.scale)
  if settings.flip:
    images = jnp.where(geometry.flip[:, None, None, None], images[:, :, ::-1], images)
  if settings.brightness or settings.contrast:
    gain, bias = (c[:, None, None, None] for c in colour)
    images = images * gain + bias
  moved: dict[str, tuple[Any, Any]] = {
    task.name: task.move(labels[task.name], mask[task.name], geometry) for task in tasks
  }
  return images, {name: pair[0] for name, pair in moved.items()}, {name: pair[1] for name, pair in moved.items()}


def _draw(key: Key[Array, ''], shape: Sequence[int], settings: Augmentation) -> tuple[Geometry, tuple[Array, Array]]:
  """The geometry of each row, and its gain and bias of colour; `shape` is the images'."""
  rows = shape[0]
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
  uniform = jax.vmap(lambda k: jax.random.uniform(k, (6,), minval=-1.0, maxval=1.0))(keys)
  shift = settings.shift * uniform[:, 0:2]
  factor = (1 + settings.zoom) ** uniform[:, 2:3]
  # x' = factor * (x - 1/2) + 1/2 + shift, written as (x - offset) / scale.
  scale = jnp.broadcast_to(1 / factor, shift.shape)
  geometry = Geometry(
    flip=(uniform[:, 3] > 0) & settings.flip,
    offset=0.5 - (0.5 + shift) * scale,
    scale=scale,
    turn=_turns(keys, settings.rotate, aspect=shape[1] / shape[2]) if settings.rotate else None,
  )
  return geometry, (1 + settings.contrast * uniform[:, 4], settings.brightness * uniform[:, 5])


def _turns(keys: Key[Array, ' b'], largest: float, *, aspect: float) -> Float[Array, 'b 2 2']:
  """Turns by up to so many degrees, of x and y in units of width and height."""
  draw = lambda key: jax.random.uniform(jax.random.fold_in(key, 1), minval=-1.0, maxval=1.0)  # noqa: E731
  angle = jnp.deg2rad(largest) * jax.vmap(draw)(keys)
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([jnp.stack([cosine, -sine * aspect], -1), jnp.stack([sine / aspect, cosine], -1)], -2)


def _warp(image: Float[Array, 'h w 3'], offset: Float[Array, '2'], scale: Float[Array, '2']) -> Float[Array, 'h w 3']:
  """Bilinear resampling; what comes from outside is ImageNet's mean."""
  size = jnp.array(image.shape[:2], jnp.float32)
  rows_columns = jnp.array([1, 0])  # Geometry has x first, images have rows first.
  factor = 1 / scale[rows_columns]
  translation = -offset[rows_columns] * factor * size
  return jax.image.scale_and_translate(image, image.shape, (0, 1), factor, translation, 'linear', antialias=False)


def _warp_turned(
  image: Float[Array, 'h w 3'], offset: Float[Array, '2'], scale: Float[Array, '2'], turn: Float[Array, '2 2']
) -> Float[Array, 'h w 3']:
  """The same with a turn, which takes a gather, where `_warp` is two products."""
  size = jnp.array(image.shape[1::-1], jnp.float32)  # Width and height, as Geometry has x first.
  rows, columns = jnp.mgrid[: image.shape[0], : image.shape[1]]
  there = (jnp.stack([columns, rows], -1) + 0.5) / size  # Pixel i covers [i, i + 1].
  (a, b), (c, d) = turn  # Of determinant 1.
  back = 0.5 + (there - 0.5) @ jnp.array([[d, -c], [-b, a]])
  x, y = jnp.moveaxis((back * scale + offset) * size - 0.5, -1, 0)
  sample = partial(map_coordinates, coordinates=[y, x], order=1, mode='constant', cval=0.0)
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)
