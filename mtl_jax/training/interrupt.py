"""Requests to stop: SIGTERM, SIGUSR1 and the first SIGINT let the step finish and the run save itself."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from mtl_jax import processes
from mtl_jax.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
AT_ONCE = '\nmtl-jax: left at once; the same command goes on from the last complete checkpoint\n'


_came = threading.Event()  # A signal, before an `Interruption` was open.


@contextlib.contextmanager
def from_the_start() -> Iterator[None]:
  """Until an `Interruption` is open, each signal ends the process as ctrl-C does: nothing is to be saved yet."""

  def end(*_: object) -> NoReturn:
    _came.set()  # For this exception is lost in a callback, such as those of an import.
    raise KeyboardInterrupt

  _came.clear()
  numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
  before = {number: signal.signal(number, end) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


class Interruption:
  """While open, signals become a question the loop asks between steps. A SIGINT after the first signal leaves at once.

  At once means without waiting for anything: not for a step that hangs in a collective, where Python's handlers do not
  run, nor for a save, which a checkpoint survives because it is complete or absent.
  """

  def __init__(self) -> None:
    self._requested = False
    self._before: dict[int, object] = {}
    self._wakeup: tuple[int, int] | None = None  # The end that signals are written into, and what was there before.

  def __enter__(self) -> 'Interruption':
    if _came.is_set():
      raise KeyboardInterrupt
    if threading.current_thread() is threading.main_thread():
      for number in SIGNALS:
        self._before[number] = signal.signal(number, self._handle)
      reading, writing = os.pipe()
      os.set_blocking(writing, False)
      self._wakeup = writing, signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
      threading.Thread(target=_leave_at_second, args=(reading,), name='signals', daemon=True).start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._wakeup:
      writing, before = self._wakeup
      signal.set_wakeup_fd(before)
      os.close(writing)  # Ends the thread.
    for number, handler in self._before.items():
      signal.signal(number, handler)  # pyright: ignore

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self._requested = True

  def requested(self) -> bool:
    """Whether to stop now. Of several processes all ask equally often, and it is True in all at the same time."""
    return processes.stop_here(self._requested)

  def requested_anywhere(self) -> bool:
    """True once a signal has come to any process, as far as this one knows; each may ask when it likes."""
    return processes.anyone_wants_to_stop(self._requested)


def _leave_at_second(reading: int) -> None:
  """Reads signals' numbers as they come, whatever the main thread is doing; ends the process at a second SIGINT."""
  requested = False
  while number := os.read(reading, 1):
    if requested and number[0] == signal.SIGINT:
      with contextlib.suppress(OSError):
        os.write(2, AT_ONCE.encode())
      processes.leave(Interrupted.exit_code, 'left at once, at a second ctrl-C')
    requested = requested or number[0] in SIGNALS
  os.close(reading)
