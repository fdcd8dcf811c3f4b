"""Reads a data set that TensorFlow Datasets has prepared, such as its celeb_a.

Files in array_record or parquet are read without TensorFlow; others, such as tfrecord, in order and with TensorFlow, if
that is installed (the extra `tf`). Nothing is downloaded.
"""

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

from mtl_jax.data.source import POINTS, OpenedSource, Record, landmark_task
from mtl_jax.errors import DataError, one_line
from mtl_jax.tasks import BinaryTask, Task

SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}  # TFDS's names, and ours.


def open_tfds(name: str, directory: Path | None) -> OpenedSource:
  """Opens a set that TFDS has prepared, with features like those of its `celeb_a`.

  These are `image`, and `landmarks` (numbers in pixels of the image, named POINT_x and POINT_y) or `attributes` (bools)
  or both, and perhaps `identity` (a whole number, or one such feature). Splits train, validation and test are read,
  labels in order, images when they are asked for; since TFDS keeps no names, an image's is SPLIT/ROW.

  Args:
    name: as TFDS writes it: `celeb_a`, `my_set/config:1.0.0`.
    directory: TFDS's data_dir; None takes TFDS's own default.

  Raises:
    DataError: where TFDS has not prepared the set there, in files that only TensorFlow reads, or with other features.
  """
  way_out = (
    "write it into a folder of its own with pip install 'mtl_jax[tf]' and "
    f'tfds build {name} --file_format=array_record --data_dir=DIR, which downloads it; '
    'CelebA from files had elsewhere is read with mtl-jax prepare celeba --source DIR'
  )
  try:
    builder = _builder(name, directory, way_out=way_out)
    examples, features = _examples(builder), _tree(builder.info.features)
    tasks, person = _tasks(features), _person(features)
  except ImportError as error:
    said = f'TFDS cannot be loaded: {one_line(error)}'
    needs_it = 'tensorflow' in str(error)
    raise DataError(f'tfds:{name}: {f"TFDS needs TensorFlow to read it; {way_out}" if needs_it else said}') from error
  except ValueError as error:
    raise DataError(f'tfds:{name}: {error}') from error

  def read(split: str, row: int) -> Any:
    try:
      return examples[split][row]
    except Exception as error:  # Each file format has errors of its own.
      raise DataError(f'tfds:{name}: {split}/{row} cannot be read ({one_line(error)}); build the set again') from error

  def image(split: str, row: int) -> bytes:
    return read(split, row)['image']

  def records() -> Iterator[Record]:
    for split, row in ((split, row) for split, own in examples.items() for row in range(len(own))):
      example = read(split, row)
      labels = {task.name: np.array([example[task.name][each] for each in task.labels], np.float32) for task in tasks}
      number: Any = example if person else -1
      for part in person:
        number = number[part]
      yield Record(f'{split}/{row}', SPLITS[split], partial(image, split, row), labels, int(number))

  full_name = builder.info.full_name
  left_out = [split for split in builder.info.splits if split not in SPLITS]
  notes = tuple(f'warning: the split {split} of {full_name} is left out' for split in left_out)
  return OpenedSource(f'tfds:{name}', tasks, records, notes=notes, options={'tfds': full_name})


def _builder(name: str, directory: Path | None, *, way_out: str) -> Any:
  """TFDS's own builder of what it has written, made from its files alone, so that it can download nothing."""
  logging.getLogger('absl').setLevel(logging.ERROR)
  import tensorflow_datasets as tfds  # Takes half a second, so other sets do not wait for it.
  from tensorflow_datasets.core.read_only_builder import builder_from_files

  where = f'--source {directory}' if directory else "TFDS's default data_dir (--source DIR takes another)"
  if directory and not directory.is_dir():
    raise ValueError(f'{where} is no folder; give the data_dir that TFDS writes into')
  try:
    return builder_from_files(name, data_dir=str(directory) if directory else None)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(f'TFDS has not written this set in {where}; {way_out}') from error
  except ImportError:
    raise
  except Exception as error:  # A name that is none, or broken files: errors of JSON, of protobuf, of TFDS.
    raise ValueError(f'cannot be opened in {where}: {str(error).partition(chr(10))[0]}') from error


def _examples(builder: Any) -> dict[str, Sequence[Any]]:
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
      raise ValueError(said) from error
  in_order = tfds.ReadConfig(interleave_cycle_length=1)
  try:
    return {
      split: _Spooled(tfds.as_numpy(builder.as_dataset(split=split, decoders=skip, read_config=in_order)))
      for split in splits
    }
  except Exception as error:  # TensorFlow has errors of its own.
    raise ValueError(f'TensorFlow cannot read its {form} files: {one_line(error)[:300]}') from error


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


def _tasks(features: Mapping[str, Any]) -> tuple[Task, ...]:
  """The tasks of these features. Raises ValueError where there are none."""
  if type(features.get('image')).__name__ != 'Image':
    raise ValueError(f'has no feature image that is an image; its features are {", ".join(features)}')
  tasks: list[Task] = []
  if attributes := _columns(features, 'attributes', kinds='b', what='bool'):
    tasks.append(BinaryTask('attributes', attributes))
  if landmarks := _columns(features, 'landmarks', kinds='iuf', what='number of pixels'):
    # As CelebA's own files have them, since TFDS forgets the order of its features.
    number = {point: place for place, point in enumerate(POINTS)}
    tasks.append(landmark_task(sorted(landmarks, key=lambda column: (number.get(column[:-2], len(number)), column))))
  if not tasks:
    raise ValueError(f'has neither landmarks nor attributes; its features are {", ".join(features)}')
  return tuple(tasks)


def _columns(features: Mapping[str, Any], group: str, *, kinds: str, what: str) -> tuple[str, ...]:
  """The names in a group of labels, each one value of NumPy's `kinds`; empty where there is no such group."""
  labels = features.get(group, {})
  if not isinstance(labels, dict):
    raise ValueError(f'its feature {group} must be a group of named labels')
  for label, feature in labels.items():
    if not _is_scalar(feature, kinds):
      raise ValueError(f'its feature {group}/{label} must be a single {what}')
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
