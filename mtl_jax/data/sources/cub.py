"""Reads CUB-200-2011 in its own layout: a bird's species, its attributes, its box, and the authors' split."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtl_jax.data.source import ListedImages, content_digest, tenth_of
from mtl_jax.data.sources.text_table import PIXELS, Cell, Table, is_count, read_rows, refuse_line, rows_apart_by_blanks
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
  images_file = directory / 'images.txt'
  if not images_file.is_file():
    raise DataError(f'{directory}: is not CUB: images.txt is missing; give the folder CUB_200_2011')
  ids, names, lines = _list(images_file)
  for name, line in zip(names, lines, strict=True):
    if not (directory / 'images' / name).is_file():
      refuse_line(images_file, line, f'{name[:80]!r} is not in {directory / "images"}; unpack all images')
  class_ids, classes, _ = _list(directory / 'classes.txt')
  species_of = {number: float(place) for place, number in enumerate(class_ids)}
  species = _aligned(directory / 'image_class_labels.txt', {'class': Cell(species_of.__getitem__, 'a class')}, ids)
  training = _aligned(
    directory / 'train_test_split.txt', {'training': Cell({'0': 0.0, '1': 1.0}.__getitem__, '0 or 1')}, ids
  )
  tasks: list[Task] = [CategoricalTask('species', ('species',), classes=tuple(classes))]
  labels, notes = {'species': species.astype(np.float32)}, []
  if (directory / 'attributes').is_dir():
    known, values = _attributes(directory, ids)
    tasks.append(BinaryTask('attributes', known))
    labels['attributes'] = values
  else:
    notes.append(f'warning: {directory}/attributes is missing, so there is no task attributes')
  splits = ['test' if not is_training else 'train' for is_training in training[:, 0]]
  for row, name in enumerate(names):
    if splits[row] == 'train' and tenth_of(content_digest(directory / 'images' / name)) == 0:
      splits[row] = 'val'
  return ListedImages(
    'cub', tuple(tasks), tuple(notes), directory / 'images', names, splits, labels, crops=_boxes(directory, ids, names)
  )


def _list(path: Path) -> tuple[list[str], list[str], list[int]]:
  """The numbers and the names of a list, and their lines."""
  found: dict[str, str] = {}
  lines = []
  for line, row in rows_apart_by_blanks(path):
    if len(row) != 2 or not is_count(row[0]) or row[0] in found:
      refuse_line(path, line, f'must be a new number and a name, but is {" ".join(row)[:60]!r}; fetch the file again')
    found[row[0]] = row[1]
    lines.append(line)
  names = list(found.values())
  if len(set(names)) != len(names):
    raise DataError(f'{path}: names {next(n for i, n in enumerate(names) if n in names[:i])[:60]!r} twice')
  return list(found), names, lines


def _aligned(path: Path, cells: dict[str, Cell], ids: list[str]) -> np.ndarray:
  """The values `[n, k]` of a list by image number, in the order of images.txt."""
  table: Table = read_rows(path, rows_apart_by_blanks(path), cells)
  row_of = {number: row for row, number in enumerate(table.names)}
  missing = next((number for number in ids if number not in row_of), None)
  if missing is not None or len(table.names) != len(ids):
    which = 'lists images that images.txt does not' if missing is None else f'lacks image {missing} of images.txt'
    raise DataError(f'{path}: {which}; fetch both files again')
  return table.values[[row_of[number] for number in ids]]


def _boxes(directory: Path, ids: list[str], names: list[str]) -> dict[str, tuple[int, int, int, int]]:
  """Left, top, right and bottom by image name; none where there is no such file."""
  path = directory / 'bounding_boxes.txt'
  if not path.is_file():
    return {}
  boxes = _aligned(path, dict.fromkeys(('x', 'y', 'width', 'height'), PIXELS), ids)
  return {
    name: (round(x), round(y), round(x + width), round(y + height))
    for name, (x, y, width, height) in zip(names, boxes.tolist(), strict=True)
  }


def _attributes(directory: Path, ids: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
  """The names of the attributes, and labels float32 `[n, k]`, NaN where none could be seen or none is given."""
  listing = next((directory / name for name in ATTRIBUTE_NAMES if (directory / name).is_file()), None)
  if listing is None:
    raise DataError(f'{directory}: attributes.txt is neither in attributes/, here, nor beside; fetch it')
  numbers, names, _ = _list(listing)
  column_of, row_of = ({number: place for place, number in enumerate(each)} for each in (numbers, ids))
  values = np.full((len(ids), len(numbers)), np.nan, np.float32)
  for image, attribute, present, visible in _attribute_rows(directory / 'attributes' / 'image_attribute_labels.txt'):
    if image in row_of and attribute in column_of and visible:
      values[row_of[image], column_of[attribute]] = present
  return tuple(names), values


def _attribute_rows(path: Path) -> Iterator[tuple[str, str, float, bool]]:
  """Image, attribute, whether it is there, whether it could be seen. Some real lines have more cells at their end."""
  if not path.is_file():
    raise DataError(f'{os.fspath(path)}: is missing; fetch it')
  for line, row in rows_apart_by_blanks(path):
    if len(row) < 4 or row[2] not in ('0', '1') or row[3] not in ('1', '2', '3', '4'):
      refuse_line(path, line, f'must be image, attribute, 0 or 1, certainty 1 to 4, but is {" ".join(row)[:60]!r}')
    yield row[0], row[1], float(row[2]), int(row[3]) > NOT_VISIBLE
