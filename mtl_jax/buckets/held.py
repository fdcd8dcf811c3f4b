"""Holding a folder of the cache for one process of this host; the system lets go of it when the process dies."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtl_jax.errors import BucketError, one_line


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
  """Yields whether the lock file could be had; with `wait` it always can, once others have let go of it."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open('a')
  except OSError as error:
    raise BucketError(f'{path.parent}: cannot be written: {one_line(error)}; set XDG_CACHE_HOME') from error
  with handle:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
      return
    yield True
