"""Predictions for image files: one JSON line an image, and drawings of them."""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
      overlays = [overlay for task in model.tasks if (overlay := task.overlay(predictions[task.name])) is not None]
      content = io.BytesIO()
      draw(file, result, model.tasks, overlays=overlays).save(content, 'PNG')
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


def draw(
  file: Path, result: dict[str, dict[str, Any]], tasks: Sequence[Task], *, overlays: Sequence[np.ndarray] = ()
) -> Image.Image:
  """The picture with its landmarks and maps, and beside it what else is predicted."""
  picture = read_upright(file)
  scale = max(1.0, 400 / picture.height)
  picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
  for overlay in overlays:
    mask = Image.fromarray(overlay).resize(picture.size, Image.Resampling.NEAREST)
    picture = Image.alpha_composite(picture.convert('RGBA'), mask).convert('RGB')
  lines = [line for task in tasks for line in task.captions(result[task.name])]
  for task in tasks:
    _draw_points(picture, [(x * scale, y * scale) for x, y in task.marks(result[task.name])])
  font = ImageFont.load_default(14)
  panel = 0 if not lines else 220
  canvas = Image.new('RGB', (picture.width + panel, max(picture.height, 18 * len(lines) + 12)), 'white')
  canvas.paste(picture, (0, 0))
  ImageDraw.Draw(canvas).multiline_text((picture.width + 10, 6), '\n'.join(lines), fill='black', font=font)
  return canvas


def _draw_points(picture: Image.Image, points: Sequence[tuple[float, float]]) -> None:
  canvas, radius = ImageDraw.Draw(picture), max(2, picture.height // 100)
  for x, y in points:
    box = (x - radius, y - radius, x + radius, y + radius)
    canvas.ellipse(box, fill=(0, 220, 90), outline=(0, 0, 0))
