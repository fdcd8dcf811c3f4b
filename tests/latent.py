"""Images drawn from hidden factors, with tasks of which it is known who shares a factor with whom."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from mtl_jax.data.source import Record
from mtl_jax.tasks import BinaryTask

GROUPS = (('first_a', 'first_b'), ('second_a', 'second_b'), ('rival',))
LABELS = tuple(name for group in GROUPS for name in group)
SPLITS = {'train': 512, 'val': 256, 'test': 8}


class Latent:
  """Factor n is the brightness of colour channel n, and two labels of a group tell, with some noise, its sign.

  `rival` is 1 where the first two factors have the same sign. No line tells it, so a narrow layer that serves it
  gives up directions that the others need. The third factor is of no use.
  """

  name = 'latent'
  tasks = (BinaryTask('attributes', LABELS),)

  def records(self):
    random = np.random.default_rng(0)
    for number, (split, count) in enumerate(SPLITS.items()):
      for row in range(count):
        factors = random.uniform(-1, 1, 3)
        told = factors[[0, 0, 1, 1]] + random.normal(0, 0.1, 4) > 0
        labels = np.array([*told, factors[0] * factors[1] > 0], np.float32)
        pixels = 128 + 90 * factors + random.normal(0, 8, (8, 8, 3))
        stream = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, 'PNG')
        person = 10_000 * number + row // 2
        yield Record(f'{split}/{row}.png', split, stream.getvalue, {'attributes': labels}, identity=person)


def open_source(directory: Path) -> Latent:
  del directory
  return Latent()
