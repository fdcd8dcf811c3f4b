"""Real processes exchange values, stop at one call, and end when one of them fails, dies, hangs or never comes."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import small_runs

WORKER = Path(__file__).parent / 'bus_worker.py'
TIMEOUT_SECS = 120


class Processes:
  """`bus_worker.py` as several processes; each is `(number, of how many, seconds to come together)`."""

  def __init__(self, story: str, places: Sequence[tuple[int, int, float]], *, victim: int = -1, port: int = 0):
    self.port = port or small_runs.free_port()
    environment = {**os.environ, 'VICTIM': str(victim), 'XLA_FLAGS': ''}
    self.all = [
      subprocess.Popen(
        [sys.executable, str(WORKER), story, str(self.port), str(num), str(i), str(timeout)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i, num, timeout in places
    ]

  def wait_for(self, word: str, process: int = 0) -> None:
    """Waits until a process has said this on stdout."""
    stdout = self.all[process].stdout
    assert stdout
    assert any(word in line for line in stdout)

  def end(self, *, leave: Sequence[int] = ()) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; those to leave, as they were stopped, are killed once the others ended."""
    try:
      ended = {}
      for i in sorted(range(len(self.all)), key=lambda i: i in leave):
        if i in leave:
          self.all[i].kill()
        ended[i] = self.all[i].communicate(timeout=TIMEOUT_SECS)
      return [(process.returncode, *ended[i]) for i, process in enumerate(self.all)]
    finally:
      for process in self.all:
        process.kill()


def run(story: str, num: int = 2, *, victim: int = -1) -> list[tuple[int, str, str]]:
  return Processes(story, [(i, num, 60) for i in range(num)], victim=victim).end()


def codes(ended) -> list[int]:
  return [code for code, _, _ in ended]


def test_values_come_to_all_in_the_order_of_processes_and_the_end_is_clean():
  ended = run('gather', 3)
  assert codes(ended) == [0, 0, 0], ended
  assert all('gathered 3 1300000' in output for _, output, _ in ended)
  assert all('Traceback' not in errors and 'Terminating' not in errors for _, _, errors in ended)


def test_processes_that_come_to_their_end_at_different_times_end_cleanly():
  assert codes(run('end')) == [0, 0]


