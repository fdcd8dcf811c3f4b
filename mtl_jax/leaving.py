"""Leaving the process at once, without waiting for devices, threads or other processes; what is due before that."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# For what is due, in all. JAX's heartbeat ends processes 40 s after one has gone; launch/local.sh, after 60.
DUE_SECS = 30.0

_due: list[Callable[[], None]] = []


@contextmanager
def after(act: Callable[[], None]) -> Iterator[None]:
  """While open, `act` is called in a thread before the process leaves at once. It tells of its failures itself."""
  _due.append(act)
  try:
    yield
  finally:
    _due.remove(act)


def at_once(code: int) -> NoReturn:
  """Does what is due, for at most `DUE_SECS`, and ends the process: any thread may call it, whatever the others do."""
  thread = threading.Thread(target=lambda: [act() for act in tuple(_due)], name='leaving', daemon=True)
  if _due:
    thread.start()
    thread.join(DUE_SECS)
  with suppress(OSError):
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code)
