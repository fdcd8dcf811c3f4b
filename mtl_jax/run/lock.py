"""Holds a working directory for one run, whose processes on all hosts must see the same folder or bucket."""

import errno
import logging
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import jax

from mtl_jax.errors import CheckpointError, LauncherError
from mtl_jax.platform import address, atomic_write, file_lock, processes

log = logging.getLogger('mtl_jax')

LOCK = '.lock'  # The file that the run holds which writes here; it names that run's first process.
HOLDER = f'process {os.getpid()} of {platform.node()} since {time.time_ns()} ns\n'
SHARED_SECS = 20.0  # In which what one host writes is seen by the others.


@contextmanager
def hold(workdir: Path) -> Iterator[None]:
  """Holds a working directory for one run, and makes it if need be.

  One in a bucket is taken from whoever holds it, who notices at the next save: see `check_held`.

  Raises:
    CheckpointError: while another run holds it, or where it cannot be written (any more) or is not seen by all
      processes.
    LauncherError: where the devices here are part of a TPU slice whose other processes do not know of each other.
  """
  if jax.process_count() != processes.count():
    raise LauncherError(
      f'the devices here belong to {jax.process_count()} processes, but this one was started by itself; '
      'start all of them as docs/scale.md says'
    )
  try:
    if processes.index() != 0:  # The first process holds it for all.
      _check_shared(workdir, processes.from_first('workdir', None))
      yield
    else:
      with _held(workdir):
        processes.from_first('workdir', HOLDER)
        yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
      raise
    raise CheckpointError(
      f'--workdir: {workdir} cannot be written: {error.strerror}; what was saved before is as it was: make room, and '
      'the same command goes on from there'
    ) from error


@contextmanager
def _held(workdir: Path) -> Iterator[None]:
  if re.match(r'\w+:/[^/]', str(workdir)):  # As Path('gs://b/run') writes it.
    raise CheckpointError(f'--workdir: {workdir} has lost a slash; give the address as text')
  if not address.is_local(workdir):
    if before := _holder(workdir):
      log.info('%s is taken over from %s; if that still runs, it ends at its next save', workdir, before)
    atomic_write.write(workdir / LOCK, HOLDER)
    yield
    return

  def refuse() -> NoReturn:
    raise CheckpointError(f'--workdir: another run is writing into {workdir}; wait for it or take another')

  with ExitStack() as stack:
    try:
      handle = stack.enter_context(file_lock.hold(workdir / LOCK, waiting=refuse))
    except OSError as error:
      raise CheckpointError(f'--workdir: cannot write into {workdir}: {error.strerror}') from error
    handle.truncate(0)
    handle.write(HOLDER)
    handle.flush()
    yield


def check_held(workdir: Path) -> None:
  """Raises CheckpointError, in the first process, where another run has taken a directory in a bucket."""
  if processes.index() == 0 and not address.is_local(workdir):
    holder = _holder(workdir)
    if holder not in ('', HOLDER.strip()):
      raise CheckpointError(f'--workdir: {workdir} was taken over by {holder}; this run saves nothing more')


def _holder(workdir: Path) -> str:
  """The process that took a directory in a bucket last, in words; empty where none has."""
  with address.wrap_errors(str(workdir), 'read'):
    return (workdir / LOCK).read_text().strip() if (workdir / LOCK).exists() else ''


def _check_shared(workdir: Path, holder: str) -> None:
  """Raises CheckpointError if this process does not see there what process 0 has written."""
  deadline = time.monotonic() + SHARED_SECS
  while time.monotonic() < deadline:
    with suppress(OSError):
      if (workdir / LOCK).read_text() == holder:
        return
    time.sleep(0.1)
  raise CheckpointError(
    f'--workdir: {platform.node()} does not see in {workdir} what process 0 writes there; '
    'name a folder that all hosts share, or one in a bucket (gs://)'
  )