@pytest.mark.parametrize(
  'victim', [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_all_stop_at_the_same_call_when_one_gets_a_signal(victim):
  ended = run('stop', 3, victim=victim)
  assert codes(ended) == [75, 75, 75], ended
  (step,) = {int(re.findall(r'stopped at (\d+)', output)[0]) for _, output, _ in ended}
  assert step >= 30


# In 2 of 3 processes, one more or less idle; what the others say, and their exit code.
GONE = 'process {victim} is gone: it was killed or stopped, or its host is lost'
HARMS = [
  ('collective', 'bad_input', 1, 2, 'process 1 has ended: labels.csv: row 3 is cut short; fetch it again'),
  ('idle', 'SIGKILL', 1, 1, GONE),
  *[
    pytest.param(*harm, marks=pytest.mark.slow)
    for harm in [
      ('gather', 'bad_input', 0, 2, 'process 0 has ended: labels.csv: row 3 is cut short; fetch it again'),
      ('idle', 'error', 1, 1, 'process 1 has ended: an error in mtl_jax'),
      ('gather', 'error', 0, 1, 'process 0 has ended: an error in mtl_jax'),
      ('collective', 'watchdog', 2, 4, 'process 2 has ended: nothing was completed'),
      ('gather', 'SIGKILL', 1, 1, GONE),
      ('collective', 'SIGKILL', 1, 1, GONE),
      ('collective', 'SIGKILL', 2, 1, GONE),
      ('idle', 'exit', 1, 1, GONE),
      ('collective', 'exit', 1, 1, GONE),
      ('idle', 'SIGSTOP', 1, 1, GONE),
      ('collective', 'SIGSTOP', 2, 1, GONE),
      ('gather', 'SIGTERM', 1, 75, 'process 1 has ended: interrupted'),
      ('idle', 'SIGUSR1', 0, 75, 'process 0 has ended: interrupted'),
    ]
  ],
]


@pytest.mark.parametrize(('where', 'how', 'victim', 'code', 'line'), HARMS)
def test_one_that_fails_or_dies_ends_the_others_with_its_line(where, how, victim, code, line):
  processes = Processes(f'harm-{where}-{how}', [(i, 3, 60) for i in range(3)], victim=victim)
  ended = processes.end(leave=[victim] if how == 'SIGSTOP' else [])
  now = time.time()
  others = [one for i, one in enumerate(ended) if i != victim]
  assert codes(others) == [code, code], ended
  assert all(line.format(victim=victim) in errors for _, _, errors in others), others
  assert all('Traceback' not in errors for _, _, errors in others), others
  harmed = float(re.findall(r'harmed (\S+)', ended[victim][1])[0])
  assert now - harmed < 20  # On a busy machine; JAX alone waits for 300 s.


@pytest.mark.parametrize('where', ['idle', pytest.param('collective', marks=pytest.mark.slow)])
@pytest.mark.parametrize('how', ['SIGKILL', pytest.param('SIGSTOP', marks=pytest.mark.slow)])
def test_the_loss_of_process_0_ends_the_others_with_a_code_that_is_not_0(where, how):
  """JAX ends them itself, with its own trace, unless ours comes first."""
  processes = Processes(f'harm-{where}-{how}', [(i, 3, 60) for i in range(3)], victim=0)
  others = processes.end(leave=[0])[1:] if how == 'SIGSTOP' else processes.end()[1:]
  assert all(code in (1, -6) for code in codes(others)), others


def test_a_missing_process_is_one_line_and_exit_code_2():
  ended = Processes('wait', [(0, 3, 5), (1, 3, 5)]).end()
  assert codes(ended) == [2, 2]
  assert all('3 processes did not come together at 127.0.0.1:' in errors for _, _, errors in ended)


@pytest.mark.parametrize('process', [0, 1])
def test_sigterm_while_the_others_are_waited_for_is_75(process):
  processes = Processes('wait', [(process, 2, 100)])
  processes.wait_for('begins')
  time.sleep(2)
  processes.all[0].terminate()
  ((code, _, errors),) = processes.end()
  assert code == 75, errors
  assert 'interrupted; the same command starts again' in errors


def test_a_taken_port_is_one_line_and_exit_code_2():
  with socket.create_server(('', 0)) as server:
    ((code, _, errors),) = Processes('wait', [(0, 2, 5)], port=server.getsockname()[1]).end()
  assert code == 2
  assert re.fullmatch(r'mtl-jax: error: cannot listen on 127.0.0.1:\d+: .*; choose another port\n', errors)


def test_a_stranger_in_place_of_process_0_is_one_line_and_exit_code_2():
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    threading.Thread(
      target=lambda: [server.accept()[0].sendall(b'SSH-2.0-x\r\n') for _ in range(2)], daemon=True
    ).start()
    ((code, _, errors),) = Processes('wait', [(1, 2, 3)], port=port).end()
  assert code == 2
  assert 'what listens there is none of this run' in errors


def test_a_process_that_was_started_as_one_of_another_number_is_named():
  ended = Processes('wait', [(0, 2, 60), (1, 3, 60)]).end()
  assert codes(ended) == [2, 2]
  lines = (
    'process 1 was started as one of 3, process 0 as one of 2',
    'process 0 was started as one of 2, process 1 as one of 3',
  )
  assert any(line in ended[0][2] for line in lines), ended  # Of whoever saw it first.


@pytest.mark.slow
def test_two_processes_of_one_number_end_the_run_with_a_line():
  ended = Processes('wait', [(0, 2, 60), (1, 2, 60), (1, 2, 60)]).end()
  assert all(codes(ended)), ended
  assert 'two processes say that they are number 1; give each an id of its own' in ''.join(one[2] for one in ended)


GARBAGE = [
  b'GET / HTTP/1.1\r\n\r\n',
  b'\xff\xfe\n',
  b'{"kind": "failed", "process": 1, "code": 0}\n',
  b'',
  b'\0' * 70_000,
]


def test_strangers_at_the_port_do_not_disturb_a_run():
  """Garbage, and more connections than a process may have idle ones of."""
  processes = Processes('wait', [(0, 2, 60), (1, 2, 60)])
  processes.wait_for('waits')
  flood = []
  for _ in range(300):
    flood.append(socket.create_connection(('127.0.0.1', processes.port)))
  for words in GARBAGE:
    with socket.create_connection(('127.0.0.1', processes.port)) as stranger:
      stranger.sendall(words)
  ended = processes.end()
  for one in flood:
    one.close()
  assert codes(ended) == [0, 0], ended


FORGED = """
import sys
from jax._src.lib import _jax
client = _jax.get_distributed_runtime_client(f'127.0.0.1:{sys.argv[1]}', 1, init_timeout=30, heartbeat_timeout=10)
client.connect()
key = sys.argv[3:] or [f'mtl_jax/news/{client.key_value_increment("mtl_jax/news/count", 1)}']
client.key_value_set(key[0], sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'news', [json.dumps({'kind': 'failed', 'process': 7, 'code': 0, 'text': 'x'}), '{', '[1]', '{}']
)
def test_news_that_no_process_has_sent_end_a_run_with_a_code_that_is_not_0(news):
  """Whoever speaks the coordinator's protocol can end a run: the port belongs behind a firewall."""
  processes = Processes('idle', [(0, 2, 60), (1, 2, 60)])
  processes.wait_for('waits')
  subprocess.run([sys.executable, '-c', FORGED, str(processes.port), news], capture_output=True, timeout=60)
  assert all(codes(processes.end()))


@pytest.mark.slow
@pytest.mark.parametrize('of', ['1', 'all'])
@pytest.mark.parametrize('value', ['{', '9' * 6000, '[' * 100_000])
def test_a_value_that_no_process_has_given_ends_a_run_with_an_exit_code_and_no_crash(monkeypatch, of, value):
  monkeypatch.setenv('WAIT_SECS', '15')
  processes = Processes('wait', [(0, 2, 60), (1, 2, 60)])
  processes.wait_for('waits')
  key = f'mtl_jax/values/end of the wait/1/{of}'
  subprocess.run([sys.executable, '-c', FORGED, str(processes.port), value, key], capture_output=True, timeout=60)
  ended = processes.end()
  assert all(code > 0 for code in codes(ended)), ended  # Below 0: killed by a signal, as in a crash.


def test_the_private_client_of_jax_has_what_the_bus_calls():
  """Where this fails, JAX has moved or renamed it: `bus.client` is the one place that names it."""
  from jax._src.lib import _jax

  from mtl_jax.platform import bus

  assert bus.client() is None  # jax.distributed is not initialized here.
  names = [
    'blocking_key_value_get',
    'key_value_set',
    'key_value_increment',
    'key_value_dir_get',
    'key_value_delete',
    'get_live_nodes',
  ]
  assert [name for name in names if not hasattr(_jax.DistributedRuntimeClient, name)] == []
