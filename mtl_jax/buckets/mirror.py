"""A run's folder and its copy in a bucket: pulled once, then pushed as it changes; a checkpoint there is whole or cut.

A checkpoint's `digests.json` is what makes it complete (see `training/digests.py`): it is the last of its files to go
up and the first to be removed, and a checkpoint without it is passed over. So it is with a prepared set's
`schema.json`, which a demo has in its folder.
"""

import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtl_jax import whole_file
from mtl_jax.buckets import transfer
from mtl_jax.buckets.address import Bucket
from mtl_jax.errors import BucketError

log = logging.getLogger('mtl_jax')

MARK = 'digests.json'
# What is being written, and what a process holds while it lives.
TEMPORARY = re.compile(r'(.*/)?(\.lock|\.[^/]*\.lock|[^/]*\.partial|[^/]*\.orbax-checkpoint-tmp[^/]*)(/.*)?')
CHECKPOINT = re.compile(r'((?:.*/)?checkpoints/\d+)/.*')


class Mirror:
  """A local folder whose files are also objects of a bucket.

  Attributes:
    folder: the local one.
    whole: it holds all that the bucket held when it was last pulled, so it can only be ahead of it.
    id: of this copy, for as long as it exists.
    beat: called after every file that was copied or removed.
  """

  def __init__(self, bucket: Bucket, folder: Path, record: Path):
    """Of the bucket and the folder; `record` is the file that keeps what is known of both."""
    self.bucket, self.folder = bucket, folder
    self.beat: Callable[[], Any] = lambda: None
    self._record, self._alone = record, threading.Lock()
    kept = _read(record)
    self.id: str = kept.get('id', uuid.uuid4().hex)
    self.whole: bool = kept.get('whole', False)
    # Files that are alike here and there, by name: size, time of the last change in ns, version of the object.
    self._known: dict[str, list[Any]] = kept.get('known', {})

  def pull(self, wanted: Callable[[str], bool] | None = None) -> None:
    """Makes the folder what the bucket is, of all names or those wanted: files that it lacks are removed.

    Of the others only files stay that have not changed since they were last alike here and there.
    """
    self.whole, every, wanted = False, wanted is None, wanted or bool
    self._save()
    there = {name: version for name, version in self.bucket.versions().items() if not TEMPORARY.fullmatch(name)}
    cut = _without_mark(there)
    for checkpoint in sorted({_checkpoint(name) for name in cut}):
      log.warning('warning: %s/%s is an upload that was cut short; it is passed over', self.bucket.address, checkpoint)
    here = _files(self.folder)
    for name, stat in here.items():
      # What is not wanted is not fetched: where it has changed here, a push would write it over newer work.
      stale = not wanted(name) and self._known.get(name, [])[:2] != list(stat)
      if name not in there or name in cut or stale:
        (self.folder / name).unlink()
    _remove_empty(self.folder)
    self._known = {name: known for name, known in self._known.items() if name in there and name not in cut}
    new = [
      name
      for name, version in there.items()
      if wanted(name) and name not in cut and self._known.get(name) != [*here.get(name, ()), version]
    ]
    self._download(new, there)
    self._known |= {name: [-1, -1, there[name]] for name in cut}  # Gone here, so the next push removes them there.
    self.whole = every
    self._save()

  def is_intact(self) -> bool:
    """Whether the folder still has the configuration and the newest checkpoint that it once had."""
    here, had = _files(self.folder), self._had()
    return ('config.json' in here or 'config.json' not in had) and _newest(here) >= _newest(had)

  def _download(self, names: Iterable[str], versions: dict[str, str]) -> None:
    def done(name: str) -> None:
      self._known[name] = [*_stat(self.folder / name), versions[name]]
      self.beat()

    sizes = {name: int(versions[name].split()[0]) for name in names}
    if sizes:
      try:
        transfer.download(self.bucket, sizes, self.folder, done=done)
      except FileNotFoundError as error:
        raise BucketError(f'{self.bucket.address}: is changing; once its run has ended, try again') from error

  def push(self, *, remove: bool = True) -> None:
    """Copies what has changed here since it was last alike; with `remove`, removes there what is gone here.

    Raises:
      BucketError: where the bucket cannot be written, or the folder has vanished.
    """
    with self._alone:
      here = {name: stat for name, stat in _files(self.folder).items() if not TEMPORARY.fullmatch(name)}
      unfinished = _without_mark(here)
      if (had := self._had()) and not here.keys() & had:
        raise BucketError(f'{self.bucket.address}: its copy {self.folder} has vanished; nothing more is uploaded')
      changed = [name for name in here if name not in unfinished and self._known.get(name, [])[:2] != list(here[name])]
      try:
        self._upload(changed, here)
        if remove:
          self._remove(self._known.keys() - here.keys())
      finally:
        self._save()

  def _upload(self, changed: list[str], here: dict[str, tuple[int, int]]) -> None:
    def done(name: str, version: str) -> None:
      self._known[name] = [*here[name], version]
      self.beat()

    paths = {name: self.folder / name for name in changed}
    marks = {name: paths.pop(name) for name in changed if _is_mark(name)}
    for name in marks.keys() & self._known.keys():  # Saved again: until its files are there, it is cut short.
      self.bucket.remove(name)
    vanished = {_checkpoint(name) for name in transfer.upload(self.bucket, paths, done=done)}
    marks = {name: path for name, path in marks.items() if _checkpoint(name) not in vanished}
    transfer.upload(self.bucket, marks, done=done)

  def _remove(self, gone: Iterable[str]) -> None:
    for name in sorted(gone, key=lambda name: not _is_mark(name)):
      self.bucket.remove(name)
      del self._known[name]
      self.beat()

  def _had(self) -> set[str]:
    """Files that the folder has had, as far as is known; not what was cut short in the bucket."""
    return {name for name, (size, *_) in self._known.items() if size >= 0}

  def _save(self) -> None:
    content = {'id': self.id, 'whole': self.whole, 'known': self._known}
    whole_file.write(self._record, json.dumps(content))


