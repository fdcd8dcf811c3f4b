"""Requests to stop: SIGTERM, SIGUSR1 and the first SIGINT let the step finish and the run save itself."""

import signal
import threading
from types import FrameType

from mtl_jax import processes

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
  """While open, signals become a question the loop asks between steps. A second SIGINT leaves at once."""

  def __init__(self) -> None:
    self._requested = False
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'Interruption':
    if threading.current_thread() is threading.main_thread():
      for number in SIGNALS:
        self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exception: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)  # pyright: ignore

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self._requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._requested = True

  def requested(self) -> bool:
    """Whether to stop now. Of several processes all ask equally often, and it is True in all at the same time."""
    return processes.stop_here(self._requested)

  def requested_anywhere(self) -> bool:
    """True once a signal has come to any process, as far as this one knows; each may ask when it likes."""
    return processes.anyone_wants_to_stop(self._requested)
