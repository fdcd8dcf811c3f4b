"""Predicts image files: one JSON line per image, and pictures with the predictions drawn in."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtl_jax.data.sources.image_file import read_upright
from mtl_jax.errors import CheckpointError, DataError
from mtl_jax.evaluation.model import ImagePrediction, Model
from mtl_jax.platform import atomic_write
from mtl_jax.tasks import Task

log = logging.getLogger('mtl_jax')

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
MOST_STRETCHED = 1.6  # Of the training images' shape.


def predict_files(
  model: Model, places: Sequence[Path], *, out: Path | None = None, table: Path | None = None, align: bool = False
) -> int:
  """Prints a JSON line for each image file; one that is cropped, padded or aligned says so.

  Args:
    model: what predicts.
    places: image files, and folders, of which all image files are taken.
    out: a folder to draw the predictions into.
    table: a CSV file to write, with a row for each image.
    align: see `Model.predict`.

  Returns:
    The number of files that could not be read; each is logged in one line, and the others are still done.

  Raises:
    DataError: for an `out` or `table` that cannot be written.
  """
  if out is not None:
    try:
      out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise DataError(f'--out: cannot make the folder {out}: {error.strerror}') from error
  files, refused, rows = image_files(places), [], []

  def refuse(error: DataError) -> None:
    log.error('mtl-jax: error: %s', error)
    refused.append(error)

  drawn = {file.stem for file in files if out and file.resolve() == (out / f'{file.stem}.png').resolve()}  # Keep these.
  fit = {} if model.fit == 'squash' else {'fit': model.fit}
  for predicted in model.each(files, align=align, refused=refuse):
    file, result = predicted.image, model.described(predicted.predictions, predicted.size)
    _warn_of_shape(predicted, model, align=align)
    framing = {'aligned': predicted.aligned} if align else fit
    print(json.dumps({'file': str(file), **framing, **result}), flush=True)
    if table is not None:
      rows.append({'file': str(file), **framing, **flat(result)})
    if out is not None:
      content = io.BytesIO()
      draw(file, predicted.predictions, model.tasks).save(content, 'PNG')
      atomic_write.write(out / f'{_free_name(file.stem, drawn)}.png', content.getvalue())
  if table is not None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else ['file'])
    writer.writeheader()
    writer.writerows(rows)
    try:
      atomic_write.write(table, text.getvalue())
    except (OSError, CheckpointError) as error:
      raise DataError(f'--csv: cannot write {table}: {error}') from error
  return len(refused)


def image_files(places: Sequence[Path]) -> list[Path]:
  """Files as they are given, and of folders all files with an image's suffix, by name; a folder without is kept."""
  files = []
  for place in places:
    inside = place.iterdir() if place.is_dir() else ()
    files += sorted(file for file in inside if file.suffix.lower() in SUFFIXES) or [place]
  return files


def flat(values: Mapping[str, Any] | Sequence[float], group: str = '') -> dict[str, float]:
  """An image's predictions in columns: `task/name`, and `task/name/x` and `/y` of points."""
  columns = {}
  for name, value in (values if isinstance(values, Mapping) else dict(zip('xy', values, strict=True))).items():
    inner = isinstance(value, Mapping | list)
    columns |= flat(value, f'{group}{name}/') if inner else {f'{group}{name}': value}
  return columns


def _warn_of_shape(predicted: ImagePrediction, model: Model, *, align: bool) -> None:
  """Warns of an image that was framed otherwise than those the model has learned from."""
  (width, height), squashed = predicted.size, model.fit == 'squash'
  stretched = (width / height) / (model.aspect if squashed else model.image_size[1] / model.image_size[0])
  if align and not predicted.aligned:
    log.warning('warning: %s: has landmarks of no face, so it is not aligned; crop it to the face', predicted.image)
  elif not align and max(stretched, 1 / stretched) > MOST_STRETCHED:
    done = {'squash': 'squashed', 'crop': 'cropped', 'pad': 'padded'}[model.fit]
    log.warning(
      'warning: %s: %d x %d pixels are %s to %d x %d; crop it to the face',
      *(predicted.image, width, height, done, *model.image_size[::-1]),
    )


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
