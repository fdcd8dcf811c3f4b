"""Reads a set that TensorFlow Datasets has prepared, such as its celeb_a; without TensorFlow where TFDS can.

It can where it has written array_record (or parquet) files. Others, such as tfrecord, it reads in order and with
TensorFlow, if that is installed (the extra `tf`). Nothing is downloaded.
"""

import dataclasses
import importlib.util
import logging
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.source import POINTS, Record, landmark_task
from mtl_jax.errors import DataError, one_line
from mtl_jax.tasks import BinaryTask, Task

SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}  # TFDS's names, and ours.


@dataclasses.dataclass(eq=False)
class TfdsSource:
  """A `Source` of examples in files of TFDS; labels are read in order, images when they are asked for.

  Attributes:
    name: `tfds:` and the set's name.
    tasks: `landmarks` and `attributes`, or one of them.
    notes: lines that the user should see.
    options: the set's full name with its version.
    examples: by TFDS's name of a split, its examples, with images still encoded.
    person: the path of the feature that numbers the person; empty where there is none.
  """

  name: str
  tasks: tuple[Task, ...]
  notes: tuple[str, ...]
  options: Mapping[str, Any]
  examples: Mapping[str, Sequence[Any]]
  person: tuple[str, ...]

  def records(self) -> Iterator[Record]:
    for split, examples in self.examples.items():
      for row in range(len(examples)):
        place = f'{split}/{row}'  # TFDS keeps no names.
        example = self._read(split, row)
        labels = {
          task.name: np.array([example[task.name][label] for label in task.labels], np.float32) for task in self.tasks
        }
        person: Any = example if self.person else -1
        for part in self.person:
          person = person[part]
        yield Record(place, SPLITS[split], partial(self._image, split, row), labels, int(person))

  def _read(self, split: str, row: int) -> Any:
    try:
      return self.examples[split][row]
    except Exception as error:  # Each file format has errors of its own.
      raise DataError(f'{self.name}: {split}/{row} cannot be read ({one_line(error)}); build the set again') from error

  def _image(self, split: str, row: int) -> bytes:
    return self._read(split, row)['image']


def open_tfds(name: str, directory: Path | None) -> TfdsSource:
  """Opens a set that TFDS has prepared, with features like those of its `celeb_a`.

  These are `image`, and `landmarks` (numbers in pixels of the image, named POINT_x and POINT_y) or `attributes` (bools)
  or both, and perhaps `identity` (a whole number, or one such feature). Splits train, validation and test are read.

  Args:
    name: as TFDS writes it: `celeb_a`, `my_set/config:1.0.0`.
    directory: TFDS's data_dir; None takes TFDS's own default.

  Raises:
    DataError: where TFDS has not prepared the set there, in files that only TensorFlow reads, or with other features.
  """
  try:
    builder = _builder(name, directory)
    examples = _examples(builder, name=name)
  except ImportError as error:
    if 'tensorflow' not in str(error):
      raise DataError(f'tfds:{name}: TFDS cannot be loaded: {one_line(error)}') from error
    raise DataError(f'tfds:{name}: TFDS needs TensorFlow to read it; {_way_out(name)}') from error
  features, full_name = _tree(builder.info.features), builder.info.full_name
  tasks = _tasks(features, name=name)
  left_out = [split for split in builder.info.splits if split not in SPLITS]
  return TfdsSource(
    name=f'tfds:{name}',
    tasks=tasks,
    notes=tuple(f'warning: the split {split} of {full_name} is left out' for split in left_out),
    options={'tfds': full_name},
    examples=examples,
    person=_person(features),
  )


def _builder(name: str, directory: Path | None) -> Any:
  """TFDS's own builder of what it has written, made from its files alone, so that it can download nothing."""
  logging.getLogger('absl').setLevel(logging.ERROR)
  import tensorflow_datasets as tfds  # Takes half a second, so other sets do not wait for it.
  from tensorflow_datasets.core.read_only_builder import builder_from_files

  where = f'--source {directory}' if directory else "TFDS's default data_dir (--source DIR takes another)"
  if directory and not directory.is_dir():
    raise DataError(f'tfds:{name}: {where} is no folder; give the data_dir that TFDS writes into')
  try:
    return builder_from_files(name, data_dir=str(directory) if directory else None)
  except tfds.core.DatasetNotFoundError as error:
    raise DataError(f'tfds:{name}: TFDS has not written this set in {where}; {_way_out(name)}') from error
  except ImportError:
    raise
  except Exception as error:  # A name that is none, or broken files: errors of JSON, of protobuf, of TFDS.
    said = str(error).partition('\n')[0]
    raise DataError(f'tfds:{name}: cannot be opened in {where}: {said}') from error


