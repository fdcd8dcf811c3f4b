"""Processes meet at a port, exchange values, stop at the same call, and hear when one of them is gone."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mtl_jax import meeting
from mtl_jax.meeting import Host, MeetingError, Member


class Meeting:
  """Threads of this process stand for processes."""

  def __init__(self, num: int):
    self.address = ('127.0.0.1', meeting.free_port())
    self.host = Host(self.address, num)
    self.news: list[tuple[int, dict[str, Any]]] = []
    self.members = [self._member(i, num) for i in range(num)]
    self._executor = ThreadPoolExecutor(num)

  def _member(self, process: int, num: int) -> Member:
    return Member(
      self.address, process, num, timeout_secs=5, on_failure=lambda message: self.news.append((process, message))
    )

  def everyone(self, act: Callable[[Member], Any]) -> list[Any]:
    return [future.result(20) for future in [self._executor.submit(act, member) for member in self.members]]


def eventually(holds: Callable[[], Any]) -> bool:
  deadline = time.monotonic() + 5
  while not holds() and time.monotonic() < deadline:
    time.sleep(0.01)
  return bool(holds())


def test_values_come_to_all_in_the_order_of_processes():
  meeting_of_3 = Meeting(3)
  for round in range(3):
    found = meeting_of_3.everyone(lambda member, round=round: member.gather('x', [member.process, round]))
    assert found == [[[0, round], [1, round], [2, round]]] * 3
  odd = 0.1 + 0.2
  assert meeting_of_3.everyone(lambda member: member.gather('score', odd))[0][0] == odd


def test_all_stop_at_the_same_call_whenever_one_asks():
  random = np.random.default_rng(0)
  for trial in range(8):
    processes, asks_at = Meeting(3), int(random.integers(1, 20))
    pauses = random.uniform(0, 0.004, (3, 200))

    def steps_until_stop(member: Member, asks_at=asks_at, pauses=pauses, asker=trial % 3) -> int:
      for step in range(1, 200):
        time.sleep(pauses[member.process, step])
        if member.process == asker and step == asks_at:
          member.ask_to_stop()
        if member.stop_here():
          return step
      return -1

    stopped = processes.everyone(steps_until_stop)
    assert len(set(stopped)) == 1
    assert asks_at <= stopped[0] < 200


def test_a_process_that_waits_for_another_does_not_keep_it_from_stopping():
  """One waits in a computation until the other has come as far: as devices make it wait."""
  processes, reached = Meeting(2), [threading.Event() for _ in range(60)]

  def run(member: Member) -> int:
    for step in range(1, 60):
      if member.process == 0 and step == 20:
        member.ask_to_stop()
      if member.process == 1:
        reached[step].set()
      elif step % 5 == 0:
        assert reached[step].wait(10)
      if member.stop_here():
        return step
      time.sleep(0.002 * member.process)
    return -1

  first, second = processes.everyone(run)
  assert first == second >= 20


def test_a_process_that_dies_is_told_of_to_all_others():
  processes = Meeting(3)
  processes.members[1]._connection.close()
  assert eventually(lambda: {to for to, _ in processes.news} >= {0, 2})
  assert all('process 1 is gone' in message['text'] for to, message in processes.news if to != 1)


def test_a_process_that_fails_gives_the_others_its_exit_code():
  processes = Meeting(3)
  processes.members[2].fail(3, 'loss became nan')
  assert eventually(lambda: len(processes.news) == 2)
  assert sorted(to for to, _ in processes.news) == [0, 1]
  assert all((message['code'], message['process']) == (3, 2) for _, message in processes.news)


def test_leaving_after_the_end_is_no_failure():
  processes = Meeting(2)
  processes.everyone(Member.end)
  processes.members[1]._connection.close()
  processes.members[0]._connection.close()
  time.sleep(0.2)
  assert not processes.news


def test_waiting_for_values_can_be_broken_off():
  def stop() -> None:
    raise InterruptedError

  with pytest.raises(InterruptedError):
    Meeting(2).members[0].gather('x', None, stop=stop)


def test_missing_processes_are_named_within_the_time():
  address = ('127.0.0.1', meeting.free_port())
  host = Host(address, 3)
  Member(address, 0, 3, timeout_secs=5, on_failure=print)
  started = time.monotonic()
  with pytest.raises(MeetingError, match=r'2 of 3 processes did not come to 127.0.0.1:\d+ within 0.3 s: 1, 2;'):
    host.wait_for_all(0.3, address)
  assert time.monotonic() - started < 5


def test_a_coordinator_that_is_not_there_is_named_within_the_time():
  port = meeting.free_port()
  with pytest.raises(MeetingError, match=f'process 1 cannot reach process 0 of 2 at 127.0.0.1:{port} within 0.5 s'):
    Member(('127.0.0.1', port), 1, 2, timeout_secs=0.5, on_failure=print)


def test_something_else_at_the_port_is_not_taken_for_process_0():
  with socket.create_server(('127.0.0.1', 0)) as server:
    threading.Thread(target=lambda: server.accept()[0].sendall(b'SSH-2.0-x\r\n'), daemon=True).start()
    with pytest.raises(MeetingError, match=r'no process of this run|timed out'):
      Member(server.getsockname(), 1, 2, timeout_secs=0.5, on_failure=print)


def test_a_stranger_does_not_disturb_a_meeting():
  processes = Meeting(2)
  for words in (b'GET / HTTP/1.1\r\n\r\n', b'\xff\xfe\n', b'{"kind": "hello", "process": [0], "num": 2}\n', b''):
    with socket.create_connection(processes.address) as stranger:
      stranger.sendall(words)
  assert processes.everyone(lambda member: member.gather('x', member.process)) == [[0, 1]] * 2
  assert not processes.news


@pytest.mark.parametrize(
  ('process', 'num', 'reason'), [(1, 2, 'two processes say'), (0, 3, 'as one of 3'), (7, 2, 'number 7')]
)
def test_a_process_of_another_run_is_refused(process, num, reason):
  processes = Meeting(2)
  with pytest.raises(MeetingError, match=reason):
    Member(processes.address, process, num, timeout_secs=5, on_failure=print)
  assert not processes.news


def test_a_port_that_is_taken_is_told_in_one_line():
  with socket.create_server(('', 0)) as server, pytest.raises(MeetingError, match=r'cannot listen on .*choose another'):
    Host(('127.0.0.1', server.getsockname()[1]), 2)
