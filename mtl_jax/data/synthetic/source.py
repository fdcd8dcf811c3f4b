"""Drawn faces written as CelebA is: images, attributes, landmarks, identities and partition, so one reader serves both.

Picture i of a seed depends on (seed, i) alone: not on how many are written, in what order or by how many processes.
"""

import concurrent.futures
import dataclasses
import functools
import io
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeAlias

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
  """One picture and all that is known of it.

  Attributes:
    image: uint8 `[218, 178, 3]` RGB.
    labels: by task, such as `attributes`, int8 `[40]` of 1 and 0 in the order of `ATTRIBUTES`, and `landmarks`, float32
      `[5, 2]` pixels (x, y): left eye, right eye, nose, left and right mouth corner; the left is the viewer's.
    identity: the person's number, from 1.
    split: 'train', 'val' or 'test'; the same for all pictures of a person.
    parsing: the part that each pixel shows, uint8 `[218, 178]`; None where it was not asked for.
  """

  image: np.ndarray
  labels: dict[str, np.ndarray]
  identity: int
  split: str
  parsing: np.ndarray | None = None


Row: TypeAlias = tuple[dict[str, np.ndarray], int, str]  # Labels, identity and split of a picture.


def face(index: int, *, seed: int, parsing: bool = False) -> Face:
  """Picture `index` (from 0) of `seed`, with its labels."""
  sitter = people.sitter_of(index, seed=seed)
  rng = np.random.default_rng([seed, _DETAIL, index])
  image, parts = drawing.draw_with_parts(sitter, rng, parsing=parsing)
  labels = {'attributes': people.labels_of(sitter, index, seed=seed), 'landmarks': canvas.landmarks(sitter)}
  return Face(image, labels, *people.identity_of(index, seed=seed), parts if parsing else None)


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
  draw: Callable[..., Face],
  *,
  num: int,
  seed: int,
  workers: int | None = None,
  progress: Callable[[int], object] | None = None,
) -> list[Row]:
  """Writes `num` pictures into a folder that is there, as `write` does, and returns their rows in order."""
  workers = workers or os.cpu_count() or 1
  chunks = [range(start, min(start + _CHUNK, num)) for start in range(0, num, _CHUNK)]
  task = functools.partial(_draw_chunk, images=images, draw=draw, seed=seed)
  rows: list[Row] = []

  def collect(drawn: Iterable[list[Row]]) -> None:
    for chunk in drawn:
      rows.extend(chunk)
      if progress:
        progress(len(chunk))

  if workers == 1 or num < _POOL_FROM:
    collect(map(task, chunks))
    return rows
  spawn = multiprocessing.get_context('spawn')  # A fork of a process that has started JAX may hang.
  try:
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(chunks)), mp_context=spawn) as pool:
      collect(pool.map(task, chunks))
  except BrokenProcessPool as error:
    raise DataError(
      f"{images}: the drawing processes died; call this under `if __name__ == '__main__'`, or with workers=1"
    ) from error
  return rows


def file_name(index: int) -> str:
  """The file name of picture `index`."""
  return f'{index + 1:06d}.jpg'


def map_name(name: str) -> str:
  """The file name of the map of parts that belongs to a picture."""
  return f'{Path(name).stem}.png'


def _draw_chunk(indices: range, *, images: Path, draw: Callable[..., Face], seed: int) -> list[Row]:
  """Writes the pictures `indices` to `images`; returns their rows."""
  rows = []
  for index in indices:
    drawn = draw(index, seed=seed)
    encoded = io.BytesIO()
    Image.fromarray(drawn.image).save(encoded, 'JPEG', quality=90)
    (images / file_name(index)).write_bytes(encoded.getvalue())
    if drawn.parsing is not None:
      Image.fromarray(drawn.parsing).save(images.parent / PARSING / map_name(file_name(index)))
    rows.append((drawn.labels, drawn.identity, drawn.split))
  return rows


def _write_lists(out: Path, rows: list[Row]) -> None:
  """CelebA's four text files: a count and a header where CelebA has them, then a line a picture."""
  names = [file_name(index) for index in range(len(rows))]
  labels, identities, splits = zip(*rows, strict=True)
  signs = [' '.join(f'{2 * value - 1:2d}' for value in row['attributes'].tolist()) for row in labels]
  points = [' '.join(f'{value:6.2f}' for value in row['landmarks'].ravel().tolist()) for row in labels]
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
