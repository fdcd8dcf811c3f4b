"""Draws faces into files. Picture i of a seed depends on (seed, i) alone: not on how many are drawn, or by whom.

Nothing here loads JAX, so that processes that draw start at once.
"""

import concurrent.futures
import dataclasses
import functools
import io
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from mtl_jax.data.synthetic import canvas, drawing, people
from mtl_jax.errors import DataError

IMAGES, PARSING = 'img_align_celeba', 'parsing'  # Folders of the pictures, and of the maps of parts.
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
  subject = people.subject_of(index, seed=seed)
  rng = np.random.default_rng([seed, _DETAIL, index])
  image, parts = drawing.draw(subject, rng, parsing=parsing)
  labels = {'attributes': people.labels_of(subject, index, seed=seed), 'landmarks': canvas.landmarks(subject)}
  return Face(image, labels, *people.identity_of(index, seed=seed), parts if parsing else None)


def write(folder: Path, draw: Callable[..., Face], *, num: int, seed: int, workers: int = 1) -> Iterator[Row]:
  """Writes `num` pictures, and the maps of those that have one, into a folder; yields their rows in order.

  Args:
    folder: where IMAGES and PARSING are made, new ones.
    draw: such as `face`.
    num: how many pictures.
    seed: which ones.
    workers: processes; they are spawned, so a script that calls this with several needs the usual
      `if __name__ == '__main__':`.

  Raises:
    DataError: where the processes could not be started.
  """
  folder.mkdir(parents=True)
  task = functools.partial(_write_one, folder=folder, draw=draw, seed=seed)
  if workers == 1 or num < _POOL_FROM:
    yield from map(task, range(num))
    return
  spawn = multiprocessing.get_context('spawn')  # A fork of a process that has started JAX may hang.
  try:
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
      yield from pool.map(task, range(num), chunksize=_CHUNK)
  except BrokenProcessPool as error:
    said = "the drawing processes died; call this under `if __name__ == '__main__'`, or with workers=1"
    raise DataError(f'{folder}: {said}') from error


def file_name(index: int) -> str:
  """The file name of picture `index`."""
  return f'{index + 1:06d}.jpg'


def map_path(folder: Path, name: str) -> Path:
  """The map of parts that belongs to the picture of that name."""
  return folder / PARSING / f'{Path(name).stem}.png'


def _write_one(index: int, *, folder: Path, draw: Callable[..., Face], seed: int) -> Row:
  drawn, name = draw(index, seed=seed), file_name(index)
  _save(drawn.image, folder / IMAGES / name, 'JPEG', quality=90)
  if drawn.parsing is not None:
    _save(drawn.parsing, map_path(folder, name), 'PNG')
  return drawn.labels, drawn.identity, drawn.split


def _save(pixels: np.ndarray, path: Path, kind: str, **how: int) -> None:
  content = io.BytesIO()  # Saving straight to the file would not say that it was the disk that is full.
  Image.fromarray(pixels).save(content, kind, **how)
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content.getbuffer())
