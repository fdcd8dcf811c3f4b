"""Drawn faces written as CelebA is: images, attributes, landmarks, identities and partition, so one reader serves both.

Picture i of a seed depends on (seed, i) alone: not on how many are written, in what order or by how many processes.
"""

import concurrent.futures
import dataclasses
import functools
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax.data.synthetic import canvas, drawing, people
from mtl_jax.data.synthetic.people import ATTRIBUTES, VISIBLE
from mtl_jax.errors import DataError

__all__ = ['ATTRIBUTES', 'NAME', 'VISIBLE', 'Face', 'face', 'write']

NAME = 'synthetic'
PARSING = 'parsing'  # The folder of the maps of parts.
_PARTITION = {'train': 0, 'val': 1, 'test': 2}
_LANDMARKS = 'lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y'
_DETAIL = 100  # The picture's own stream of random numbers, apart from those of the people.
_CHUNK = 50  # Pictures a task of the pool.
_POOL_FROM = 200  # Fewer pictures than that are drawn before a pool has started.


@dataclasses.dataclass(frozen=True)
class Face:
  """One picture and all that CelebA says of a picture.

  Attributes:
    image: uint8 `[218, 178, 3]` RGB.
    attributes: int8 `[40]` of 1 and 0 in the order of `ATTRIBUTES`.
    landmarks: float32 `[5, 2]` pixels (x, y): left eye, right eye, nose, left and right mouth corner; the left is the
      viewer's.
    identity: the person's number, from 1.
    split: 'train', 'val' or 'test'; the same for all pictures of a person.
    parsing: the part that each pixel shows, uint8 `[218, 178]`; None where it was not asked for.
  """

  image: np.ndarray
  attributes: np.ndarray
  landmarks: np.ndarray
  identity: int
  split: str
  parsing: np.ndarray | None = None

  @property
  def row(self) -> tuple[np.ndarray, np.ndarray, int, str]:
    """Labels as the text files give them: attributes, landmarks, identity, split."""
    return self.attributes, self.landmarks, self.identity, self.split


Draw = Callable[..., Any]  # (index, *, seed) -> something with an `image` and a `row` of all else.


def face(index: int, *, seed: int, parsing: bool = False) -> Face:
  """Picture `index` (from 0) of `seed`, with its labels."""
  sitter = people.sitter_of(index, seed=seed)
  identity, split = people.identity_of(index, seed=seed)
  image, parts = drawing.draw_with_parts(sitter, np.random.default_rng([seed, _DETAIL, index]), parsing=parsing)
  return Face(
    image=image,
    attributes=people.labels_of(sitter, index, seed=seed),
    landmarks=canvas.landmarks(sitter),
    identity=identity,
    split=split,
    parsing=parts if parsing else None,
  )


def write(
  out: Path,
  *,
  num: int,
  seed: int,
  workers: int | None = None,
  progress: Callable[[int], object] | None = None,
  parsing: bool = False,
) -> None:
  """Writes `num` faces to `out` in CelebA's layout: img_align_celeba/, Anno/ and Eval/.

  The text files come last, so a new folder that has them is complete.

  Args:
    out: the folder; it is made if need be.
    num: how many pictures, at least 1.
    seed: which pictures, at least 0.
    workers: processes; by default one a core. They are spawned, so a script that calls this needs the usual
      `if __name__ == '__main__':`.
    progress: called with the number of pictures done since its last call.
    parsing: also writes the parts of each face, to PARSING.

  Raises:
    DataError: `num`, `seed` or `workers` is out of range, the processes could not be started, or `out` cannot be
      written.
  """
  for flag, value, least in (('--num', num, 1), ('--seed', seed, 0), ('--workers', workers, 1)):
    if value is not None and value < least:
      raise DataError(f'{flag}={value}: must be at least {least}')
  images = out / 'img_align_celeba'
  try:
    images.mkdir(parents=True, exist_ok=True)
    if parsing:
      (out / PARSING).mkdir(exist_ok=True)
    rows = write_images(
      images, functools.partial(face, parsing=parsing), num=num, seed=seed, workers=workers, progress=progress
    )
    _write_lists(out, rows)
  except OSError as error:
    raise DataError(f'{error.filename or out}: {error.strerror}; free the disk or choose another folder') from error


def write_images(
  images: Path,
  draw: Draw,
  *,
  num: int,
  seed: int,
  workers: int | None = None,
  progress: Callable[[int], object] | None = None,
) -> list[Any]:
  """Writes `num` pictures into a folder that is there, as `write` does, and returns their rows in order."""
  rows = []
  for chunk in _drawn_chunks(images, draw, num=num, seed=seed, workers=workers or os.cpu_count() or 1):
    rows += chunk
    if progress:
      progress(len(chunk))
  return rows


def file_name(index: int) -> str:
  """The file name of picture `index`."""
  return f'{index + 1:06d}.jpg'


def map_name(name: str) -> str:
  """The file name of the map of parts that belongs to a picture."""
  return f'{Path(name).stem}.png'


def _draw_chunk(indices: range, *, images: Path, draw: Draw, seed: int) -> list[Any]:
  """Writes the pictures `indices` to `images`; returns their rows."""
  rows = []
  for index in indices:
    drawn = draw(index, seed=seed)
    encoded = io.BytesIO()
    Image.fromarray(drawn.image).save(encoded, 'JPEG', quality=90)
    (images / file_name(index)).write_bytes(encoded.getvalue())
    if getattr(drawn, 'parsing', None) is not None:
      Image.fromarray(drawn.parsing).save(images.parent / PARSING / map_name(file_name(index)))
    rows.append(drawn.row)
  return rows


def _drawn_chunks(images: Path, draw: Draw, *, num: int, seed: int, workers: int) -> Iterator[list[Any]]:
  """Yields the rows of chunk after chunk, in order, as they are drawn here or by a pool."""
  chunks = [range(start, min(start + _CHUNK, num)) for start in range(0, num, _CHUNK)]
  task = functools.partial(_draw_chunk, images=images, draw=draw, seed=seed)
  if workers == 1 or num < _POOL_FROM:
    yield from map(task, chunks)
    return
  spawn = multiprocessing.get_context('spawn')  # A fork of a process that has started JAX may hang.
  try:
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(chunks)), mp_context=spawn) as pool:
      yield from pool.map(task, chunks)
  except BrokenProcessPool as error:
    raise DataError(
      f"{images}: the drawing processes died; call this under `if __name__ == '__main__'`, or with workers=1"
    ) from error


def _write_lists(out: Path, rows: list[Any]) -> None:
  """CelebA's four text files: a count and a header where CelebA has them, then a line a picture."""
  names = [file_name(index) for index in range(len(rows))]
  attributes, landmarks, identities, splits = zip(*rows, strict=True)
  signs = [' '.join(f'{2 * value - 1:2d}' for value in row.tolist()) for row in attributes]
  points = [' '.join(f'{value:6.2f}' for value in row.ravel().tolist()) for row in landmarks]
  files = {
    'Anno/list_attr_celeba.txt': ([len(rows), ' '.join(ATTRIBUTES) + ' '], signs),
    'Anno/list_landmarks_align_celeba.txt': ([len(rows), _LANDMARKS], points),
    'Anno/identity_CelebA.txt': ([], identities),
    'Eval/list_eval_partition.txt': ([], [_PARTITION[split] for split in splits]),
  }
  for path, (header, values) in files.items():
    lines = [*map(str, header), *(f'{name} {value}' for name, value in zip(names, values, strict=True))]
    (out / path).parent.mkdir(exist_ok=True)
    (out / path).write_text('\n'.join(lines) + '\n')
