"""Prepared sets in buckets: copied once into a local cache, from which they are opened; new ones, uploaded.

CACHE/sets/<checksum>/<name>   the set of that checksum, whole or not there
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mtl_jax.data.store import reader as store
from mtl_jax.data.store.reader import Store
from mtl_jax.errors import BucketError, DataError, one_line
from mtl_jax.platform import address as addresses
from mtl_jax.platform import file_lock, json_file
from mtl_jax.platform.progress_bar import bar

log = logging.getLogger('mtl_jax')

AT_A_TIME = 8


def open_set(place: Path | str, *, corrupt_share: float = 0.0) -> Store:
  """`open_store` of a local folder, or of a bucket's set in the cache; one that was damaged there is fetched again."""
  if not addresses.is_address(place):
    return store.open_store(Path(place), corrupt_share=corrupt_share)
  address, again = addresses.absolute(place), False
  while True:
    folder, fresh = _fetched(address, again=again)
    try:
      return store.open_store(folder, corrupt_share=corrupt_share)
    except DataError as error:
      if fresh:
        raise DataError(f'{address}: {error}') from error
      log.warning('warning: %s is fetched again, for its copy is damaged: %s', address, error)
    again = True


def _fetched(address: str, *, again: bool) -> tuple[Path, bool]:
  """The set's folder in the cache, and whether it was copied now; of several processes one copies."""
  files, root = addresses.opened(address)
  schema, checksum, names = _read_schema(address, files, root)
  folder = addresses.cache() / 'sets' / checksum
  with file_lock.hold(folder.with_name(f'.{checksum}.lock')):
    if not again and folder.is_dir() and (inner := next(folder.iterdir(), None)):
      return inner, False
    log.info('%s: copying it into %s', address, folder)
    partial = folder.with_name(f'.{checksum}.partial')
    inner = partial / addresses.name(address)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
      for name in names:
        (inner / name).parent.mkdir(parents=True, exist_ok=True)
      with addresses.wrap_errors(address, f'copied into {folder} (make room there, or set XDG_CACHE_HOME)'):
        _each(lambda name: files.get_file(f'{root}/{name}', str(inner / name)), names, title='download')
      (inner / 'schema.json').write_bytes(schema)
      partial.rename(folder)
    except FileNotFoundError as error:
      raise DataError(f'{address}: {one_line(error)}: is missing; prepare the set again') from error
    finally:
      shutil.rmtree(partial, ignore_errors=True)
  return folder / inner.name, True


def _each(act: Callable[[str], Any], names: Sequence[str], *, title: str) -> None:
  """Acts on each name, several at a time; what has not begun when one fails is left out."""
  with bar(len(names), description=title, unit='file') as progress, ThreadPoolExecutor(AT_A_TIME) as pool:
    for _ in pool.map(act, names):
      progress.update()


def _read_schema(address: str, files: Any, root: str) -> tuple[bytes, str, list[str]]:
  """The content of schema.json, the set's checksum, and the names of its other files."""
  try:
    with addresses.wrap_errors(address, 'read'):
      content = files.cat_file(f'{root}/schema.json')
  except FileNotFoundError:
    make = f'mtl-jax prepare SET --source DIR --out {address}'
    raise DataError(f'{address}: is no prepared set (it has no schema.json); make one with: {make}') from None
  place = f'{address}/schema.json'
  schema = store.parse_schema(content, place=place)
  names = list(json_file.convert(schema, store.Header, place=place, advice=store.AGAIN, raises=DataError).files)
  if outside := [path for path in names if path.startswith('/') or '..' in PurePosixPath(path).parts]:
    raise DataError(f'{place} is not as it was written: {outside[0]} lies outside; {store.AGAIN}')
  return content, schema['checksum'], names


@contextmanager
def new_set(place: Path | str) -> Iterator[Path]:
  """Yields where to prepare a set: the local folder itself, or one whose content then becomes the bucket's.

  Raises:
    BucketError: where the bucket holds something there, or cannot be written; what was prepared is kept then.
  """
  if not addresses.is_address(place):
    yield Path(place)
    return
  address = addresses.absolute(place)
  files, root = addresses.opened(address)
  with addresses.wrap_errors(address, 'listed'):
    there = sorted(path.removeprefix(f'{root}/') for path in files.find(root))
  if there:
    found = 'a prepared set' if 'schema.json' in there else f'{there[0]} and no schema.json, as after a cut upload'
    raise BucketError(f'{address}: already holds {found}; remove it or choose another --out')
  addresses.cache().mkdir(parents=True, exist_ok=True)
  temporary = Path(tempfile.mkdtemp(prefix='prepare-', dir=addresses.cache()))
  folder, prepared = temporary / addresses.name(address), False
  try:
    yield folder
    prepared = True
    log.info('uploading %s to %s', folder, address)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()]
    names.remove('schema.json')
    with addresses.wrap_errors(address, f'written; the prepared set is in {folder}: copy it there, schema.json last'):
      _each(lambda name: files.put_file(str(folder / name), f'{root}/{name}'), names, title='upload')
      files.put_file(str(folder / 'schema.json'), f'{root}/schema.json')  # With it the set is complete.
    prepared = False
  except KeyboardInterrupt:
    if prepared:
      log.warning('warning: %s is not complete; the prepared set is in %s: copy it there', address, folder)
    raise
  finally:
    if not prepared:  # Hours may have gone into what is.
      shutil.rmtree(temporary, ignore_errors=True)
