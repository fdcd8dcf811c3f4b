"""Working directories in buckets: a verb works on a local copy, which is pulled before and mirrored while it runs.

    CACHE/workdirs/<digest of the address>/<name>        the copy, CACHE/workdirs/<digest>/copy.json what is known of it
    CACHE/visits/<digest of the address>/...             another one, to read from while a run holds the first

At the start the bucket is the truth: what differs is pulled, and what it lacks is removed here. But where the lock
there is the one that this copy's own last run has left, that run ended before its last upload and none has followed:
then the copy may be ahead, and goes on as it is, unless what it had was deleted.
"""

import hashlib
import logging
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mtl_jax import leaving, processes
from mtl_jax.buckets import address as addresses
from mtl_jax.buckets.address import Bucket
from mtl_jax.buckets.held import held
from mtl_jax.buckets.lock import Lock, TakenOverError
from mtl_jax.buckets.mirror import Mirror
from mtl_jax.errors import BucketError

log = logging.getLogger('mtl_jax')

PUSH_SECS = 30.0  # Between uploads of what has changed; the end of a run has one of its own.


def has_model(name: str) -> bool:
  """Whether a file is needed to restore a model."""
  return name in ('config.json', 'dataset.json') or name.startswith('checkpoints/')


def has_results(name: str) -> bool:
  """Whether a file may be needed to write a report."""
  return '/checkpoints/' not in f'/{name}'


# Verbs that only look at a run, or add an evaluation or a page, and what they look at; all others own it.
VISITS: dict[str, Callable[[str], bool]] = {
  'eval': has_model,
  'predict': has_model,
  'export': has_model,
  'report': has_results,
}


@contextmanager
def copied(address: str, verb: str) -> Iterator[Path]:
  """Yields a local folder that is the workdir at an address, for one verb; what it changes there is uploaded.

  Raises:
    BucketError: where another run has the workdir, the bucket cannot be read or written, or the processes of the run
      are not on one host.
  """
  if processes.count() > 1:
    hosts = sorted(set(processes.gather('hosts', platform.node())))
    if len(hosts) > 1:
      raise BucketError(
        f'--workdir: {address} cannot be that of processes on {len(hosts)} hosts ({hosts[0]}, {hosts[1]}, ...), which '
        'write each checkpoint together; mount the bucket (gcsfuse, Mountpoint for S3) and name the mounted folder'
      )
  if processes.index():  # The first process holds the copy for all.
    yield Path(processes.from_first('copy', None))
    return
  bucket, visit = Bucket.at(address), VISITS.get(verb)
  with _visited(bucket, visit) if visit else _owned(bucket) as folder:
    processes.from_first('copy', str(folder))
    yield folder


class Copy(NamedTuple):
  """Where a local copy lies, and what lies beside it."""

  folder: Path
  record: Path
  lock: Path

  @classmethod
  def of(cls, address: str, kind: str = 'workdirs') -> 'Copy':
    base = addresses.cache() / kind / hashlib.sha256(address.encode()).hexdigest()[:16]
    return cls(base / addresses.name(address), base / 'copy.json', base / '.lock')


@contextmanager
def _owned(bucket: Bucket) -> Iterator[Path]:
  """The copy of a run that writes; nobody else does meanwhile, here or elsewhere."""
  copy = Copy.of(bucket.address)
  with held(copy.lock, wait=False) as free:
    if not free:
      raise BucketError(f'--workdir: another process of this host works on {bucket.address}; wait for it')
    mirror = Mirror(bucket, copy.folder, copy.record)
    lock = Lock(bucket, mirror.id)
    mirror.beat = lock.keep
    ahead = _is_ahead(mirror, lock)
    lock.take()
    log.info('%s is mirrored from %s', bucket.address, copy.folder)
    if ahead:
      log.info('its last run here ended before its last upload; what that run has left here goes on')
    else:
      _pull(mirror, lock)
    copy.folder.mkdir(parents=True, exist_ok=True)

    def push() -> None:
      lock.keep()
      mirror.push()

    alone, ended = threading.Lock(), threading.Event()

    def end() -> None:
      with alone:  # Leaving at once, during the last upload, waits for it.
        if not ended.is_set():
          push()
          lock.release()
          ended.set()

    with leaving.after(lambda: _said(end)), _at_the_end(end, mirror), _pushing(push):
      yield copy.folder


def _pull(mirror: Mirror, lock: Lock) -> None:
  try:
    mirror.pull()
  except BaseException:  # Nothing has begun: whoever is next need not wait.
    with suppress(BucketError):
      lock.release()
    raise


def _is_ahead(mirror: Mirror, lock: Lock) -> bool:
  return mirror.whole and mirror.is_intact() and lock.left_by() == mirror.id


@contextmanager
def _visited(bucket: Bucket, wanted: Callable[[str], bool]) -> Iterator[Path]:
  """A copy of what is wanted, to read and to add to; that of a run on this host where none is running."""
  with ExitStack() as kept:
    copy = Copy.of(bucket.address)
    free = kept.enter_context(held(copy.lock, wait=False))
    mirror = Mirror(bucket, copy.folder, copy.record)
    if not free or _is_ahead(mirror, Lock(bucket, mirror.id)):
      copy = Copy.of(bucket.address, 'visits')
      kept.enter_context(held(copy.lock))
      mirror = Mirror(bucket, copy.folder, copy.record)
    mirror.pull(wanted)
    if not copy.folder.is_dir():
      raise BucketError(f'--workdir: {bucket.address} holds no run')
    with _at_the_end(lambda: mirror.push(remove=False), mirror):
      yield copy.folder


@contextmanager
def _at_the_end(end: Callable[[], None], mirror: Mirror) -> Iterator[None]:
  """However it ends, a last upload. Where that fails, it says so; what ended the run outweighs it, else it raises."""

  def last() -> None:
    try:
      end()
    except (BucketError, OSError) as error:
      on = '' if isinstance(error, TakenOverError) else ', and the same command on this host goes on from there'
      raise BucketError(f'{error}; what is not uploaded is in {mirror.folder}{on}') from error

  try:
    yield
  except BaseException:  # Among them Interrupted, whose exit code launchers requeue on.
    _said(last)
    raise
  last()


@contextmanager
def _pushing(push: Callable[[], None]) -> Iterator[None]:
  """While open, a thread uploads what has changed, every `PUSH_SECS`; what fails is said once, and tried again."""
  closed = threading.Event()

  def work() -> None:
    failing = False
    while not closed.wait(PUSH_SECS):
      try:
        push()
      except (BucketError, OSError) as error:
        if not failing:
          log.warning('warning: %s; it is tried again every %g s', error, PUSH_SECS)
        failing = True
      else:
        if failing:
          log.info('what had changed is uploaded again')
        failing = False

  thread = threading.Thread(target=work, name='bucket', daemon=True)
  thread.start()
  try:
    yield
  finally:
    closed.set()
    thread.join()


def _said(act: Callable[[], None]) -> None:
  """Does it; a failure is told in a line."""
  try:
    act()
  except (BucketError, OSError) as error:
    log.error('mtl-jax: error: %s', error)
