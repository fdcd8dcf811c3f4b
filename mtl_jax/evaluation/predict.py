"""Predictions for image files: one JSON line an image, and drawings of them."""

import json
import logging
from collections.abc import Iterator, Sequence
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
    for file, result, overlays in _predict_batch(model, compiled, readable, batch_size=batch_size):
      print(json.dumps({'file': str(file), **result}), flush=True)
      if out is not None:
        name = _free_name(file.stem, drawn)
        draw(file, result, model, overlays=overlays).save(out / f'{name}.png')
  return refused


def _predict_batch(
  model: TrainedModel, compiled: Any, readable: Sequence[tuple[Path, np.ndarray, tuple[int, int]]], *, batch_size: int
) -> Iterator[tuple[Path, dict[str, Any], list[np.ndarray]]]:
  """Each file with `{task: {name: value}}` and what to lay over its picture.

  The batch is filled up to its size, so there is one program.
  """
  if not readable:
    return
  images = np.zeros((batch_size, *model.facts.image_size, 3), np.uint8)
  images[: len(readable)] = [pixels for _, pixels, _ in readable]
  predictions = jax.device_get(compiled(model.variables, model.label_stats, images)[1])
  for row, (file, _, (width, height)) in enumerate(readable):
    own = {task: predictions[task.name][row] for task in model.tasks}
    overlays = [overlay for task, values in own.items() if (overlay := task.overlay(values)) is not None]
    yield file, {task.name: task.describe(v, width=width, height=height) for task, v in own.items()}, overlays


def _free_name(stem: str, taken: set[str]) -> str:
  """The stem, numbered if two files share it."""
  name, number = stem, 1
  while name in taken:
    number += 1
    name = f'{stem}_{number}'
  taken.add(name)
  return name


def draw(
  file: Path, result: dict[str, dict[str, Any]], model: TrainedModel, *, overlays: Sequence[np.ndarray] = ()
) -> Image.Image:
  """The picture with its landmarks and maps, and beside it what else is predicted."""
  picture = read_upright(file)
  scale = max(1.0, 400 / picture.height)
  picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
  for overlay in overlays:
    mask = Image.fromarray(overlay).resize(picture.size, Image.Resampling.NEAREST)
    picture = Image.alpha_composite(picture.convert('RGBA'), mask).convert('RGB')
  lines = [line for task in model.tasks for line in task.captions(result[task.name])]
  for task in model.tasks:
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
