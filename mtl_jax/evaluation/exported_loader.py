"""Runs the exported model that lies beside this file; needs jax, numpy and flatbuffers, and not mtl_jax.

from load import load
predict, description = load()
predictions = predict(images)        # uint8 [b, h, w, 3], RGB -> {task: float32 [b, outputs]}

python load.py IMAGES.npy OUT.npz    # the same for a file of images
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np


def load(directory: str | Path | None = None) -> tuple[Callable[[Any], dict[str, Any]], Mapping[str, Any]]:
  """The predictions as a function of images, compiled once for each batch size, and what `model.json` says of them.

  Args:
    directory: where `model.stablehlo` and `model.json` lie; by default beside this file.
  """
  folder = Path(directory) if directory else Path(__file__).resolve().parent
  description = json.loads((folder / 'model.json').read_text())
  exported = jax.export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
  compiled = jax.jit(exported.call, compiler_options=options())
  height, width = description['input']['image_size']

  def predict(images: Any) -> dict[str, Any]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, 3):
      raise ValueError(f'images must be uint8 [b, {height}, {width}, 3], not {images.dtype} {list(images.shape)}')
    return compiled(images)

  return predict, description


def options() -> dict[str, str] | None:
  """On a CPU, and where jaxlib may compute wrong sums (jax#39103, jax#40412): no sums by YNNPACK."""
  import importlib.metadata

  version = tuple(int(part) for part in importlib.metadata.version('jaxlib').split('.')[:3])
  wrong = jax.default_backend() == 'cpu' and (0, 10, 2) <= version < (0, 13)
  return {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'} if wrong else None


if __name__ == '__main__':
  if len(sys.argv) != 3:
    sys.exit('usage: python load.py IMAGES.npy OUT.npz')
  outputs: dict[str, Any] = {name: np.asarray(values) for name, values in load()[0](np.load(sys.argv[1])).items()}
  np.savez(sys.argv[2], **outputs)
