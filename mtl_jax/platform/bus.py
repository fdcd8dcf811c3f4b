"""Passes messages between the processes of a run, over the key-value store of jax.distributed's coordinator.

Process 0 runs the coordinator, in C++. Two threads of each process listen: one reads the news, which all processes
hear in one order (requests to stop, failures); one asks the coordinator who lives, by heartbeats that no busy
interpreter delays.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax

from mtl_jax.errors import one_line

PREFIX = 'mtl_jax'
POLL_SECS = 1.0  # Between looks at who lives, and at what may break off a wait.
HEARD_SECS = 3.0  # In which a failure is passed on to those who live.
LEAVE_SECS = 10.0  # In which the others have left the coordinator after the end.

Stop = Callable[[], None] | None


def client() -> Any:
  """The coordinator's client, which has no public name in JAX; Orbax imports it in the same way."""
  from jax._src import distributed

  return distributed.global_state.client


class Bus:
  """The message bus of process `process` of `num`, after `jax.distributed.initialize`."""

  def __init__(self, process: int, num: int, *, on_failure: Callable[[dict[str, Any]], None]):
    """Starts the threads that listen.

    Args:
      process: this one's number.
      num: how many there are.
      on_failure: is called, in a thread, when another process has failed, with `process`, `code` (1 to 255) and `text`.
    """
    self.process, self.num = process, num
    self._client, self._on_failure = client(), on_failure
    self._lock, self._times = threading.Lock(), dict[str, int]()
    self._agreed, self._over, self._ending = threading.Condition(), threading.Event(), threading.Event()
    self._calls, self._answers, self._stop_at, self._asked = 0, dict[int, int](), 0, False
    acts = (self._listen, self._watch)
    self._threads = [threading.Thread(target=self._guarded, args=(act,), name='bus', daemon=True) for act in acts]
    for thread in self._threads:
      thread.start()

  def gather(self, name: str, value: Any, *, stop: Stop = None) -> list[Any]:
    """The JSON values of all processes in their order; waits for the last. All call this for a name equally often.

    `stop` is called about once a second meanwhile and may raise.
    """
    with self._lock:
      self._times[name] = time = self._times.get(name, 0) + 1
    here = f'{PREFIX}/values/{name}/{time}'
    self._client.key_value_set(f'{here}/{self.process}', json.dumps(value))
    if self.process == 0:
      given = [self._get(f'{here}/{i}', stop) for i in range(self.num)]
      self._client.key_value_set(f'{here}/all', f'[{",".join(given)}]')
    values = json.loads(self._get(f'{here}/all', stop))
    if self.process == 0 and time > 1:  # All have given a value since they read the one before.
      self._client.key_value_delete(f'{PREFIX}/values/{name}/{time - 1}/')
    return values

  def fail(self, code: int, text: str) -> None:
    """Tells the others that this process ends with an exit code, and why; waits until they know, if not for long."""
    text = f'process {self.process} has ended: {text}'
    news = {'kind': 'failed', 'process': self.process, 'code': code, 'text': text}
    telling = threading.Thread(target=lambda: (self._say(news), self._wait_until_heard(self.process)), daemon=True)
    telling.start()
    telling.join(HEARD_SECS)

  def ask_to_stop(self) -> None:
    """Asks all processes to stop at one call of `stop_here`."""
    with self._agreed:
      first, self._asked = not self._asked, True
    if first:
      self._say({'kind': 'stop'})

  @property
  def asked_to_stop(self) -> bool:
    """True once any process has asked, as far as is known here."""
    return self._asked

  def stop_here(self) -> bool:
    """True from one call on, the same for all processes, once any has asked to stop; all call this equally often.

    When the question arrives, each answers with how many calls it has made, and makes no further one until all have
    answered; they stop at the call after the furthest one's. Answers come from a thread of their own, so that a
    process that waits for others in a computation does not keep them waiting here.
    """
    with self._agreed:
      self._agreed.wait_for(lambda: self.process not in self._answers or self._stop_at)
      self._calls += 1
      return bool(self._stop_at) and self._calls >= self._stop_at

  def end(self) -> None:
    """Waits until all have come to their end, and leaves the coordinator; process 0, the last, closes it."""
    self.gather('end', None)
    self._over.set()
    deadline = time.monotonic() + LEAVE_SECS
    while self.process == 0 and len(self._living()) > 1 and time.monotonic() < deadline:
      time.sleep(0.02)
    jax.distributed.shutdown()  # Which breaks off what the threads wait for.
    for thread in self._threads:
      thread.join()

  def _say(self, news: dict[str, Any]) -> None:
    number = self._client.key_value_increment(f'{PREFIX}/news/count', 1)
    self._client.key_value_set(f'{PREFIX}/news/{number}', json.dumps(news))

  def _get(self, key: str, stop: Stop = None) -> str:
    while True:
      try:
        return self._client.blocking_key_value_get(key, int(1000 * POLL_SECS))
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise
      if stop:
        stop()

  def _living(self) -> set[int]:
    """Numbers of the processes that live. Waits until all of them ask this."""
    return set(self._client.get_live_nodes(list(range(self.num))))

  def _guarded(self, act: Callable[[], None]) -> None:
    try:
      act()
    except Exception as error:
      if self._over.is_set() or self._ending.is_set():  # What the other thread knows says more than a lost connection.
        return
      lost = isinstance(error, jax.errors.JaxRuntimeError)
      text = f'the news is none of this run ({one_line(error)})'
      self._on_failure(self._gone(0) if lost else {'process': 0, 'code': 1, 'text': text})

  def _listen(self) -> None:
    for number in itertools.count(1):
      self._hear(json.loads(self._get(f'{PREFIX}/news/{number}')))

  def _hear(self, news: dict[str, Any]) -> None:
    if news['kind'] == 'failed' and news['process'] != self.process:
      self._pass_on(news)
    with self._agreed:
      answer = news['kind'] == 'stop' and self.process not in self._answers
      if answer:
        self._asked = True
        self._answers[self.process] = self._calls
      if news['kind'] == 'calls':
        self._answers[int(news['process'])] = int(news['calls'])
        if len(self._answers) == self.num:
          self._stop_at = max(self._answers.values()) + 1
          self._agreed.notify_all()
    if answer:
      self._say({'kind': 'calls', 'process': self.process, 'calls': self._calls})

  def _watch(self) -> None:
    while not self._over.wait(POLL_SECS):
      lost = sorted(set(range(self.num)) - self._living())
      if lost and not self._has_ended():
        self._pass_on(self._gone(lost[0]))

  def _gone(self, process: int) -> dict[str, Any]:
    stopped = 'was stopped for longer than --heartbeat'
    text = stopped if process == self.process else 'is gone: it was killed or stopped, or its host is lost'
    return {'process': process, 'code': 1, 'text': f'process {process} {text}'}

  def _has_ended(self) -> bool:
    """True once all have come to their end, after which the first may leave before the last has read of it."""
    return self._over.is_set() or len(self._client.key_value_dir_get(f'{PREFIX}/values/end/1/')) > self.num

  def _pass_on(self, news: dict[str, Any]) -> None:
    """Says that this process knows; process 0 takes the coordinator with it, so it waits until all who live know."""
    self._ending.set()
    if self.process:
      with suppress(jax.errors.JaxRuntimeError):
        self._client.key_value_set(f'{PREFIX}/heard/{self.process}', '', allow_overwrite=True)
    waiting = threading.Thread(target=self._wait_until_heard, args=(news['process'],), daemon=True)
    waiting.start()
    waiting.join(HEARD_SECS)
    self._on_failure({**news, 'code': min(max(int(news['code']), 1), 255)})

  def _wait_until_heard(self, failed: int) -> None:
    if self.process == 0:
      for i in {*range(1, self.num)} - {failed}:
        with suppress(jax.errors.JaxRuntimeError):
          self._client.blocking_key_value_get(f'{PREFIX}/heard/{i}', int(1000 * HEARD_SECS))
