"""The task of parsing a synthetic face: the part of it that each pixel shows. Drawing itself needs no task, no JAX."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from PIL import Image

from mtl_jax.data.source import ListedImages
from mtl_jax.data.synthetic.canvas import PARTS
from mtl_jax.data.synthetic.source import PARSING, map_name
from mtl_jax.tasks import DenseTask


def with_parsing(source: ListedImages, folder: Path) -> ListedImages:
  """Adds the task of parsing, from the maps that `source.write` has written into `folder`."""
  task = DenseTask('parsing', ('parsing',), classes=PARTS)
  maps = [functools.partial(_read_map, folder / PARSING / map_name(name)) for name in source.images]
  return dataclasses.replace(source, tasks=(*source.tasks, task), labels={**source.labels, task.name: maps})


def _read_map(path: Path) -> np.ndarray:
  return np.asarray(Image.open(path, formats=['PNG']))
