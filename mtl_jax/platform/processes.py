"""Starts, numbers and ends the processes of a run together; with one process there is nothing to do."""

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from mtl_jax.errors import Interrupted, LauncherError, UserError, one_line, printable
from mtl_jax.platform.launcher import ProcessInfo

if TYPE_CHECKING:
  from mtl_jax.platform.bus import Bus  # Which loads JAX.

log = logging.getLogger('mtl_jax')

TIMEOUT_SECS = 300.0  # In which all processes must have come together; images are pulled and slices made meanwhile.
HEARTBEAT_SECS = 10.0  # After which a process that says nothing is dead.
NEWS_SECS = 5.0  # Beyond the heartbeat, for which a broken computation waits to hear which process is to blame.

_bus: 'Bus | None' = None
_heartbeat_secs = HEARTBEAT_SECS


def start(place: ProcessInfo, *, timeout_secs: float, heartbeat_secs: float) -> 'Bus':
  """Joins this process with the others, before anything asks JAX for its devices.

  Raises:
    LauncherError: where they do not come together in time, or were not started as one run.
  """
  global _bus, _heartbeat_secs
  _heartbeat_secs = heartbeat_secs
  _keep_stdout_for_results()
  if place.process_id:
    logging.getLogger('mtl_jax').setLevel(logging.WARNING)  # Process 0 logs for all.
  deadline = time.monotonic() + timeout_secs
  _probe(place, deadline)
  _initialize(place, deadline, heartbeat_secs)
  from mtl_jax.platform.bus import Bus

  _bus = bus = Bus(place.process_id, place.num_processes, on_failure=_end_with_another)
  try:
    nums = bus.gather('num', place.num_processes)
  except RuntimeError as error:
    if 'ALREADY_EXISTS' not in str(error):
      raise
    raise LauncherError(f'two processes say that they are number {index()}; give each an id of its own') from None
  for i, num in enumerate(nums):
    if num != place.num_processes:
      raise LauncherError(f'process {i} was started as one of {num}, process {index()} as one of {place.num_processes}')
  return bus


def _keep_stdout_for_results() -> None:
  """Sends what libraries print themselves, as Gloo does of its connections, to stderr from now on."""
  sys.stdout.flush()
  results = os.dup(1)
  os.dup2(2, 1)
  sys.stdout = os.fdopen(results, 'w', buffering=1, encoding='utf-8')


def _probe(place: ProcessInfo, deadline: float) -> None:
  """Checks the coordinator's port first, since JAX's own service ends the process where something is wrong with it.

  Raises:
    LauncherError: where process 0 finds it taken, or another cannot reach process 0 before the deadline.
  """
  host, port = place.address
  while place.process_id:
    try:
      socket.create_connection((host, port), timeout=max(0.1, min(deadline - time.monotonic(), 10.0))).close()
      return
    except OSError as error:
      if time.monotonic() > deadline:
        raise LauncherError(
          f'process {place.process_id} cannot reach process 0 of {place.num_processes} at {place.coordinator} '
          f'({error.strerror or error}); see that it runs, and that its host and port are right'
        ) from None
    time.sleep(0.2)
  try:
    socket.create_server(('', port)).close()
  except OSError as error:
    raise LauncherError(f'cannot listen on {place.coordinator}: {error.strerror}; choose another port') from error


def _initialize(place: ProcessInfo, deadline: float, heartbeat_secs: float) -> None:
  """Starts JAX's own service in a thread: it would wait forever, and end the process where a member is missing."""
  import jax

  # Its handler of SIGTERM would take the signal from ours, and Orbax would ask it when to stop.
  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_enable_recoverability', True)  # Else a lost process ends the others with a C++ trace.
  any_address, errors = '[::]' if socket.has_dualstack_ipv6() else '0.0.0.0', []

  def work() -> None:
    try:
      jax.distributed.initialize(
        coordinator_address=place.coordinator,
        coordinator_bind_address=f'{any_address}:{place.address[1]}',
        num_processes=place.num_processes,
        process_id=place.process_id,
        local_device_ids=place.local_devices,
        cluster_detection_method='deactivate',
        initialization_timeout=86400,
        heartbeat_timeout_seconds=max(1, round(heartbeat_secs)),
      )
    except Exception as error:
      errors.append(error)

  thread = threading.Thread(target=work, name='initialize', daemon=True)
  thread.start()
  thread.join(max(0.0, deadline - time.monotonic()))
  if thread.is_alive() or errors:
    reason = one_line(errors[0])[:200] if errors else 'some are missing, or what listens there is none of this run'
    every = f'{place.num_processes} processes'
    raise LauncherError(f'{every} did not come together at {place.coordinator} ({reason}); look at the logs of all')


