"""Predictions for image files: one JSON line an image, and drawings of them."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtl_jax.data.sources.image_file import decode, read_upright
from mtl_jax.errors import DataError
from mtl_jax.evaluation.step import predict_step
from mtl_jax.run import workdir
from mtl_jax.run.workdir import TrainedModel
from mtl_jax.tasks import Task

log = logging.getLogger('mtl_jax')

BATCH = 32  # Images a call of the network.


def predict_files(directory: Path, files: Sequence[Path], *, out: Path | None) -> int:
  """Prints a JSON line for each image file, and draws it into `out` if that is given.

  Returns:
    The number of files that could not be read; each is logged in one line, and the others are still done.
  """
  if out is not None:
    try:
      out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise DataError(f'--out: cannot make the folder {out}: {error.strerror}') from error
  model = workdir.restore(directory)
  compiled = jax.jit(partial(predict_step, model=model.model, tasks=model.tasks))
  refused = 0
  drawn = {file.stem for file in files if out and file.resolve() == (out / f'{file.stem}.png').resolve()}  # Keep these.
  batch_size = min(BATCH, len(files))
  for first in range(0, len(files), batch_size):
    readable: list[tuple[Path, np.ndarray, tuple[int, int]]] = []
    for file in files[first : first + batch_size]:
      try:
        readable.append((file, *decode(file, model.facts.image_size)))
      except DataError as error:
        log.error('mtl-jax: error: %s', error)
        refused += 1
    for file, (width, height), predictions in _predict_batch(model, compiled, readable, batch_size=batch_size):
      result = {task.name: task.describe(predictions[task.name], width=width, height=height) for task in model.tasks}
      print(json.dumps({'file': str(file), **result}), flush=True)
      if out is not None:
        name = _free_name(file.stem, drawn)
        draw(file, predictions, model.tasks).save(out / f'{name}.png')
  return refused


def _predict_batch(
  model: TrainedModel, compiled: Any, readable: Sequence[tuple[Path, np.ndarray, tuple[int, int]]], *, batch_size: int
) -> Iterator[tuple[Path, tuple[int, int], dict[str, np.ndarray]]]:
  """Each file with its width and height and its predictions by task. The batch is filled up: there is one program."""
  if not readable:
    return
  images = np.zeros((batch_size, *model.facts.image_size, 3), np.uint8)
  images[: len(readable)] = [pixels for _, pixels, _ in readable]
  predictions = jax.device_get(compiled(model.variables, model.label_stats, images)[1])
  for row, (file, _, size) in enumerate(readable):
    yield file, size, {task: values[row] for task, values in predictions.items()}


def _free_name(stem: str, taken: set[str]) -> str:
  """The stem, numbered if two files share it."""
  name, number = stem, 1
  while name in taken:
    number += 1
    name = f'{stem}_{number}'
  taken.add(name)
  return name


def draw(file: Path, predictions: Mapping[str, np.ndarray], tasks: Sequence[Task]) -> Image.Image:
  """The picture with the points and maps of one image's predictions, and beside it what else is predicted."""
  picture = read_upright(file)
  width, height = picture.size
  scale = max(1.0, 400 / height)
  picture = picture.resize((round(width * scale), round(height * scale)))
  for task in tasks:
    if (overlay := task.overlay(predictions[task.name])) is not None:
      picture = lay_over(picture, overlay)
  marker, radius = ImageDraw.Draw(picture), max(2, picture.height // 100)
  lines = []
  for task in tasks:
    for x, y in task.marks(predictions[task.name]) * np.array(picture.size):
      marker.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(0, 220, 90), outline=(0, 0, 0))
    lines += task.captions(task.describe(predictions[task.name], width=width, height=height))
  panel = 220 if lines else 0
  canvas = Image.new('RGB', (picture.width + panel, max(picture.height, 18 * len(lines) + 12)), 'white')
  canvas.paste(picture, (0, 0))
  place = picture.width + 10, 6
  ImageDraw.Draw(canvas).multiline_text(place, '\n'.join(lines), fill='black', font=ImageFont.load_default(14))
  return canvas


def lay_over(picture: Image.Image, overlay: np.ndarray) -> Image.Image:
  """The picture under a map RGBA uint8 `[h, w, 4]` of any size."""
  mask = Image.fromarray(overlay).resize(picture.size, Image.Resampling.NEAREST)
  return Image.alpha_composite(picture.convert('RGBA'), mask).convert('RGB')
