"""Holds a lock file, which the system releases when the process dies; some file systems have no locks."""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mtl_jax.platform import atomic_write

log = logging.getLogger('mtl_jax')

# What Lustre without -o flock, some NFS and FUSE file systems answer.
NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def hold(path: Path, *, waiting: Callable[[], Any] = bool) -> Iterator[IO[str]]:
  """Yields the open lock file, once others have let go of it; its folder is made if need be.

  Where the file system has no locks, a line says that nothing guards the folder.

  Args:
    path: of the lock file.
    waiting: called when another process holds it; raises where that is not to be waited for.

  Raises:
    CheckpointError: where the file is a symbolic link.
    OSError: where it cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic_write.refuse_link(path)
  flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
  with open(path, 'a', opener=lambda name, _: os.open(name, flags, 0o666)) as handle:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      waiting()
      fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
      if error.errno not in NONE_HERE:
        raise
      log.warning('warning: the file system of %s has no locks: see that one process writes there', path.parent)
    yield handle
