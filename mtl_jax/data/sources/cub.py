"""Reads CUB-200-2011 in its own layout: a bird's species, its attributes, its box, and the authors' split."""

import dataclasses
from pathlib import Path

import numpy as np

from mtl_jax.data.source import Crop, ListedImages, held_out
from mtl_jax.data.sources.text_table import (
  PIXELS,
  Cell,
  Table,
  image_files,
  is_count,
  read_lines,
  read_table,
  refuse_line,
)
from mtl_jax.errors import DataError
from mtl_jax.tasks import BinaryTask, CategoricalTask, Task

NOT_VISIBLE = 1  # Of the annotators' certainties: an attribute that could not be seen has no label.
ATTRIBUTE_NAMES = ('attributes/attributes.txt', 'attributes.txt', '../attributes.txt')  # As it is unpacked, or moved.


def open_cub(directory: Path) -> ListedImages:
  """Reads CUB's lists: images.txt, classes.txt, image_class_labels.txt, train_test_split.txt, and attributes/.

  Tasks are `species`, of as many classes as classes.txt names, and `attributes`, where the folder attributes/ is there;
  an attribute marked as not visible is missing. Where bounding_boxes.txt is there, images are cropped to the boxes.
  There is no validation split: training images whose bytes have a sha256 digest whose first 8 hex digits are a multiple
  of 10 are in `val`.

  Raises:
    DataError: where a list is missing or malformed (naming file and line), or an image is not there.
  """
  directory = Path(directory)
  if not (directory / 'images.txt').is_file():
    raise DataError(f'{directory}: is not CUB: images.txt is missing; give the folder CUB_200_2011')
  ids, names = _list(directory / 'images.txt')
  images = image_files(
    dataclasses.replace(ids, lines=dict(zip(names, ids.lines.values(), strict=True))), directory / 'images', nested=True
  )
  class_ids, classes = _list(directory / 'classes.txt')
  species_of = {number: float(place) for place, number in enumerate(class_ids.lines)}

  def values_of(file: str, **cells: Cell) -> np.ndarray:
    """The values `[n, k]` of a list by image number, in the order of images.txt."""
    return read_table(directory / file, read_lines(directory / file), cells).aligned(ids).values

  species = values_of('image_class_labels.txt', **{'class': Cell(species_of.__getitem__, 'a class')})
  training = values_of('train_test_split.txt', training=Cell({'0': 0.0, '1': 1.0}.__getitem__, '0 or 1'))
  tasks: list[Task] = [CategoricalTask('species', ('species',), classes=tuple(classes))]
  labels, notes = {'species': species.astype(np.float32)}, []
  if (directory / 'attributes').is_dir():
    known, labels['attributes'] = _attributes(directory, ids)
    tasks.append(BinaryTask('attributes', known))
  else:
    notes.append(f'warning: {directory}/attributes is missing, so there is no task attributes')
  crops: dict[str, Crop] = {}
  if (directory / 'bounding_boxes.txt').is_file():
    boxes = values_of('bounding_boxes.txt', x=PIXELS, y=PIXELS, width=PIXELS, height=PIXELS).tolist()
    crops = {
      name: (round(x), round(y), round(x + width), round(y + height))
      for name, (x, y, width, height) in zip(names, boxes, strict=True)
    }
  return ListedImages(
    name='cub',
    tasks=tuple(tasks),
    notes=tuple(notes),
    images=images,
    splits=[
      'test' if not is_training else 'val' if held_out(path) else 'train'
      for is_training, path in zip(training[:, 0], images.values(), strict=True)
    ],
    labels=labels,
    crops=crops,
  )


def _list(path: Path) -> tuple[Table, list[str]]:
  """The rows of a list, named by their numbers, and what they number, all different."""
  names: list[str] = []

  def rows():
    for line, row in read_lines(path):
      if len(row) != 2 or not is_count(row[0]) or row[1] in known:
        refuse_line(path, line, f'must be a new number and a new name, but is {" ".join(row)[:60]!r}; fetch it again')
      known.add(row[1])
      names.append(row[1])
      yield line, row[:1]

  known: set[str] = set()
  return read_table(path, rows(), {}), names


def _attributes(directory: Path, ids: Table) -> tuple[tuple[str, ...], np.ndarray]:
  """The names of the attributes, and labels float32 `[n, k]`, NaN where none could be seen or none is given."""
  listing = next((directory / name for name in ATTRIBUTE_NAMES if (directory / name).is_file()), None)
  if listing is None:
    raise DataError(f'{directory}: attributes.txt is neither in attributes/, here, nor beside; fetch it')
  numbers, names = _list(listing)
  column_of, row_of = ({number: place for place, number in enumerate(each.lines)} for each in (numbers, ids))
  values = np.full((len(row_of), len(names)), np.nan, np.float32)
  path = directory / 'attributes' / 'image_attribute_labels.txt'
  for line, row in read_lines(path):  # Some real lines have more cells at their end.
    if len(row) < 4 or row[2] not in ('0', '1') or row[3] not in ('1', '2', '3', '4'):
      refuse_line(path, line, f'must be image, attribute, 0 or 1, certainty 1 to 4, but is {" ".join(row)[:60]!r}')
    image, attribute, present, certainty = row[:4]
    if image in row_of and attribute in column_of and int(certainty) > NOT_VISIBLE:
      values[row_of[image], column_of[attribute]] = float(present)
  return tuple(names), values
