"""Real signals and kills, at random moments: what a run says, how it ends, and that nothing is lost."""

import collections
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_runs

from mtl_jax.run import digests
from mtl_jax.training import loop
from mtl_jax.training.progress import read_metrics

LAUNCHER = Path(__file__).parents[1] / 'launch' / 'local.sh'
SOAK_KILLS = 30


def python(program: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=small_runs.one_device(),
  )


# A mutex that is locked twice: unlike a sleep, no signal ends the wait, as in a collective that hangs.
HANG = """
import ctypes
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
def hang_in_a_collective():
  libc.pthread_mutex_lock(mutex)
  print('hangs', flush=True)
  libc.pthread_mutex_lock(mutex)
"""


def test_a_second_sigint_leaves_at_once_even_from_a_call_that_hangs():
  process = python(
    f'{HANG}\nfrom mtl_jax.training.interrupt import Interruption\nwith Interruption(): hang_in_a_collective()'
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'hangs\n'
  process.send_signal(signal.SIGINT)
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(0.3)
  said = small_runs.end(process, signal.SIGINT)
  assert process.returncode == 75
  assert said.strip() == 'mtl-jax: left at once; the same command goes on from the last complete checkpoint'


def test_the_watchdog_shows_every_stack_and_ends_a_run_that_hangs():
  process = python(
    f'{HANG}\nfrom mtl_jax.training.watchdog import Watchdog\n'
    'with Watchdog(0.5) as watchdog:\n  watchdog.beat("step 7")\n  hang_in_a_collective()'
  )
  said = process.communicate(timeout=60)[1]
  assert process.returncode == 4
  assert 'in hang_in_a_collective' in said
  assert said.splitlines()[-1].startswith(
    'mtl-jax: error: nothing was completed for 0.5 s (config.train.watchdog_secs) after step 7'
  )


def test_the_watchdog_waits_for_a_compilation_and_for_a_run_that_goes_on():
  process = python("""
import time
import numpy as np
from mtl_jax.training.watchdog import Watchdog
with Watchdog(0.4) as watchdog:
  step = watchdog.watching(lambda batch: time.sleep(1.0))  # Longer than allowed: shapes that are new may compile.
  step(np.zeros(3))
  step(np.zeros(4))
  for _ in range(10):
    time.sleep(0.1)
    watchdog.beat()
time.sleep(1.0)
""")
  assert process.communicate(timeout=60)[1] == ''
  assert process.returncode == 0


FIRST_SECONDS = """
import sys
from mtl_jax.__main__ import main
print('begins', flush=True)
sys.exit(main())
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
  'seconds', [0.03, pytest.param(0.4, marks=pytest.mark.slow), pytest.param(1.5, marks=pytest.mark.slow)]
)
def test_a_signal_in_the_first_seconds_is_75(faces, tmp_path, number, seconds):
  arguments = small_runs.command(tmp_path, small_runs.make_config(faces, **{'train.steps': 10_000}), tmp_path / 'run')[
    3:
  ]
  process = subprocess.Popen(
    [sys.executable, '-c', FIRST_SECONDS, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=small_runs.one_device(),
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'begins\n'
  time.sleep(seconds)
  said = small_runs.end(process, number)
  assert process.returncode == 75, said
  assert 'Traceback' not in said


def last_step(directory: Path) -> int:
  lines = read_metrics(directory / 'metrics.jsonl')
  return lines[-1]['step'] if lines else 0


def wait_for_step(process: subprocess.Popen, directory: Path, step: int) -> None:
  while last_step(directory) < step:
    assert process.poll() is None, process.stderr.read() if process.stderr else ''
    time.sleep(0.005)


def test_a_run_killed_in_a_save_goes_on_from_the_last_complete_checkpoint_to_the_same_bits(
  faces, tmp_path, monkeypatch
):
  """Saves every step, so that any moment is one inside a save."""
  config = small_runs.make_config(faces, **{'train.steps': 24, 'checkpoint.every_steps': 1})
  parts = tmp_path / 'parts'
  command = small_runs.command(tmp_path, config, parts)
  process = small_runs.start(command, environment=small_runs.one_device())
  folder = parts / 'checkpoints'
  wait_for_step(process, parts, 5)
  while not list(folder.glob('*-tmp*')):
    time.sleep(0.001)
  small_runs.end(process, signal.SIGKILL)
  assert process.returncode == -signal.SIGKILL
  process = small_runs.start(command, environment=small_runs.one_device())
  said = small_runs.end(process)
  assert process.returncode == 0, said
  assert re.search(r'resuming at step \d+', said)
  small_runs.on_one_device(monkeypatch)
  loop.train(config, tmp_path / 'whole')
  small_runs.assert_same_bits(tmp_path / 'whole', parts)


def processes_of(launcher: subprocess.Popen) -> list[int]:
  """The training processes that a launcher has started and that live, in order."""
  try:
    children = Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()
    return [int(child) for child in children if b'mtl_jax' in Path(f'/proc/{child}/cmdline').read_bytes()]
  except OSError:
    return []


def resident_mb(process: int) -> float:
  """Memory of a process in MB; 0 once it has ended."""
  try:
    lines = Path(f'/proc/{process}/status').read_text().splitlines()
  except OSError:
    return 0.0
  return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith('VmRSS')), 0.0)


def start_both(command: list[str]) -> subprocess.Popen:
  """The command as a run of two processes."""
  python, verb = command[:3], command[3:]
  environment = {**small_runs.one_device(), 'MTL_JAX': ' '.join(python)}
  return small_runs.start([str(LAUNCHER), '-n', '2', *verb], environment=environment)


def uninterrupted(command: list[str], directory: Path) -> list[float]:
  """Runs to the end; the first process's memory in MB at steps 500, 1000, 1500 and about 1950."""
  launcher = start_both(command)
  memory = []
  for step in (500, 1000, 1500, 1950):
    wait_for_step(launcher, directory, step)
    memory.append(resident_mb(processes_of(launcher)[0]))
  said = small_runs.end(launcher)
  assert launcher.returncode == 0, said
  return memory


@pytest.mark.slow
def test_signals_and_kills_of_one_or_all_processes_end_both_and_the_run_comes_to_the_same_bits(faces, tmp_path):
  """Four steps a dispatch, so that processes are asked between different steps."""
  overrides = {'train.steps': 1000, 'train.steps_per_dispatch': 4, 'checkpoint.every_steps': 100}
  config = small_runs.make_config(faces, **overrides, **{'train.log_every_steps': 20, 'eval.every_steps': 500})
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  launcher = start_both(small_runs.command(tmp_path, config, whole))
  said = small_runs.end(launcher)
  assert launcher.returncode == 0, said
  command = small_runs.command(tmp_path, config, parts)
  numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
  rounds = [(number, to) for number in numbers for to in ([0], [1], [0, 1])]
  rounds += [(signal.SIGKILL, [0]), (signal.SIGKILL, [1])]
  for round, (number, to) in enumerate(rounds):
    launcher = start_both(command)
    assert wait_to_kill(launcher, parts, 80 * round + 20, random.Random(round))
    every = processes_of(launcher)
    for i in to:
      os.kill(every[i], number)
    said = small_runs.end(launcher)
    killed = number == signal.SIGKILL
    assert launcher.returncode == (128 + signal.SIGKILL if killed else 75), (number, to, said)
    assert len(re.findall(r'interrupted and saved at step (\d+)', said)) == (not killed), said
    assert 'Traceback' not in said
  launcher = start_both(command)
  said = small_runs.end(launcher)
  assert launcher.returncode == 0, said
  small_runs.assert_same_bits(whole, parts)


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGKILL, 137), (signal.SIGTERM, 75)])
def test_one_that_is_killed_or_stopped_before_step_1_ends_both_and_the_run_begins(faces, tmp_path, number, code):
  """While the step is compiled: nothing has been saved."""
  config = small_runs.make_config(faces)
  command = small_runs.command(tmp_path, config, tmp_path / 'run')
  launcher = start_both(command)
  assert launcher.stderr
  said = next(line for line in launcher.stderr if 'parameters:' in line)
  os.kill(processes_of(launcher)[1], number)
  said += small_runs.end(launcher)
  assert launcher.returncode == code, said
  assert 'Traceback' not in said
  launcher = start_both(command)
  said = small_runs.end(launcher)
  assert launcher.returncode == 0, said
  assert last_step(tmp_path / 'run') == 12