def index() -> int:
  """This process's number, 0 for the one that writes."""
  return _bus.process if _bus else 0


def count() -> int:
  """The number of processes."""
  return _bus.num if _bus else 1


def gather(name: str, value: Any, *, stop: Callable[[], None] | None = None) -> list[Any]:
  """The values of all processes in their order: anything JSON can hold. All processes call this alike.

  Nothing runs on the devices meanwhile, so processes may come to it hours apart. `stop` is called while this one waits
  and may raise.
  """
  return _bus.gather(name, value, stop=stop) if _bus else [value]


def from_first(name: str, value: Any) -> Any:
  """Process 0's value, for all."""
  return gather(name, value)[0]


def stop_here(wanted: bool) -> bool:
  """True at the same call in all processes once any has asked to stop. All call it equally often."""
  if _bus and wanted:
    _bus.ask_to_stop()
  return _bus.stop_here() if _bus else wanted


def stop_requested(wanted: bool) -> bool:
  """True once any process has asked to stop, as far as is known here; may be called at any time."""
  if _bus and wanted:
    _bus.ask_to_stop()
  return _bus.asked_to_stop if _bus else wanted


def run(
  verb: Callable[[], int],
  place: ProcessInfo | None,
  *,
  timeout_secs: float = TIMEOUT_SECS,
  heartbeat_secs: float = HEARTBEAT_SECS,
) -> int:
  """Runs a verb in one of several processes, or as the only one; returns its exit code when all have come to their end.

  A process that fails says why, tells the others, and all end with its exit code; none waits for one that is gone.
  """
  if place is None:
    return verb()
  try:
    bus = start(place, timeout_secs=timeout_secs, heartbeat_secs=heartbeat_secs)
    try:
      code = verb()
    except Interrupted as interrupted:
      if not bus.asked_to_stop:
        raise
      if bus.process == 0:
        _say(one_line(interrupted))
      code = interrupted.exit_code
    bus.end()
    return code
  except BaseException as error:
    fail(error)


def fail(error: BaseException) -> NoReturn:
  """Ends this process and all others because of an exception in it; any thread may call it."""
  if _is_of_the_runtime(error):
    time.sleep(_heartbeat_secs + NEWS_SECS)  # Most often another's fault, whose news ends this process now.
  if isinstance(error, KeyboardInterrupt):
    _fail(75, 'interrupted; the same command starts again')
  if isinstance(error, UserError | OSError):
    _fail(getattr(error, 'exit_code', 2), one_line(error))
  traceback.print_exception(error)
  _fail(1, 'an error in mtl_jax; its own output has the traceback')


def _is_of_the_runtime(error: BaseException | None) -> bool:
  """True where a computation over processes may have broken off, here or in what an exception was made of."""
  here = type(error).__name__ in ('JaxRuntimeError', 'BarrierTimeoutError') or 'Gloo' in str(error)
  return here or (error is not None and _is_of_the_runtime(error.__cause__))


def exit_now(code: int, text: str) -> NoReturn:
  """Ends this process at once, and with it the others, whatever its threads wait for; any of them may call it."""
  if _bus:
    _bus.fail(code, text)
  os._exit(code)


def _fail(code: int, text: str) -> NoReturn:
  _say(f'process {index()}: {text}' if _bus else text)
  with suppress(OSError):
    sys.stdout.flush()
  exit_now(code, text)


def _end_with_another(news: dict[str, Any]) -> None:
  """Ends this process for another's failure; a listening thread calls it."""
  _say(f'process {index()} ends: {news["text"]}')
  os._exit(news['code'])


def _say(text: str) -> None:
  """Writes a line at once, so that the lines of processes with one terminal do not mix."""
  with suppress(OSError):  # Nobody reads it any more.
    sys.stderr.write(f'mtl-jax: error: {printable(text)}\n')
