"""The lock object of a run's folder in a bucket, so that it belongs to one run at a time, wherever that runs."""

import json
import logging
import os
import platform
import time
from typing import Any

from mtl_jax.buckets.address import Bucket
from mtl_jax.errors import BucketError

log = logging.getLogger('mtl_jax')

NAME = '.lock'
RENEW_SECS = 30.0
WATCH_SECS = 5.0  # Between looks at another's.
STALE_SECS = 300.0  # A lock that was not renewed for so long is a dead run's; hosts' clocks may differ by less.


class TakenOverError(BucketError):
  """Another run has taken the folder; what this one has done since is its own."""


class Lock:
  """The lock of one folder, for the local copy of this id."""

  def __init__(self, bucket: Bucket, copy: str):
    self._bucket, self._address = bucket, f'{bucket.address}/{NAME}'
    self._own = {'copy': copy, 'host': platform.node(), 'pid': os.getpid(), 'started': time.time()}
    self._renewed = 0.0

  def left_by(self) -> str | None:
    """The id of the copy whose run has left its lock there: it ended before its last upload."""
    holder = self._read()
    return holder.get('copy', '') if holder is not None else None

  def take(self) -> None:
    """Takes the lock, also that of a dead run. Raises BucketError, which says whose it is, while another lives.

    One that may be dead is watched: a run that lives renews its lock, so that this one is refused in half a minute.
    """
    holder = self._read()
    if holder is not None and not self._is_dead(holder):
      holder = self._watched(holder)
    try:
      self._write(only_new=holder is None)
    except (BucketError, FileExistsError):
      if holder is not None or (first := self._read()) is None:
        raise
      raise self._refusal(first) from None
    self._check()

  def _watched(self, holder: dict[str, Any]) -> dict[str, Any] | None:
    """What is there once nobody holds the lock any more. Raises BucketError when its run shows that it lives."""
    text = '%s has the lock of a run of %s; waiting for at most %.0f s to see whether that lives'
    log.info(text, self._bucket.address, holder.get('host'), STALE_SECS - _age(holder))
    while not self._is_dead(holder):
      time.sleep(WATCH_SECS)
      now = self._read()
      if now is None:
        return None
      if now != holder:
        raise self._refusal(now)
    return holder

  def keep(self) -> None:
    """Says, every now and then, that the run lives. Raises TakenOverError if another has taken the folder."""
    if time.monotonic() - self._renewed > RENEW_SECS / 2:
      self._check()
      self._write()

  def release(self) -> None:
    """Gives the folder free. Raises TakenOverError if another has taken it."""
    self._check()
    self._bucket.remove(NAME)

  def _check(self) -> None:
    holder = self._read()
    if holder is None or holder | self._own != holder:
      by = f'a run of {holder.get("host")}' if holder else 'someone who removed its .lock'
      raise TakenOverError(f'{self._bucket.address}: was taken over by {by}')

  def _read(self) -> dict[str, Any] | None:
    content = self._bucket.read(NAME)
    try:
      holder = json.loads(content) if content is not None else None
    except ValueError:
      return {}
    return holder if isinstance(holder, dict | None) else {}

  def _write(self, *, only_new: bool = False) -> None:
    content = json.dumps({**self._own, 'renewed': time.time()})
    self._bucket.write(NAME, content.encode(), only_new=only_new)
    self._renewed = time.monotonic()

  def _is_dead(self, holder: dict[str, Any]) -> bool:
    """Whether nobody holds it any more. The caller holds the local copy, so that one's last run is not alive.

    Names of hosts and numbers of processes tell nothing: containers share the first, and each counts its own.
    """
    return holder.get('copy') == self._own['copy'] or _age(holder) > STALE_SECS

  def _refusal(self, holder: dict[str, Any]) -> BucketError:
    return BucketError(
      f'--workdir: {self._bucket.address} belongs to a run of {holder.get("host")} (process {holder.get("pid")}), '
      f'which was alive {_age(holder):.0f} s ago; wait for it, take another, or if it is dead remove {self._address}'
    )


def _age(holder: dict[str, Any]) -> float:
  """Seconds since it was renewed."""
  renewed = holder.get('renewed')
  return time.time() - renewed if isinstance(renewed, int | float) else float('inf')
