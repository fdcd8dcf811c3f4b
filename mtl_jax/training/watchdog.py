"""The watchdog: ends a run that has completed nothing for too long, and prints every thread's stack."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from mtl_jax.platform import processes

EXIT_CODE = 4


class Watchdog:
  """While open, ends the process when no `beat` has come for `secs`. It watches from the first beat on; 0 never does.

  A thread can end a process whose main thread hangs in a collective or a read, which no exception could reach.
  """

  def __init__(self, secs: float):
    self._secs = secs
    self._last: float | None = None
    self._what = ''
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

  def __enter__(self) -> 'Watchdog':
    if self._secs:
      self._thread.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._closed.set()

  def beat(self, what: str = '') -> None:
    """Notes that something was completed; `what` is named if nothing follows."""
    self._last, self._what = time.monotonic(), what or self._what

  @contextmanager
  def paused(self) -> Iterator[None]:
    """Pauses the watchdog: the body may take any time."""
    self._last = None
    try:
      yield
    finally:
      self.beat()

  def watching(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a jitted function so that its calls are beats; with new shapes it may compile for as long as it takes."""
    seen = set()

    def call(*arguments: Any) -> Any:
      self.beat()
      shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments[-1]))
      if shapes in seen:
        return compiled(*arguments)
      seen.add(shapes)
      with self.paused():
        return compiled(*arguments)

    return call

  def _watch(self) -> None:
    while not self._closed.wait(min(self._secs / 4, 5.0)):
      last = self._last
      if last is not None and time.monotonic() - last > self._secs:
        _end(f'nothing was completed for {self._secs:g} s (config.train.watchdog_secs) after {self._what}')


def _end(reason: str) -> None:
  """Prints every thread's stack and the reason to stderr, and ends the process."""
  with contextlib.suppress(Exception):
    sys.stderr.flush()
    faulthandler.dump_traceback(file=2, all_threads=True)
    line = f'mtl-jax: error: {reason}; every thread is above; the same command goes on from the last checkpoint\n'
    os.write(2, line.encode())
  processes.exit_now(EXIT_CODE, reason)
