"""Bucket addresses, such as gs://bucket/run: recognizes them, opens them with fsspec, and wraps their errors."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from mtl_jax.errors import BucketError, UserError, one_line

EXTRAS = {'gs': 'gcs', 'gcs': 'gcs', 's3': 's3', 's3a': 's3'}  # Of mtl_jax, which install what opens them.


def is_address(place: Path | str) -> bool:
  """True for the address of a bucket, False for a local path."""
  return bool(re.match(r'[a-z][a-z0-9+.-]*://', str(place)))


def local_path(place: Path | str) -> Path:
  """A place that must be local. Raises BucketError for an address."""
  if is_address(place):
    raise BucketError(f'{place}: only --workdir and prepared sets may lie in a bucket; name a local path')
  return _without_circle(place)


def workdir(place: Path | str) -> Path:
  """A run's folder: a local path, or one in gs://, read and written where it is. BucketError for any other store."""
  if not is_address(place):
    return _without_circle(place)
  address = absolute(place)
  if not address.startswith('gs://'):
    raise BucketError(
      f'--workdir: {place}: checkpoints are written to folders and gs:// alone (Orbax opens no other store); take a '
      "local or shared folder, and copy it with the store's own tools"
    )
  os.environ.setdefault('EPATH_USE_TF', 'false')  # Else it opens buckets with TensorFlow, where that is installed.
  from etils import epath

  files, root = opened(address)
  with wrap_errors(address, 'read'):
    files.exists(root)
  return cast(Path, epath.Path(address))


def _without_circle(place: Path | str) -> Path:
  """A local path, with `~` and `~user` as the home folder: a shell leaves them alone in `--out=~/set`.

  Raises:
    UserError: for what is no path, and one of symbolic links that lead to each other.
  """
  try:
    path = Path(place).expanduser()
    path.resolve()
  except TypeError as error:
    raise UserError(f'{place!r} is no path: {one_line(error)}') from None
  except (RuntimeError, OSError, ValueError) as error:  # The first before Python 3.13.
    raise UserError(f'{place}: cannot be followed: {one_line(error)}') from error
  return path


def is_local(place: Path) -> bool:
  """True of paths in a file system: renames, locks, and folders that are there without a file."""
  return not str(place).startswith('gs://')


def absolute(place: Path | str) -> str:
  """The place as it is found from any folder. Raises BucketError for an address that names no bucket."""
  if not is_address(place):
    return str(_without_circle(place).resolve())
  scheme, _, rest = str(place).partition('://')
  if any(part in ('', '.', '..') for part in rest.rstrip('/').split('/')):
    raise BucketError(f'{place}: names no bucket')
  return f'{scheme}://{rest.rstrip("/")}'


def name(place: Path | str) -> str:
  """The last part of a place, also of `.`."""
  return absolute(place).rpartition('/')[2]


def cache() -> Path:
  """The folder of local copies."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mtl_jax'


def opened(address: str) -> tuple[Any, str]:
  """fsspec's file system for an address, and the address as that writes it. Raises BucketError where there is none."""
  import fsspec.config

  scheme = address.partition(':')[0]
  for name in ('gcs', 'gs'):  # A process would not see what others write; epath opens them under the first name.
    fsspec.config.conf.setdefault(name, {}).setdefault('use_listings_cache', False)
  try:
    files, root = fsspec.core.url_to_fs(address)
  except ImportError as error:
    need = f"pip install 'mtl_jax[{EXTRAS[scheme]}]'" if scheme in EXTRAS else one_line(error)
    raise BucketError(f'{address}: what opens {scheme}:// is not installed: {need}') from error
  except Exception as error:  # Each file system has exceptions of its own.
    raise BucketError(f'{address}: cannot be opened: {one_line(error)}') from error
  # It logs tracebacks of what it raises, which becomes a one-line error.
  logging.getLogger(type(files).__module__.partition('.')[0]).setLevel(logging.CRITICAL)
  return files, root.rstrip('/')


@contextlib.contextmanager
def wrap_errors(address: str, what: str) -> Iterator[None]:
  """Turns what a store raises into a BucketError that names the address, but for an object that is not there."""
  try:
    yield
  except (UserError, FileNotFoundError, FileExistsError):
    raise
  except Exception as error:  # Each file system has exceptions of its own, and those of what it stands on.
    reason = one_line(error)[:300] or type(error).__name__
    raise BucketError(f'{address}: cannot be {what}: {reason}') from error
