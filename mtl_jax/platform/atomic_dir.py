"""Creates a folder atomically: written under a hidden name beside its place, then renamed."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from mtl_jax.errors import DataError, one_line
from mtl_jax.platform import file_lock


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
  """Yields an empty folder that becomes `out` when the block ends well, and is removed when it does not.

  What a killed process left is removed first. `sync` what is written there, lest a power cut lose it after the rename.

  Raises:
    DataError: where `out` is taken or being made by another process, the disk is full or the place cannot be written.
  """
  out = Path(out).resolve()
  partial = out.parent / f'.{out.name}.partial'
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out):
      if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f'{out}: exists and is no empty folder; remove it or choose another --out')
      if partial.exists():
        shutil.rmtree(partial)
      try:
        partial.mkdir()
        yield partial
        sync(partial)
        partial.rename(out)
        sync(out.parent)
      finally:
        shutil.rmtree(partial, ignore_errors=True)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise DataError(f'{out}: the disk is full; make room, or choose another folder') from error
    raise DataError(f'{out}: cannot be made: {one_line(error)}') from error


def sync(path: Path) -> None:
  """Waits until a file or folder is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
  """Holds the lock file beside `out`; the system lets go of the lock when the process dies."""
  path = out.parent / f'.{out.name}.lock'

  def refuse() -> NoReturn:
    raise DataError(f'{out}: another process is making it; wait for that, or choose another --out')

  while True:
    with file_lock.hold(path, waiting=refuse) as file:
      if not _is_at(path, file.fileno()):
        continue  # Its last holder has just finished and removed the file.
      try:
        yield
      finally:
        path.unlink(missing_ok=True)
      return


def _is_at(path: Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), path.stat())
  except FileNotFoundError:
    return False
