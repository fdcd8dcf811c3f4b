"""Where the processes of a run meet: at the coordinator's port, through which they exchange small values and bad news.

Process 0 listens; every process, itself too, keeps one connection open for the whole run. A line of JSON is a message.
Values of all processes under one name come back to each of them once the last has given its own. A connection that
ends before its process said that it is done means that the process was killed, or that its host is gone.
"""

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from mtl_jax.errors import UserError

LISTEN_SECS = 10.0  # After which a new connection that does not say who it is is no process of ours.
RETRY_SECS = 0.2
KEEPALIVE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 4}  # A host that vanished is noticed in 30 s.


class MeetingError(UserError):
  """Processes did not come together; the message names the coordinator and those that are missing."""


class Connection:
  """Messages, whole, over a socket; any thread may send."""

  def __init__(self, connected: socket.socket):
    connected.settimeout(None)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
      if hasattr(socket, name):
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._socket, self._lines, self._lock = connected, connected.makefile('r', encoding='utf-8'), threading.Lock()

  def send(self, message: dict[str, Any]) -> None:
    """Sends it; that the other side is gone is for its reader to notice."""
    with suppress(OSError), self._lock:
      self._socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(self, timeout_secs: float | None = None) -> dict[str, Any] | None:
    """The next message; None where the other side has gone or sends what is none."""
    try:
      self._socket.settimeout(timeout_secs)
      message = json.loads(self._lines.readline() or 'null')
      self._socket.settimeout(None)
    except (OSError, ValueError):
      return None
    return message if isinstance(message, dict) else None

  def close(self) -> None:
    with suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    self._socket.close()


class Host:
  """Process 0's side: takes the processes in, collects values, and passes news on. Threads do the work."""

  def __init__(self, address: tuple[str, int], num_processes: int):
    """Begins to listen. Raises MeetingError where the port is taken."""
    self._members: dict[int, Connection] = {}
    self._values: dict[str, dict[int, Any]] = {}
    self._lock = threading.RLock()
    self._here, self._ended = threading.Condition(self._lock), False
    self._num = num_processes
    try:
      self._server = _listen(address[1])
    except OSError as error:
      raise MeetingError(f'cannot listen on {_text(address)}: {error.strerror}; choose another port') from error
    threading.Thread(target=self._accept, name='meeting', daemon=True).start()

  def wait_for_all(self, timeout_secs: float, address: tuple[str, int]) -> None:
    """Returns when all are here. Raises MeetingError, which names those that are not, after so many seconds."""
    with self._here:
      if self._here.wait_for(lambda: len(self._members) == self._num, timeout_secs):
        return
      missing = [str(i) for i in range(self._num) if i not in self._members]
    few = ', '.join(missing[:8]) + (', ...' if len(missing) > 8 else '')
    raise MeetingError(
      f'{len(missing)} of {self._num} processes did not come to {_text(address)} within {timeout_secs:g} s: {few}; '
      'look at their logs'
    )

  def _accept(self) -> None:
    while True:
      try:
        connected, _ = self._server.accept()
      except OSError:  # Closed.
        return
      threading.Thread(target=self._serve, args=(connected,), daemon=True).start()

  def _serve(self, connected: socket.socket) -> None:
    connection = Connection(connected)
    hello = connection.receive(LISTEN_SECS)
    process = self._welcome(hello, connection)
    if process is None:
      connection.close()
      return
    while (message := connection.receive()) is not None:
      self._take(process, message)
    with self._lock:
      if not self._ended:
        text = f'process {process} is gone: it was killed, or its host is lost'
        self._tell({'kind': 'failed', 'process': process, 'code': 1, 'text': text})

  def _welcome(self, hello: dict[str, Any] | None, connection: Connection) -> int | None:
    """The number of a process of this run, which is told whether it is welcome; None for anything else."""
    if hello is None or hello.get('kind') != 'hello':
      return None
    process = hello.get('process')
    if not isinstance(process, int):
      return None
    with self._here:
      reason = None
      if hello.get('num') != self._num:
        reason = f'process {process} was started as one of {hello.get("num")}, process 0 as one of {self._num}'
      elif process not in range(self._num):
        reason = f'there is no process number {process} of {self._num}'
      elif process in self._members:
        reason = f'two processes say that they are number {process}'
      connection.send({'kind': 'refused', 'text': reason} if reason else {'kind': 'welcome'})
      if reason:
        return None
      self._members[process] = connection
      self._here.notify_all()
      return process

  def _take(self, process: int, message: dict[str, Any]) -> None:
    with self._lock:
      if message.get('kind') != 'value':
        self._tell(message)
        return
      name = message['name']
      given = self._values.setdefault(name, {})
      given[process] = message['value']
      if len(given) == self._num:
        self._ended |= name == 'end'
        values = [given[i] for i in range(self._num)]
        del self._values[name]
        self._tell({'kind': 'values', 'name': name, 'values': values})

  def _tell(self, message: dict[str, Any]) -> None:
    """Process 0 last, so that the others know before it may leave."""
    for process in sorted(self._members, reverse=True):
      self._members[process].send(message)


