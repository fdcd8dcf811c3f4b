"""Prepared sets in buckets: copied once into a local cache, from which they are opened; new ones, uploaded.

CACHE/sets/<checksum>/<name>   the set of that checksum, whole or not there
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mtl_jax.buckets import address as addresses
from mtl_jax.buckets import transfer
from mtl_jax.buckets.address import Bucket
from mtl_jax.buckets.held import held
from mtl_jax.data import store
from mtl_jax.data.store import Store
from mtl_jax.errors import BucketError, DataError, one_line

log = logging.getLogger('mtl_jax')


def open_set(place: Path | str, *, corrupt_share: float = 0.0) -> Store:
  """`open_store` of a local folder, or of a bucket's set in the cache; one that was damaged there is fetched again."""
  if not addresses.is_address(place):
    return store.open_store(Path(place), corrupt_share=corrupt_share)
  address = addresses.absolute(place)
  bucket, again = Bucket.at(address), False
  while True:
    folder, fresh = _fetched(bucket, again=again)
    try:
      return store.open_store(folder, corrupt_share=corrupt_share)
    except DataError as error:
      if fresh:
        raise DataError(f'{address}: {error}') from error
      log.warning('warning: %s is fetched again, for its copy is damaged: %s', address, error)
    again = True


def _fetched(bucket: Bucket, *, again: bool) -> tuple[Path, bool]:
  """The set's folder in the cache, and whether it was copied now; of several processes one copies."""
  schema, checksum, sizes = _read_schema(bucket)
  folder = addresses.cache() / 'sets' / checksum
  with held(folder.with_name(f'.{checksum}.lock')):
    if not again and folder.is_dir() and (inner := next(folder.iterdir(), None)):
      return inner, False
    log.info('%s: copying it into %s', bucket.address, folder)
    partial = folder.with_name(f'.{checksum}.partial')
    inner = partial / addresses.name(bucket.address)
    try:
      for left in (partial, folder):
        if left.exists():
          shutil.rmtree(left)
      transfer.download(bucket, sizes, inner)
      (inner / 'schema.json').write_bytes(schema)
      partial.rename(folder)
    except FileNotFoundError as error:
      raise DataError(f'{bucket.address}: {one_line(error)}: is missing; prepare the set again') from error
    except OSError as error:
      reason = f'cannot be copied into {folder}: {one_line(error)}; make room or set XDG_CACHE_HOME'
      raise BucketError(f'{bucket.address}: {reason}') from error
    finally:
      shutil.rmtree(partial, ignore_errors=True)
  return folder / inner.name, True


def _read_schema(bucket: Bucket) -> tuple[bytes, str, dict[str, int]]:
  """The content of schema.json, the set's checksum, and the sizes of its other files in bytes."""
  content = bucket.read('schema.json')
  if content is None:
    raise DataError(
      f'{bucket.address}: is no prepared set (it has no schema.json); make one with: '
      f'mtl-jax prepare SET --source DIR --out {bucket.address}'
    )
  try:
    schema = json.loads(content)
    sizes = {path: int(written['bytes']) for path, written in schema['files'].items()}
    if schema['checksum'] != store.checksum(schema):
      raise ValueError('its checksum is wrong')
    if outside := [path for path in sizes if path.startswith('/') or '..' in PurePosixPath(path).parts]:
      raise ValueError(f'{outside[0]} lies outside')
  except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
    raise DataError(f'{bucket.address}/schema.json: is malformed ({one_line(error)}); prepare the set again') from error
  return content, schema['checksum'], sizes


@contextmanager
def new_set(place: Path | str) -> Iterator[Path]:
  """Yields where to prepare a set: the local folder itself, or one whose content then becomes the bucket's.

  Raises:
    BucketError: where the bucket holds something there, or cannot be written; what was prepared is kept then.
  """
  if not addresses.is_address(place):
    yield Path(place)
    return
  bucket = Bucket.at(addresses.absolute(place))
  if there := sorted(bucket.versions()):
    found = 'a prepared set' if 'schema.json' in there else f'{there[0]} and no schema.json, as after a cut upload'
    raise BucketError(f'{bucket.address}: already holds {found}; remove it or choose another --out')
  addresses.cache().mkdir(parents=True, exist_ok=True)
  temporary = Path(tempfile.mkdtemp(prefix='prepare-', dir=addresses.cache()))
  folder, prepared = temporary / addresses.name(bucket.address), False
  try:
    yield folder
    prepared = True
    log.info('uploading %s to %s', folder, bucket.address)
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob('*') if path.is_file()}
    last = paths.pop('schema.json')
    transfer.upload(bucket, paths, title='upload')
    bucket.put(last, 'schema.json')  # With it the set is complete.
    prepared = False
  except BaseException as error:
    kept = f'the prepared set is in {folder}: copy it there, schema.json last'
    if prepared and isinstance(error, BucketError):
      raise BucketError(f'{error}; {kept}') from error
    if prepared:
      log.warning('warning: %s is not complete; %s', bucket.address, kept)
    raise
  finally:
    if not prepared:  # Hours may have gone into what is.
      shutil.rmtree(temporary, ignore_errors=True)
