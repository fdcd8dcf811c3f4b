"""Opens a data set that the user describes: a Python file whose `open_source(directory)` gives a `Source`.

An exception in that file becomes a one-line error that names it; the store checks what it gives, as of every source.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mtl_jax.data.source import OpenedSource, Record, Source
from mtl_jax.errors import DataError
from mtl_jax.platform import user_file
from mtl_jax.tasks import Task, register

FUNCTION = 'open_source'


def open_own(path: Path, directory: Path | None) -> OpenedSource:
  """Calls `open_source(directory)` of a Python file, or `open_source()` where there is no directory.

  Raises:
    DataError: where there is no such file or function, it fails, or what it gives is no `Source`.
  """
  if not path.is_file():
    raise DataError(f'prepare: no file {path}; it must define {FUNCTION}(directory)')
  given = [] if directory is None else [Path(directory)]
  try:
    source = user_file.call(path, FUNCTION, *given, raises=DataError)
  except DataError as error:
    raise error if given else DataError(f'{error}; if it needs a folder, name it: --source DIR') from error
  missing = [part for part in ('name', 'tasks', 'records') if not hasattr(source, part)]
  if missing:
    raise DataError(f'{path}: what {FUNCTION} gives has no {missing[0]}; see Source in mtl_jax/data/source.py')
  with user_file.wrap_errors(path, raises=DataError):
    name, tasks = str(source.name), () if isinstance(source.tasks, Task) else tuple(source.tasks)
    notes, options = tuple(map(str, getattr(source, 'notes', ()))), dict(getattr(source, 'options', {}))
    json.dumps(options, allow_nan=False)
  names = [task.name for task in tasks if isinstance(task, Task)]
  if not tasks or len(names) < len(tasks):
    raise DataError(f'{path}: tasks must be values of mtl_jax.tasks, at least one, in a tuple: (BinaryTask(...),)')
  for task in tasks:
    with user_file.wrap_errors(path, raises=DataError):
      register(type(task))
  if grouped := [name for name in names if '/' in name]:
    raise DataError(f'{path}: the task {grouped[0]!r} must be named by letters, digits and _')
  if len(set(names)) < len(names):
    raise DataError(f'{path}: two tasks are named {max(names, key=names.count)!r}; rename one')
  return OpenedSource(name, tasks, partial(_records, path, source), notes, options)


def _records(path: Path, source: Source) -> Iterator[Any]:
  """The source's records; the errors of these, and of their functions, name the file."""

  def guarded(value: Any) -> Any:
    def call() -> Any:
      with user_file.wrap_errors(path, raises=DataError):
        return value()

    return call if callable(value) else value

  records = guarded(lambda: iter(source.records()))()
  while (record := guarded(partial(next, records, None))()) is not None:
    if isinstance(record, Record) and isinstance(record.labels, Mapping):
      labels = {task: guarded(values) for task, values in record.labels.items()}
      record = dataclasses.replace(record, image=guarded(record.image), labels=labels)
    yield record