def _examples(builder: Any, *, name: str) -> dict[str, Sequence[Any]]:
  """The examples of each split that we know, at random places, with images still encoded."""
  import tensorflow_datasets as tfds

  skip = {'image': tfds.decode.SkipDecoding()} if 'image' in builder.info.features else None
  splits = [split for split in SPLITS if split in builder.info.splits]
  try:
    return {split: builder.as_data_source(split, decoders=skip) for split in splits}
  except NotImplementedError as error:  # TFDS's word for a file format that it cannot read at random places.
    form = getattr(builder.info.file_format, 'value', 'unknown')
    if importlib.util.find_spec('tensorflow') is None:
      said = f"is in {form} files, which TFDS reads with TensorFlow alone; pip install 'mtl_jax[tf]' and try again"
      raise DataError(f'tfds:{name}: {said}') from error
  in_order = tfds.ReadConfig(interleave_cycle_length=1)
  try:
    return {
      split: _Spooled(tfds.as_numpy(builder.as_dataset(split=split, decoders=skip, read_config=in_order)))
      for split in splits
    }
  except Exception as error:  # TensorFlow has errors of its own.
    raise DataError(f'tfds:{name}: TensorFlow cannot read its {form} files: {one_line(error)[:300]}') from error


class _Spooled(Sequence[Any]):
  """Examples that come in order alone, kept in a nameless file to be read at random places, from any thread."""

  def __init__(self, examples: Iterable[Any]):
    self._file, self._ends = tempfile.TemporaryFile(), [0]  # noqa: SIM115
    for example in examples:
      self._file.write(pickle.dumps(example))
      self._ends.append(self._file.tell())
    self._file.flush()

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, row: Any) -> Any:
    begin, end = self._ends[row], self._ends[row + 1]
    return pickle.loads(os.pread(self._file.fileno(), end - begin, begin))


def _tree(feature: Any) -> Any:
  """TFDS's features as plain dictionaries in order of their names, which its own are not."""
  return {name: _tree(part) for name, part in sorted(feature.items())} if hasattr(feature, 'items') else feature


def _tasks(features: Mapping[str, Any], *, name: str) -> tuple[Task, ...]:
  if type(features.get('image')).__name__ != 'Image':
    raise DataError(f'tfds:{name}: has no feature image that is an image; its features are {", ".join(features)}')
  tasks: list[Task] = []
  if attributes := _columns(features, 'attributes', kinds='b', what='bool', name=name):
    tasks.append(BinaryTask('attributes', attributes))
  if landmarks := _columns(features, 'landmarks', kinds='iuf', what='number of pixels', name=name):
    try:
      tasks.append(landmark_task(sorted(landmarks, key=_celeba_order)))
    except ValueError as error:
      raise DataError(f'tfds:{name}: {error}') from error
  if not tasks:
    raise DataError(f'tfds:{name}: has neither landmarks nor attributes; its features are {", ".join(features)}')
  return tuple(tasks)


def _way_out(name: str) -> str:
  return (
    "write it into a folder of its own with pip install 'mtl_jax[tf]' and "
    f'tfds build {name} --file_format=array_record --data_dir=DIR, which downloads it; '
    'CelebA from files had elsewhere is read with mtl-jax prepare celeba --source DIR'
  )


def _columns(features: Mapping[str, Any], group: str, *, kinds: str, what: str, name: str) -> tuple[str, ...]:
  """The names in a group of labels, each one value of NumPy's `kinds`; empty where there is no such group."""
  labels = features.get(group, {})
  if not isinstance(labels, dict):
    raise DataError(f'tfds:{name}: its feature {group} must be a group of named labels')
  for label, feature in labels.items():
    if not _is_scalar(feature, kinds):
      raise DataError(f'tfds:{name}: its feature {group}/{label} must be a single {what}')
  return tuple(labels)


def _person(features: Mapping[str, Any]) -> tuple[str, ...]:
  """The path of the one whole number in the feature `identity`; empty where there is no such thing."""
  path, feature = ('identity',), features.get('identity')
  if isinstance(feature, dict) and len(feature) == 1:
    [(key, feature)] = feature.items()
    path = ('identity', key)
  return path if _is_scalar(feature, 'iu') else ()


def _is_scalar(feature: Any, kinds: str) -> bool:
  return getattr(feature, 'shape', None) == () and np.dtype(feature.np_dtype).kind in kinds


def _celeba_order(column: str) -> tuple[int, str]:
  """Sorts points as CelebA's own files do, since TFDS forgets the order of its features."""
  point = column[:-2]
  return (POINTS.index(point) if point in POINTS else len(POINTS), column)
