"""Opens a data set that the user describes: a Python file whose `open_source(directory)` gives a `Source`.

What goes wrong in that file, or in what it gives, is told in one line that names the file.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.config import choose
from mtl_jax.data.source import Record, Source
from mtl_jax.errors import DataError
from mtl_jax.platform import user_file
from mtl_jax.tasks import Task

FUNCTION = 'open_source'


@dataclasses.dataclass(eq=False)
class CheckedSource:
  """A `Source` whose records are checked as they come; the fields are those of the one it wraps."""

  path: Path
  source: Source
  name: str
  tasks: tuple[Task, ...]
  notes: tuple[str, ...]
  options: dict[str, Any]

  def records(self) -> Iterator[Record]:
    with user_file.blamed(self.path, raises=DataError):
      records = iter(self.source.records())
    while True:
      with user_file.blamed(self.path, raises=DataError):
        record = next(records, None)
      if record is None:
        return
      yield self._checked(record)

  def _checked(self, record: Any) -> Record:
    """The record with labels as arrays, and with errors of the function that gives its bytes told in one line."""
    if not isinstance(record, Record):
      raise DataError(f'{self.path}: records() must give values of Record, not of {type(record).__name__}')
    if not isinstance(record.name, str):
      raise DataError(f'{self.path}: the name of a record must be text, not {record.name!r:.60}')
    if not isinstance(record.labels, Mapping):
      raise DataError(f'{self.path}: {record.name!r}: labels must be a dictionary by task')
    labels = {}
    for task, values in record.labels.items():
      choose(task, [known.name for known in self.tasks], field=f'{self.path}: {record.name!r}: labels')
      try:
        labels[task] = np.asarray(values, np.float32)
      except (TypeError, ValueError):
        raise DataError(
          f'{self.path}: {record.name!r}: the labels of {task} must be numbers, not {values!r:.60}'
        ) from None
    return dataclasses.replace(record, image=self._image(record.image, record.name), labels=labels)

  def _image(self, image: Any, name: str) -> Path | Callable[[], bytes]:
    if isinstance(image, str | Path):
      return Path(image)
    if not callable(image):
      raise DataError(f'{self.path}: the image of {name!r} must be a Path, or a function that gives its bytes')

    def read() -> bytes:
      with user_file.blamed(self.path, raises=DataError):
        content = image()
      if not isinstance(content, bytes):
        raise DataError(f'{self.path}: the image of {name!r} must be bytes, not {type(content).__name__}')
      return content

    return read


def open_own(path: Path, directory: Path) -> CheckedSource:
  """Calls `open_source(directory)` of a Python file.

  Raises:
    DataError: where there is no such file or function, it fails, or what it gives is no `Source`.
  """
  if not path.is_file():
    raise DataError(f'prepare: no file {path}; it must define {FUNCTION}(directory)')
  source = user_file.call(path, FUNCTION, Path(directory), raises=DataError)
  missing = [part for part in ('name', 'tasks', 'records') if not hasattr(source, part)]
  if missing:
    raise DataError(f'{path}: what {FUNCTION} gives has no {missing[0]}; see Source in mtl_jax/data/source.py')
  with user_file.blamed(path, raises=DataError):
    name, tasks = str(source.name), tuple(source.tasks)
    notes, options = tuple(getattr(source, 'notes', ())), dict(getattr(source, 'options', {}))
    json.dumps(options)
  _check_tasks(path, tasks)
  return CheckedSource(path, source, name=name, tasks=tasks, notes=notes, options=options)


def _check_tasks(path: Path, tasks: tuple[Any, ...]) -> None:
  names = [task.name if isinstance(task, Task) else None for task in tasks]
  if not names or None in names:
    raise DataError(f'{path}: tasks must be values of mtl_jax.tasks, at least one')
  for i, task in enumerate(tasks):
    if task.name in names[:i]:
      raise DataError(f'{path}: two tasks are named {task.name!r}; rename one')
    if not task.name.isidentifier():
      raise DataError(f'{path}: the task {task.name!r} must be named by letters, digits and _')
    if not task.labels or len(set(task.labels)) != len(task.labels):
      raise DataError(f'{path}: the labels of task {task.name!r} must be different names, at least one')
