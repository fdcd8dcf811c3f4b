"""Writes a small CelebA of random images in each of the layouts that people have."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

ATTRIBUTES = ('Smiling', 'Male', 'Young')
LANDMARKS = tuple(f'{p}_{a}' for p in ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth') for a in 'xy')
PLACES = {
  'official': ('Img/img_align_celeba', 'Anno/{}.txt', 'Eval/{}.txt'),
  'root': ('img_align_celeba', '{}.txt', '{}.txt'),
  'kaggle': ('img_align_celeba/img_align_celeba', '{}.csv', '{}.csv'),
}


@dataclasses.dataclass(frozen=True)
class Faces:
  """What was written: attributes 0 or 1 `[n, 3]`, landmarks in pixels `[n, 10]`, identity `[n]`."""

  names: list[str]
  splits: list[int]
  attributes: np.ndarray
  landmarks: np.ndarray
  identity: np.ndarray
  images: Path


def write_celeba(
  directory: Path,
  *,
  splits: tuple[int, ...] = (0, 0, 1, 2, 0, 2, 0),
  layout: str = 'root',
  width: int = 20,
  height: int = 24,
) -> Faces:
  """Writes one image for each split number; the same ones whatever the layout."""
  rng = np.random.default_rng(0)
  names = [f'{i + 1:06d}.jpg' for i in range(len(splits))]
  images, labels_file, partition_file = PLACES[layout]
  faces = Faces(
    names=names,
    splits=list(splits),
    attributes=rng.integers(0, 2, (len(names), len(ATTRIBUTES))),
    landmarks=rng.integers(0, (width, height) * 5, (len(names), len(LANDMARKS))),
    identity=rng.integers(1, 100, len(names)),
    images=directory / images,
  )
  faces.images.mkdir(parents=True)
  for name in names:
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(faces.images / name, quality=95)
  for stem, place, columns, values in (
    ('list_attr_celeba', labels_file, ATTRIBUTES, 2 * faces.attributes - 1),
    ('list_landmarks_align_celeba', labels_file, LANDMARKS, faces.landmarks),
    ('list_eval_partition', partition_file, ('partition',), np.array(splits)[:, None]),
    ('identity_CelebA', labels_file, ('identity',), faces.identity[:, None]),
  ):
    path = directory / place.format(stem)
    path.parent.mkdir(exist_ok=True)
    if layout != 'kaggle':
      path.write_text(_text(names, columns, values))
    elif stem != 'identity_CelebA':
      path.write_text(_csv(names, columns, values))
  return faces


def _text(names, columns, values) -> str:
  lines = [f'{name} ' + ' '.join(f'{v:2d}' for v in row) for name, row in zip(names, values, strict=True)]
  header = [] if len(columns) == 1 else [str(len(names)), ' '.join(columns) + ' ']
  return '\n'.join([*header, *lines]) + '\n'


def _csv(names, columns, values) -> str:
  lines = [','.join([name, *map(str, row)]) for name, row in zip(names, values, strict=True)]
  return '\n'.join([','.join(['image_id', *columns]), *lines]) + '\n'
