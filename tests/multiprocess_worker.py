"""What each process does in tests of several: stories named on the command line, which `launch/local.sh` starts."""

import json
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from mtl_jax import cli
from mtl_jax import config as configs
from mtl_jax.platform import launcher, processes


def read_config(place: Path) -> ConfigDict:
  return configs.from_json(json.loads((place / 'config.json').read_text()))


def train_until_signal(place: Path, number: signal.Signals) -> int:
  """The last process alone gets a signal, in its first step."""
  from mtl_jax.training import loop
  from mtl_jax.training.progress import ThroughputBar

  advance = ThroughputBar.advance

  def advance_and_signal(self: ThroughputBar, steps: int) -> None:
    advance(self, steps)
    if processes.index() == processes.count() - 1:
      os.kill(os.getpid(), number)

  ThroughputBar.advance = advance_and_signal
  loop.train(read_config(place), place / 'run')
  return 0


def go_on_and_evaluate(place: Path) -> int:
  """The run is resumed, and evaluated on several splits."""
  from mtl_jax.data.store import reader as store
  from mtl_jax.evaluation.command import evaluate_workdir
  from mtl_jax.run.checkpoint import Checkpoints
  from mtl_jax.training import loop

  workdir = place / 'run'
  said = {'steps': loop.train(read_config(place), workdir).step}
  said['preempted'] = Checkpoints(workdir)._manager.reached_preemption(6)
  for split in ('test', 'train'):
    found = evaluate_workdir(workdir, split=split, predictions=place / f'{split}.npz')
    said[split] = found['tasks']
  store.check_files = lambda *_: None  # As if the record had been spoilt after this.
  said['damaged'] = evaluate_workdir(workdir, split='train', data=place / 'damaged')['tasks']
  (place / f'said-{processes.index()}.json').write_text(json.dumps(said))
  return 0


def study(place: Path) -> int:
  """The study and the sweep of the config."""
  from mtl_jax.studies import study as studies
  from mtl_jax.sweeps import sweep

  found = {
    'study': studies.run(read_config(place), place / 'study'),
    'sweep': sweep.run(read_config(place), place / 'sweep'),
  }
  (place / f'said-{processes.index()}.json').write_text(json.dumps(found))
  return 0


def kill_in_a_study(place: Path) -> int:
  """The last process is killed when it has finished a replica, while the others train theirs or wait for it."""
  from mtl_jax.studies.results import ResultStore

  put = ResultStore.put

  def put_and_die(self: ResultStore, *arguments, **more) -> None:
    put(self, *arguments, **more)
    if processes.index() == processes.count() - 1:
      os.kill(os.getpid(), signal.SIGKILL)

  ResultStore.put = put_and_die
  return study(place)


def fail_in_a_save(place: Path, victim: int) -> int:
  """One process can write nothing any more after its third step, as on a disk of its own that is full."""
  from mtl_jax.training import loop
  from mtl_jax.training.progress import ThroughputBar

  advance, steps_done = ThroughputBar.advance, []

  def advance_and_fill(self: ThroughputBar, steps: int) -> None:
    advance(self, steps)
    steps_done.append(steps)
    if processes.index() == victim and len(steps_done) == 3:
      (place / 'failed_at').write_text(str(time.time()))
      resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))

  ThroughputBar.advance = advance_and_fill
  loop.train(read_config(place), place / 'run')
  return 0


STORIES = {
  'train': partial(train_until_signal, number=signal.SIGUSR1),
  'hang': partial(train_until_signal, number=signal.SIGSTOP),
  'go_on': go_on_and_evaluate,
  'study': study,
  'killed_study': kill_in_a_study,
  'full-0': partial(fail_in_a_save, victim=0),
  'full-1': partial(fail_in_a_save, victim=1),
}

if __name__ == '__main__':
  cli._set_up_logging()
  sys.exit(processes.run(partial(STORIES[sys.argv[1]], Path(sys.argv[2])), launcher.find(os.environ)))