def wait_to_kill(launcher: subprocess.Popen, directory: Path, goal: int, moment: random.Random) -> bool:
  """Waits until the run has come to the goal and a random time more; False if it had ended."""
  path, began = directory / 'metrics.jsonl', time.time()
  while not (path.exists() and path.stat().st_mtime > began and last_step(directory) >= goal):
    if launcher.poll() is not None:
      return False
    time.sleep(0.01)
  time.sleep(moment.uniform(0, 0.1))
  return launcher.poll() is None


@pytest.mark.slow
def test_two_thousand_steps_of_two_processes_with_random_kills_end_in_the_same_bits(faces, tmp_path):
  """Tens of kills, of every kind, at random moments; prints what it met (pytest -s)."""
  overrides = {'train.log_every_steps': 5, 'eval.every_steps': 250, 'checkpoint.every_steps': 10}
  config = small_runs.make_config(faces, **{'train.steps': 2000, 'optimizer.ema_decay': 0.99, **overrides})
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  memory = uninterrupted(small_runs.command(tmp_path, config, whole), whole)
  command, seed = small_runs.command(tmp_path, config, parts), time.time_ns() % 10_000
  moment, met, resumed = random.Random(seed), collections.Counter(), set()
  stops = [(signal.SIGTERM,), (signal.SIGUSR1,), (signal.SIGINT,) * 2]
  for number in range(SOAK_KILLS):
    launcher, signals, killed = start_both(command), (), []
    if number % 8 == 7:  # Also while they start.
      until, began = time.time() + moment.uniform(0, 8), (parts / 'metrics.jsonl').stat().st_mtime
      while time.time() < until and (parts / 'metrics.jsonl').stat().st_mtime == began:
        time.sleep(0.01)
      killed, how = processes_of(launcher), 'both killed in the start'
    elif not wait_to_kill(launcher, parts, 1900 * number // SOAK_KILLS, moment):
      how = 'ended'
    elif moment.random() < 0.5:
      killed = moment.choice([processes_of(launcher), processes_of(launcher)[:1], processes_of(launcher)[1:]])
      how = 'one killed' if len(killed) == 1 else 'both killed'
    else:
      signals = moment.choice(stops)
      how = '+'.join(each.name for each in signals)
    for process in killed:
      os.kill(process, signal.SIGKILL)
    said = small_runs.end(launcher, *signals)
    met[how] += 1
    resumed |= set(re.findall(r'resuming at step (\d+)', said))
    met['saves cut short'] += said.count('is a save that was cut short')
    expected = 128 + signal.SIGKILL if killed else 75 if signals else 0
    assert launcher.returncode == expected, (seed, how, said)
    assert 'Traceback' not in said, (seed, how, said)
    assert 'is not as it was saved' not in said, (seed, how, said)
  launcher = start_both(command)
  said = small_runs.end(launcher)
  assert launcher.returncode == 0, (seed, said)
  resumed |= set(re.findall(r'resuming at step (\d+)', said))
  assert not met['ended'], (seed, met)
  print(f'\nseed {seed}: {dict(met)}\nMB at steps 500 to 1950: {memory}\n{said.splitlines()[-1]}')
  small_runs.assert_same_bits(whole, parts)
  assert names(parts) == names(whole)
  assert all(path.name.isdigit() and not digests.damage(path) for path in (parts / 'checkpoints').iterdir())
  ours, theirs = ([line['step'] for line in read_metrics(one / 'metrics.jsonl')] for one in (parts, whole))
  assert ours == sorted(set(ours))
  assert set(theirs) <= set(ours)
  assert set(ours) - set(theirs) <= set(map(int, resumed))  # A run that is asked to stop logs that step too.
  assert memory[-1] < memory[0] + 50


def names(directory: Path) -> set[str]:
  """Of a workdir's files; each start writes events of its own."""
  return {path.name for path in directory.iterdir() if 'tfevents' not in path.name}