class Member:
  """One process's side, of process 0 too."""

  def __init__(
    self, address: tuple[str, int], process: int, num: int, *, timeout_secs: float, on_failure: Callable[[dict], None]
  ):
    """Goes to the meeting.

    Args:
      address: host and port of process 0.
      process: this one's number.
      num: how many there are.
      timeout_secs: for how long to try.
      on_failure: hears, in a thread of its own, that another process has failed: `process`, `code` and `text`.

    Raises:
      MeetingError: where process 0 cannot be reached in time, or refuses this one.
    """
    self.process, self.num = process, num
    self._on_failure = on_failure
    self._changed = threading.Condition()
    self._values: dict[str, list[Any]] = {}
    self._times: dict[str, int] = {}
    self._calls, self._stop_at, self._wanted, self._agreeing = 0, 0, False, False
    self._ended = False
    self._connection = _reach(address, process, num, timeout_secs)
    threading.Thread(target=self._listen, name='meeting', daemon=True).start()

  def gather(self, name: str, value: Any, *, stop: Callable[[], None] | None = None) -> list[Any]:
    """The JSON values of all processes in their order; waits for the last. All call this for a name equally often.

    `stop` is called a few times a second meanwhile and may raise.
    """
    with self._changed:
      self._times[name] = time = self._times.get(name, 0) + 1
    key = f'{name}-{time}' if name != 'end' else name
    self._connection.send({'kind': 'value', 'name': key, 'value': value})
    with self._changed:
      while not self._changed.wait_for(lambda: key in self._values, 0.2):
        if stop:
          stop()
      return self._values.pop(key)

  def end(self) -> None:
    """Waits until all have come to their end; from now on leaving is no failure."""
    self.gather('end', None)

  def fail(self, code: int, text: str) -> None:
    """Tells the others that this process ends with an exit code, and why."""
    self._connection.send({'kind': 'failed', 'process': self.process, 'code': code, 'text': text})

  def ask_to_stop(self) -> None:
    """Asks all processes to stop at one call of `stop_here`."""
    with self._changed:
      first, self._wanted = not self._wanted, True
    if first:
      self._connection.send({'kind': 'stop'})

  @property
  def asked_to_stop(self) -> bool:
    """Whether any process has asked, as far as is known here."""
    return self._wanted or self._agreeing

  def stop_here(self) -> bool:
    """True from one call on, the same for all processes, once any has asked to stop; all call this equally often.

    When the question arrives, each answers with how many calls it has made, and makes no further one until all have
    answered; they stop at the call after the furthest one's. Answers come from a thread of their own, so that a
    process that waits for others in a computation does not keep them waiting here.
    """
    with self._changed:
      self._changed.wait_for(lambda: not self._agreeing or self._stop_at)
      self._calls += 1
      return bool(self._stop_at) and self._calls >= self._stop_at

  def _listen(self) -> None:
    while (message := self._connection.receive()) is not None:
      kind = message.get('kind')
      if kind == 'failed' and message.get('process') != self.process:
        self._on_failure(message)
      with self._changed:
        if kind == 'stop' and not self._agreeing:
          self._agreeing = True
          self._connection.send({'kind': 'value', 'name': 'stop', 'value': self._calls})
        elif kind == 'values' and message['name'] == 'stop':
          self._stop_at = max(message['values']) + 1
        elif kind == 'values':
          self._ended |= message['name'] == 'end'
          self._values[message['name']] = message['values']
        self._changed.notify_all()
    if not self._ended:
      self._on_failure({'process': 0, 'code': 1, 'text': 'process 0 is gone: it was killed, or its host is lost'})


def free_port() -> int:
  """A port of this host that nothing listens on."""
  with _listen(0) as server:
    return server.getsockname()[1]


def _listen(port: int) -> socket.socket:
  """On all addresses of this host, of both kinds where it has them."""
  if socket.has_dualstack_ipv6():
    try:
      return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as error:
      if error.errno == errno.EADDRINUSE:
        raise
  return socket.create_server(('', port))


def _reach(address: tuple[str, int], process: int, num: int, timeout_secs: float) -> Connection:
  """A connection to process 0 in which it has welcomed this one; tries until the time is over."""
  deadline, reason = time.monotonic() + timeout_secs, 'no answer'
  while (left := deadline - time.monotonic()) > 0:
    try:
      connection = Connection(socket.create_connection(address, timeout=max(0.1, min(left, LISTEN_SECS))))
    except OSError as error:
      reason = error.strerror or str(error)
      time.sleep(min(RETRY_SECS, left))
      continue
    connection.send({'kind': 'hello', 'process': process, 'num': num})
    answer = connection.receive(max(0.1, min(deadline - time.monotonic(), LISTEN_SECS))) or {}
    if answer.get('kind') == 'welcome':
      return connection
    connection.close()
    if answer.get('kind') == 'refused':
      raise MeetingError(f'{_text(address)}: {answer["text"]}; start all with one --num_processes and ids of their own')
    reason = 'what listens there is no process of this run'
    time.sleep(RETRY_SECS)
  raise MeetingError(
    f'process {process} cannot reach process 0 of {num} at {_text(address)} within {timeout_secs:g} s ({reason}); '
    'see that it runs, and that its host and port are right'
  )


def _text(address: Sequence[Any]) -> str:
  return f'{address[0]}:{address[1]}'
