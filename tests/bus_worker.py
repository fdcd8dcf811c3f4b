"""What each process does in tests of the bus: stories named on the command line, none of which trains."""

import os
import random
import signal
import sys
import threading
import time
from functools import partial

from mtl_jax import cli
from mtl_jax.errors import DataError
from mtl_jax.platform import processes
from mtl_jax.platform.launcher import ProcessInfo
from mtl_jax.training import interrupt

VICTIM = int(os.environ.get('VICTIM', '-1'))


def say(*words: object) -> None:
  print(processes.index(), *words, flush=True)


def is_victim() -> bool:
  return processes.index() == VICTIM % processes.count()


def gather() -> int:
  """Values of many sizes, from two threads."""
  for i in range(20):
    assert processes.gather('small', [processes.index(), i]) == [[p, i] for p in range(processes.count())]
  odd = 0.1 + 0.2
  assert processes.from_first('score', odd if processes.index() == 0 else None) == odd
  threads = [threading.Thread(target=processes.gather, args=(f'of_{name}', name)) for name in 'ab']
  for thread in threads:
    thread.start()
  large = processes.gather('large', 'x' * 1_300_000)
  for thread in threads:
    thread.join()
  say('gathered', len(large), len(large[-1]))
  return 0


def stop() -> int:
  """Loops until all stop, each at its own pace; the victim asks, or a signal does."""
  moment = random.Random(processes.index())
  with interrupt.Interruption() as interruption:
    say('loops')
    for step in range(1, 10_000):
      time.sleep(moment.uniform(0, 0.004))
      if is_victim() and step == 30:
        os.kill(os.getpid(), signal.SIGTERM)
      if interruption.requested():
        say('stopped at', step)
        return 75
  return 0


def wait_in(what: str, how: str) -> int:
  """The victim comes to harm while the others wait for it."""
  from jax.experimental import multihost_utils

  if what == 'collective':
    multihost_utils.sync_global_devices('all are here')
  processes.gather('ready', None)
  if is_victim():
    say('harmed', time.time())
    harm(how)
  {
    'gather': lambda: processes.gather('never', None),
    'collective': lambda: multihost_utils.sync_global_devices('never'),
    'idle': lambda: time.sleep(100),
  }[what]()
  return 0


def harm(how: str) -> None:
  if how == 'bad_input':
    raise DataError('labels.csv: row 3 is cut short; fetch it again')
  if how == 'error':
    raise RuntimeError('a bug')
  if how == 'exit':
    os._exit(0)
  if how == 'watchdog':
    processes.exit_now(4, 'nothing was completed')
  os.kill(os.getpid(), getattr(signal, how))
  time.sleep(30)  # Python hears a signal between two steps of its own, not inside the call that follows.


def end() -> int:
  """Comes to the end at a time of its own."""
  time.sleep(processes.index())
  return 0


def wait() -> int:
  say('waits')
  time.sleep(float(os.environ.get('WAIT_SECS', '3')))
  assert processes.gather('end of the wait', 1) == [1] * processes.count()
  return 0


def idle() -> int:
  say('waits')
  time.sleep(100)
  return 0


if __name__ == '__main__':
  story, port, num, process, timeout = sys.argv[1:6]
  stories = {'gather': gather, 'stop': stop, 'end': end, 'wait': wait, 'idle': idle}
  name, *rest = story.split('-')
  act = partial(wait_in, *rest) if name == 'harm' else stories[name]
  cli._set_up_logging()
  place = ProcessInfo(f'127.0.0.1:{port}', int(num), int(process))
  with interrupt.end_before_first_run():
    say('begins')
    sys.exit(processes.run(act, place, timeout_secs=float(timeout), heartbeat_secs=2.0))
