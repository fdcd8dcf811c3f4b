"""A trained network for inference on images, which `mtl_jax.load(workdir)` returns."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, UInt8
from PIL import Image

from mtl_jax.data.input.augment import network_input
from mtl_jax.data.sources.image_file import Box, fitted, read_upright
from mtl_jax.errors import DataError
from mtl_jax.evaluation.align import aligned
from mtl_jax.evaluation.step import predict_step
from mtl_jax.models.backbone import Representation
from mtl_jax.run.trained_model import TrainedModel
from mtl_jax.tasks import Task

BATCH = 32  # Images a call of the network.
ALIGN_ROUNDS = 3  # At an image that is aligned, each framed by the one before it; docs/data.md has what they bring.

Images: TypeAlias = np.ndarray | Sequence[np.ndarray | Path | str]


@dataclasses.dataclass(frozen=True)
class ImagePrediction:
  """One image with its predictions.

  Attributes:
    image: as it was given.
    size: its width and height.
    predictions: those of `Model.apply`, with points and maps where they lie in the whole image.
    aligned: True where its own landmarks have framed it.
  """

  image: Any
  size: tuple[int, int]
  predictions: Mapping[str, np.ndarray]
  aligned: bool


@dataclasses.dataclass
class _Input:
  """An image to predict: as it was given, its size, and the view of `Task.on_picture`."""

  image: Any
  size: tuple[int, int]
  view: np.ndarray
  aligned: bool = False


class Model:
  """A trained network.

  Attributes:
    trained: the network, its weights and what they were trained on.
  """

  def __init__(self, trained: TrainedModel):
    self.trained = trained
    self._apply = jax.jit(self.apply)
    self._encode = jax.jit(self._representation)

  @property
  def step(self) -> int:
    """The step of the checkpoint."""
    return self.trained.step

  @property
  def tasks(self) -> tuple[Task, ...]:
    """The tasks that it predicts, with the names of their labels."""
    return self.trained.tasks

  @property
  def image_size(self) -> tuple[int, int]:
    """Height and width of the network's input in pixels."""
    return self.trained.facts.image_size

  @property
  def fit(self) -> str:
    """The way to fit images of other shapes, as the training set was prepared: squash, crop or pad."""
    return self.trained.facts.fit

  @property
  def aspect(self) -> float:
    """Width over height of what an image shows, in the median of the training set's."""
    height, width = self.image_size
    return self.trained.facts.aspect or width / height

  @property
  def variables(self) -> Mapping[str, Any]:
    """The network's weights, the averaged ones where the run kept them: `params`, `batch_stats` ..."""
    return self.trained.variables

  def apply(self, variables: Mapping[str, Any], images: UInt8[Array, 'b h w 3']) -> dict[str, Array]:
    """Each task's predictions `[b, outputs]` in its labels' own units, for images of the network's size.

    A pure function, to be jitted or differentiated. Attributes and classes are probabilities, landmarks are x and y in
    [0, 1], ages are years.

    Raises:
      DataError: for images of another type or size.
    """
    trained = self.trained
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self.image_size, 3):
      wanted = ', '.join(map(str, ('n', *self.image_size, 3)))
      raise DataError(f'images: this network reads uint8 [{wanted}], not {images.dtype} {list(images.shape)}')
    return predict_step(variables, trained.label_stats, images, model=trained.model, tasks=trained.tasks)[1]

  def predict(self, images: Images, *, align: bool = False) -> list[dict[str, Any]]:
    """Each image's predictions, as `mtl-jax predict` prints them: `{task: {name: value}}`.

    Args:
      images: uint8 `[n, h, w, 3]`, or a list of arrays `[h, w, 3]` of any sizes, or of image files.
      align: turn, scale and move each image so that its landmarks, which are predicted first, come to where the
        training set's mean ones are; an image whose landmarks are those of no face stays as it is.

    Returns:
      For each image a dictionary; landmarks are in pixels of that image.

    Raises:
      DataError: for a file that is no image, an array of another type or shape, or `align` without two landmarks.
    """
    return [self.described(predicted.predictions, predicted.size) for predicted in self.each(images, align=align)]

  def each(
    self, images: Images, *, align: bool = False, refused: Callable[[DataError], None] | None = None
  ) -> Iterator[ImagePrediction]:
    """Yields every image with its predictions.

    `refused` is called for images that cannot be read, and the others are predicted; without it the first is an error.
    """
    points = next((task for task in self.tasks if task.coordinates and len(task.labels) > 2), None)
    if align and points is None:
      names = ', '.join(task.name for task in self.tasks)
      raise DataError(f'align: no task of the model predicts landmarks, two points or more; it predicts {names}')
    for inputs, pixels in self._batches(images, refused):
      predictions = jax.device_get(self._apply(self.variables, pixels))
      for _ in range(ALIGN_ROUNDS if align else 0):
        assert points is not None
        mean = np.asarray(self.trained.label_stats[points.name].baseline).reshape(-1, 2)
        for row, one in enumerate(inputs):
          found = points.on_picture(predictions[points.name][row], one.view).reshape(-1, 2)
          framed = aligned(_picture(one.image), found, mean, size=self.image_size, aspect=self.aspect)
          if framed:
            (pixels[row], one.view), one.aligned = framed, True
        predictions = jax.device_get(self._apply(self.variables, pixels))
      for row, one in enumerate(inputs):
        own = {task.name: task.on_picture(predictions[task.name][row], one.view) for task in self.tasks}
        yield ImagePrediction(one.image, one.size, own, one.aligned)

  def described(self, predictions: Mapping[str, np.ndarray], size: tuple[int, int]) -> dict[str, Any]:
    """One image's predictions of `apply` by the names of its labels; landmarks in pixels of its width and height.

    With tuned thresholds also `decisions`: by task, yes or no for each label.
    """
    width, height = size
    values = {task.name: task.describe(predictions[task.name], width=width, height=height) for task in self.tasks}
    decisions = {task.name: own for task in self.tasks if (own := task.decisions(predictions[task.name]))}
    return values | ({'decisions': decisions} if decisions else {})

  def features(self, images: Images) -> np.ndarray | dict[str, np.ndarray]:
    """The features `[n, f]` that the heads read, or those of each task by name where they differ between tasks.

    Arguments and errors are those of `predict`.
    """
    parts = []
    for read, pixels in self._batches(images, None):
      found = jax.device_get(self._encode(self.variables, pixels))
      parts.append(jax.tree.map(lambda values, used=read: values[: len(used)], found))
    return jax.tree.map(lambda *each: np.concatenate(each), *parts)

  def _representation(self, variables: Mapping[str, Any], images: Array) -> Any:
    found, _ = self.trained.model.encode(variables, network_input(images), train=False)
    if isinstance(found, Representation):
      return found.features
    return {task: each.features for task, each in found.items()}

  def _batches(
    self, images: Images, refused: Callable[[DataError], None] | None
  ) -> Iterator[tuple[list[_Input], np.ndarray]]:
    """Yields images with their pixels, padded to one batch size, so that one program serves all."""
    if isinstance(images, str | Path) or not hasattr(images, '__len__') or getattr(images, 'ndim', 4) != 4:
      raise DataError(
        'images: give an array [n, h, w, 3], or a list of arrays or files: [image] for one, '
        "sorted(Path(folder).glob('*.jpg')) for a folder"
      )
    if not len(images):
      raise DataError('images: there are none')
    batch_size = min(BATCH, len(images))
    for first in range(0, len(images), batch_size):
      read, pixels = [], np.zeros((batch_size, *self.image_size, 3), np.uint8)
      for image in images[first : first + batch_size]:
        try:
          picture = _picture(image)
          pixels[len(read)], box = fitted(picture, self.image_size, self.fit)
        except DataError as error:
          if refused is None:
            raise
          refused(error)
        else:
          read.append(_Input(image, picture.size, view_of(box, picture.size)))
      if read:
        yield read, pixels


def view_of(box: Box, size: tuple[int, int]) -> np.ndarray:
  """The view of `Task.on_picture` of a part of a picture."""
  left, top, right, bottom = box
  return np.array([[right - left, 0, left], [0, bottom - top, top]]) / np.array(size)[:, None]


def _picture(image: np.ndarray | Path | str) -> Image.Image:
  """Opens an image, upright and in RGB. Raises DataError for anything else."""
  if isinstance(image, str | Path):
    return read_upright(Path(image))
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
    raise DataError(f'images: an image is uint8 [h, w, 3], not {image.dtype} {list(image.shape)}')
  return Image.fromarray(image)
