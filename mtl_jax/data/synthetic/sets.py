"""Sources of synthetic faces: with CelebA's labels, and with expressions."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax.data.source import LANDMARKS, ListedImages
from mtl_jax.data.synthetic import expressions, source
from mtl_jax.data.synthetic.canvas import PARTS
from mtl_jax.data.synthetic.people import ATTRIBUTES
from mtl_jax.errors import DataError
from mtl_jax.platform.progress_bar import bar
from mtl_jax.tasks import BinaryTask, DenseTask, Task

FACES = 'synthetic'
PARSING = DenseTask('parsing', ('parsing',), classes=PARTS)
# For each set how a picture is drawn, and its tasks.
DRAWN: dict[str, tuple[Callable[..., source.Face], tuple[Task, ...]]] = {
  FACES: (source.face, (BinaryTask('attributes', ATTRIBUTES), LANDMARKS)),
  'synthetic:expressions': (expressions.face, expressions.TASKS),
}


def draw(name: str, folder: Path, *, num: int, seed: int, parsing: bool = False, workers: int = 1) -> ListedImages:
  """Draws `num` faces of a set of `DRAWN` into a new folder, and returns them as a source.

  `parsing` adds the task of that name to FACES: the part of the face that each pixel shows.

  Raises:
    DataError: where a number is out of range, or the processes could not be started.
  """
  for flag, value, least in (('--num', num, 1), ('--seed', seed, 0), ('workers', workers, 1)):
    if not hasattr(value, '__index__') or value < least:
      raise DataError(f'{flag}={value!r}: must be a whole number of at least {least}')
  face, tasks = DRAWN[name]
  rows: list[source.Row] = []
  with bar(num, description='draw faces', unit='image') as progress:
    drawing = partial(face, parsing=True) if parsing else face
    for row in source.write(folder, drawing, num=num, seed=seed, workers=workers):
      rows.append(row)
      progress.update()
  labels, identities, splits = zip(*rows, strict=True)
  names = [source.file_name(index) for index in range(num)]
  stated: dict[str, Any] = {task.name: np.stack([row[task.name] for row in labels]).reshape(num, -1) for task in tasks}
  if name == FACES:  # In hundredths of a pixel, as CelebA's layout once kept them.
    stated['landmarks'] = np.array([[float(f'{v:.2f}') for v in row] for row in stated['landmarks'].tolist()])
  if parsing:
    stated['parsing'] = [partial(_read_map, source.map_path(folder, name)) for name in names]
  return ListedImages(
    name=name,
    tasks=(*tasks, PARSING) if parsing else tasks,
    notes=(),
    images={name: folder / source.IMAGES / name for name in names},
    splits=list(splits),
    labels=stated,
    identity=np.array(identities, np.int32),
  )


def _read_map(path: Path) -> np.ndarray:
  return np.asarray(Image.open(path, formats=['PNG']))
