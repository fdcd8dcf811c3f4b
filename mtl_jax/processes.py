"""The processes of one run: started together, told apart, and ended together; with one process, nothing at all.

JAX's own service ends a run whose process has died too, after `HEARTBEAT_SECS` and with a stack trace. The meeting says
it at once and in a line, and also serves where a computation over devices would be the wrong thing to wait in.
"""

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from mtl_jax import leaving, meeting
from mtl_jax.errors import Interrupted, UserError, one_line
from mtl_jax.launcher import Place
from mtl_jax.meeting import Host, Member

log = logging.getLogger('mtl_jax')

TIMEOUT_SECS = 300.0  # In which all processes must have come together; images are pulled and slices made meanwhile.
HEARTBEAT_SECS = 40  # After which JAX takes a process that still has its connection, but says nothing, for dead.
NEWS_SECS = 3.0  # For which a process whose computation broke off waits to hear that another one is to blame.

_member: Member | None = None


def start(place: Place, *, timeout_secs: float) -> None:
  """Joins this process with the others, before anything asks JAX for its devices.

  Raises:
    MeetingError: where they do not come together in time.
  """
  global _member
  _keep_stdout_for_results()
  host, port = place.address
  if place.process_id == 0:
    hosting = Host((host, port), place.num_processes)
    _member = _join(('127.0.0.1', port), place, timeout_secs)
    hosting.wait_for_all(timeout_secs, (host, port))
  else:
    logging.getLogger('mtl_jax').setLevel(logging.WARNING)  # Process 0 tells the story.
    _member = _join((host, port), place, timeout_secs)
  _start_jax(place, host, timeout_secs)


def _keep_stdout_for_results() -> None:
  """What libraries print themselves, as Gloo does of its connections, goes to stderr from now on."""
  sys.stdout.flush()
  results = os.dup(1)
  os.dup2(2, 1)
  sys.stdout = os.fdopen(results, 'w', buffering=1, encoding='utf-8')


def _join(address: tuple[str, int], place: Place, timeout_secs: float) -> Member:
  return Member(address, place.process_id, place.num_processes, timeout_secs=timeout_secs, on_failure=_end_with_another)


def _start_jax(place: Place, host: str, timeout_secs: float) -> None:
  """JAX's own service, on a port that process 0 finds free."""
  import jax

  assert _member is not None
  port = next(port for port in _member.gather('port', meeting.free_port() if place.process_id == 0 else None) if port)
  # Its handler of SIGTERM would take the signal from ours, and swallow it while ours is not there.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    coordinator_address=f'[{host}]:{port}' if ':' in host else f'{host}:{port}',
    coordinator_bind_address=f'[::]:{port}' if socket.has_dualstack_ipv6() else f'0.0.0.0:{port}',
    num_processes=place.num_processes,
    process_id=place.process_id,
    local_device_ids=place.local_devices,
    cluster_detection_method='deactivate',
    initialization_timeout=int(timeout_secs),
    heartbeat_timeout_seconds=HEARTBEAT_SECS,
  )


def index() -> int:
  """This process's number, 0 for the one that writes."""
  return _member.process if _member else 0


def count() -> int:
  """The number of processes."""
  return _member.num if _member else 1


def gather(name: str, value: Any, *, stop: Callable[[], None] | None = None) -> list[Any]:
  """The values of all processes in their order: anything JSON can hold. All processes call this alike.

  Nothing runs on the devices meanwhile, so processes may come to it hours apart. `stop` is called while this one waits
  and may raise.
  """
  return _member.gather(name, value, stop=stop) if _member else [value]


def from_first(name: str, value: Any) -> Any:
  """Process 0's value, for all."""
  return gather(name, value)[0]


def stop_here(wanted: bool) -> bool:
  """Whether to stop now: True at the same call in all processes once any has wanted it. All call it equally often."""
  if _member is None:
    return wanted
  if wanted:
    _member.ask_to_stop()
  return _member.stop_here()


def anyone_wants_to_stop(wanted: bool) -> bool:
  """Whether any process has wanted to stop, as far as is known here; may be called at any time."""
  if _member is None:
    return wanted
  if wanted:
    _member.ask_to_stop()
  return _member.asked_to_stop


def run(verb: Callable[[], int], place: Place | None, *, timeout_secs: float = TIMEOUT_SECS) -> int:
  """Runs a verb in one of several processes, or as the only one; returns its exit code when all have come to their end.

  A process that fails says why, tells the others, and all end with its exit code; none waits for one that is gone.

  Raises:
    UserError: where there is one process; or where this one does not come together with the others in time.
  """
  if place is None:
    return verb()
  try:
    start(place, timeout_secs=timeout_secs)
    code = verb()
  except Interrupted as interrupted:
    if not _member or not _member.asked_to_stop:
      _fail(interrupted.exit_code, one_line(interrupted))
    if index() == 0:
      _say(one_line(interrupted))
    code = interrupted.exit_code
  except (UserError, OSError) as error:
    _fail(getattr(error, 'exit_code', 2), one_line(error))
  except KeyboardInterrupt:
    _fail(75, 'interrupted; the same command starts again')
  except BaseException:
    time.sleep(NEWS_SECS)  # A broken connection is most often another's fault, whose news end this process now.
    traceback.print_exc()
    _fail(1, 'an error in mtl_jax; its own output has the traceback')
  assert _member is not None
  _member.end()
  return code


def _fail(code: int, text: str) -> NoReturn:
  """Ends this process, and with it the others, without waiting for anything."""
  _say(f'process {index()}: {text}' if _member else text)
  if _member:
    _member.fail(code, text)
  leaving.at_once(code)


def _end_with_another(news: dict[str, Any]) -> None:
  """Called by the thread that listens."""
  text = news['text'] if news['code'] == 1 else f'process {news["process"]} has ended: {news["text"]}'
  _say(f'process {index()} ends: {text}')
  leaving.at_once(int(news['code']))


def _say(text: str) -> None:
  """In one write, so that the lines of processes with one terminal do not mix."""
  with suppress(OSError):  # Nobody reads it any more.
    sys.stderr.write(f'mtl-jax: error: {text}\n')
