"""Handles requests to stop: SIGTERM, SIGUSR1 and the first SIGINT let the step finish and the run be saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from mtl_jax.errors import Interrupted
from mtl_jax.platform import processes

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
AT_ONCE = '\nmtl-jax: left at once; the same command goes on from the last complete checkpoint\n'


@contextlib.contextmanager
def end_before_first_run() -> Iterator[None]:
  """Until an `Interruption` is open, SIGTERM and SIGUSR1 end the process at once: there is nothing to be saved yet.

  An exception in the main thread would not do: in the middle of an import of JAX it aborts the process.
  """

  def leave(number: int) -> None:
    if number in SIGNALS[:2]:
      with contextlib.suppress(OSError):
        os.write(2, b'mtl-jax: interrupted; the same command starts again\n')
      processes.exit_now(Interrupted.exit_code, 'interrupted; the same command starts again')

  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS[:2]}
  try:
    with _listening(leave):
      yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def _listening(act: Callable[[int], None]) -> Iterator[None]:
  """While open, calls `act` in a thread with each signal's number, whatever the main thread is doing."""
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

  def listen() -> None:
    while number := os.read(reading, 1):
      act(number[0])
    os.close(reading)

  threading.Thread(target=listen, name='signals', daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(writing)  # Ends the thread.


class Interruption:
  """While open, notes signals, for which the loop asks between steps. A SIGINT after the first signal ends at once.

  At once means without waiting for anything: not for a step that hangs in a collective, where Python's handlers do not
  run, nor for a save, which a checkpoint survives because it is complete or absent.
  """

  def __init__(self) -> None:
    self._requested = False
    self._before: dict[int, object] = {}
    self._stack = contextlib.ExitStack()
    self._signalled = False

  def __enter__(self) -> 'Interruption':
    if threading.current_thread() is threading.main_thread():
      for number in SIGNALS:
        self._before[number] = signal.signal(number, self._handle)
      self._stack.enter_context(_listening(self._leave_at_second))
    return self

  def __exit__(self, *exception: object) -> None:
    self._stack.close()
    for number, handler in self._before.items():
      signal.signal(number, handler)  # pyright: ignore

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self._requested = True

  def requested(self) -> bool:
    """True to stop now. Of several processes all ask equally often, and it is True in all at the same time."""
    return processes.stop_here(self._requested)

  def requested_anywhere(self) -> bool:
    """True once a signal has come to any process, as far as this one knows; each may ask when it likes."""
    return processes.stop_requested(self._requested)

  def _leave_at_second(self, number: int) -> None:
    """Ends the process at a SIGINT after the first signal."""
    if self._signalled and number == signal.SIGINT:
      with contextlib.suppress(OSError):
        os.write(2, AT_ONCE.encode())
      processes.exit_now(Interrupted.exit_code, 'left at once, at a second ctrl-C')
    self._signalled = self._signalled or number in SIGNALS