def _read(record: Path) -> dict[str, Any]:
  """What was kept; nothing where it is not as it was written."""
  try:
    kept = json.loads(record.read_text())
  except (OSError, ValueError):
    return {}
  return kept if isinstance(kept, dict) else {}


def _checkpoint(name: str) -> str:
  """The folder of the checkpoint that a file belongs to; empty for any other file."""
  found = CHECKPOINT.fullmatch(name)
  return found[1] if found else ''


def _is_mark(name: str) -> bool:
  return name == f'{_checkpoint(name)}/{MARK}' or f'/{name}'.endswith('/schema.json')


def _newest(names: Iterable[str]) -> int:
  """The step of the newest complete checkpoint; -1 where there is none."""
  return max((int(of.rpartition('/')[2]) for name in names if (of := _checkpoint(name)) and _is_mark(name)), default=-1)


def _without_mark(names: Iterable[str]) -> set[str]:
  """Files of checkpoints that are not complete."""
  names = set(names)
  return {name for name in names if (of := _checkpoint(name)) and f'{of}/{MARK}' not in names}


def _files(folder: Path) -> dict[str, tuple[int, int]]:
  """Size and time of the last change in ns of every file, by its name; of one that is just being removed, nothing."""
  found = {}
  for parent, _, names in os.walk(folder):
    for name in names:
      path = Path(parent, name)
      if stat := _stat(path):
        found[path.relative_to(folder).as_posix()] = stat
  return found


def _remove_empty(folder: Path) -> None:
  """Removes folders without files, itself too: an empty one would be taken for a checkpoint, or a run."""
  for parent, _, _ in os.walk(folder, topdown=False):
    with suppress(OSError):
      Path(parent).rmdir()


def _stat(path: Path) -> tuple[int, int] | tuple[()]:
  try:
    stat = path.stat()
  except FileNotFoundError:
    return ()
  return stat.st_size, stat.st_mtime_ns
