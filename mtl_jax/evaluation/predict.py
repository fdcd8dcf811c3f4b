"""Predictions for image files: one JSON line an image, and drawings of them."""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtl_jax.data.sources.image_file import read_upright
from mtl_jax.errors import DataError
from mtl_jax.evaluation.model import Model
from mtl_jax.platform import atomic_write
from mtl_jax.tasks import Task

log = logging.getLogger('mtl_jax')


def predict_files(model: Model, files: Sequence[Path], *, out: Path | None) -> int:
  """Prints a JSON line for each image file, and draws it into `out` if that is given.

  Returns:
    The number of files that could not be read; each is logged in one line, and the others are still done.
  """
  if out is not None:
    try:
      out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise DataError(f'--out: cannot make the folder {out}: {error.strerror}') from error
  refused: list[DataError] = []

  def refuse(error: DataError) -> None:
    log.error('mtl-jax: error: %s', error)
    refused.append(error)

  drawn = {file.stem for file in files if out and file.resolve() == (out / f'{file.stem}.png').resolve()}  # Keep these.
  for file, predictions, size in model.each(files, refused=refuse):
    result = model.described(predictions, size)
    print(json.dumps({'file': str(file), **result}), flush=True)
    if out is not None:
      content = io.BytesIO()
      draw(file, predictions, model.tasks).save(content, 'PNG')
      atomic_write.write(out / f'{_free_name(file.stem, drawn)}.png', content.getvalue())
  return len(refused)


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
