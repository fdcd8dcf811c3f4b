"""Addresses of buckets, such as gs://bucket/run: told from local paths, opened through fsspec, failures in one line.

Everything else here sees a bucket through `Bucket`: whole objects by name, each with a version that changes with it.
"""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mtl_jax.errors import BucketError, UserError, one_line

EXTRAS = {'gs': 'gcs', 'gcs': 'gcs', 's3': 's3', 's3a': 's3'}  # Of mtl_jax, which install what opens them.
# What changes with an object, by the first of these that its store tells: S3, Google, others, a local folder.
VERSIONS = ('ETag', 'generation', 'etag', 'md5Hash', 'mtime', 'LastModified', 'created')
AT_ONCE_BYTES = 8 * 2**20  # Smaller files are read before they are sent: they may grow meanwhile.


def is_address(place: Path | str) -> bool:
  """Whether this is the address of a bucket and no local path."""
  return bool(re.match(r'[a-z][a-z0-9+.-]*://', str(place)))


def place(text: str) -> Path | str:
  """A place given on the command line: an address, or a local path. Raises BucketError for half an address."""
  return absolute(text) if is_address(text) else Path(text)


def local_path(text: str) -> Path:
  """A place given on the command line that must be local. Raises BucketError for an address."""
  if is_address(text):
    raise BucketError(f'{text}: only --workdir and prepared sets may lie in a bucket; name a local path')
  return Path(text)


def absolute(place: Path | str) -> str:
  """The place as it is found from any folder. Raises BucketError for an address that names no bucket."""
  if not is_address(place):
    return str(Path(place).resolve())
  scheme, _, rest = str(place).partition('://')
  if any(part in ('', '.', '..') for part in rest.rstrip('/').split('/')):
    raise BucketError(f'{place}: names no bucket')
  return f'{scheme}://{rest.rstrip("/")}'


def cache() -> Path:
  """The folder of local copies."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mtl_jax'


def name(address: str) -> str:
  """The last part of an address."""
  return address.rpartition('/')[2]


@dataclasses.dataclass(frozen=True)
class Bucket:
  """The objects under one address. All that goes wrong is a BucketError, but for an object that is not there.

  Attributes:
    address: without a slash at its end.
    files: fsspec's file system.
    root: the address as that system writes it.
  """

  address: str
  files: Any
  root: str

  @classmethod
  def at(cls, address: str) -> 'Bucket':
    """Opens an address. Raises BucketError where there is nothing here that can."""
    import fsspec

    scheme = address.partition(':')[0]
    try:
      files, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
      need = f"pip install 'mtl_jax[{EXTRAS[scheme]}]'" if scheme in EXTRAS else one_line(error)
      raise BucketError(f'{address}: what opens {scheme}:// is not installed: {need}') from error
    except Exception as error:  # Each file system has exceptions of its own.
      raise BucketError(f'{address}: cannot be opened: {one_line(error)}') from error
    # It logs tracebacks of what it raises, which is told in one line.
    logging.getLogger(type(files).__module__.partition('.')[0]).setLevel(logging.CRITICAL)
    return cls(address, files, root.rstrip('/'))

  def versions(self) -> dict[str, str]:
    """Every object's version, by its name."""
    with self._told('listed'):
      self.files.invalidate_cache()
      try:
        found = self.files.find(self.root, detail=True)
      except FileNotFoundError:
        return {}
    prefix = f'{self.root}/'
    infos = {path.removeprefix(prefix): info for path, info in found.items() if path.startswith(prefix)}
    names = {name: info for name, info in infos.items() if info.get('type') == 'file' and not name.endswith('/')}
    for name in names:
      if name.startswith('/') or '..' in PurePosixPath(name).parts:
        raise BucketError(f'{self.address}: holds an object named {name!r}, which no run has written; remove it')
    return {name: _version(info) for name, info in names.items()}

  def size(self, name: str) -> int:
    """In bytes. Raises FileNotFoundError."""
    with self._told('read'):
      return self.files.info(f'{self.root}/{name}')['size']

  def read(self, name: str) -> bytes | None:
    """What a small object holds; None where it is not there."""
    with self._told('read'), contextlib.suppress(FileNotFoundError):
      self.files.invalidate_cache()
      return self.files.cat_file(f'{self.root}/{name}')

  def write(self, name: str, content: bytes, *, only_new: bool = False) -> None:
    """Writes an object. Raises FileExistsError, or BucketError, where it is there and should be new."""
    with self._told('written'):
      self.files.pipe_file(f'{self.root}/{name}', content, mode='create' if only_new else 'overwrite')

  def get(self, name: str, path: Path, *, advance: Callable[[int], Any]) -> None:
    """Copies an object into a file, whole or not at all; `advance` hears of bytes. Raises FileNotFoundError."""
    from fsspec.callbacks import Callback

    class Advance(Callback):
      def relative_update(self, inc: int = 1) -> None:
        advance(inc)

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    with self._told('read'):
      self.files.get_file(f'{self.root}/{name}', str(partial), callback=Advance())
    partial.replace(path)

  def put(self, path: Path, name: str) -> str:
    """Copies a file into an object, and returns its version. Raises FileNotFoundError where the file is gone."""
    content = path.read_bytes() if path.stat().st_size < AT_ONCE_BYTES else None
    with self._told('written'):
      if content is not None:
        self.files.pipe_file(f'{self.root}/{name}', content)
      elif path.exists():
        self.files.put_file(str(path), f'{self.root}/{name}')
      return _version(self.files.info(f'{self.root}/{name}'))

  def remove(self, name: str) -> None:
    """Removes an object, if it is there."""
    with self._told('written'), contextlib.suppress(FileNotFoundError):
      self.files.rm_file(f'{self.root}/{name}')

  @contextlib.contextmanager
  def _told(self, what: str) -> Iterator[None]:
    try:
      yield
    except (UserError, FileExistsError):
      raise
    except Exception as error:  # Each file system has exceptions of its own, and those of what it stands on.
      if what == 'read' and isinstance(error, FileNotFoundError):
        raise
      reason = one_line(error)[:300] or type(error).__name__
      raise BucketError(f'{self.address}: cannot be {what}: {reason}') from error


def _version(info: dict[str, Any]) -> str:
  told = next((info[key] for key in VERSIONS if info.get(key) is not None), '')
  return f'{info["size"]} {told}'
