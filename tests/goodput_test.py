"""Every second of a run is accounted, under the heading of what it went into, over restarts."""

import json
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import small_runs

from mtl_jax.errors import Interrupted
from mtl_jax.run import goodput
from mtl_jax.run.checkpoint import Checkpoints
from mtl_jax.run.goodput import Goodput
from mtl_jax.training import loop

DELAY = 0.3  # Seconds.


@pytest.fixture(scope='module')
def config(faces):
  return small_runs.make_config(faces)


@pytest.fixture(scope='module')
def plain(config, tmp_path_factory) -> dict[str, float]:
  """The accounts of a run without delays, which also compiled what the others find in the cache."""
  directory = tmp_path_factory.mktemp('runs') / 'plain'
  loop.train(config, directory)
  return goodput.read(directory)['spent']


def slowed(function):
  def slow(*arguments, **keywords):
    time.sleep(DELAY)
    return function(*arguments, **keywords)

  return slow


def slow_input(read):
  def items(*arguments):
    for number, item in enumerate(read(*arguments)):
      if number == 4:
        time.sleep(DELAY)
      yield item

  return items


@pytest.mark.parametrize(
  ('heading', 'owner', 'name', 'slow', 'times'),
  [
    ('input', loop, 'input_items', slow_input, 1),
    ('eval', loop, 'validate', slowed, 2),
    ('save', Checkpoints, 'save', slowed, 4),
  ],
)
def test_delays_are_found_under_their_heading_alone(
  config, plain, tmp_path, monkeypatch, heading, owner, name, slow, times
):
  monkeypatch.setattr(owner, name, slow(getattr(owner, name)))
  started = time.monotonic()
  loop.train(config, tmp_path)
  took = time.monotonic() - started
  spent = goodput.read(tmp_path)['spent']
  assert spent[heading] >= times * DELAY
  assert 0.9 * took < sum(spent.values()) <= took  # Opening the data and closing the workdir lie outside.
  assert spent['restart'] == 0


def test_accounts_add_up_over_restarts_and_lost_steps_are_restart(config, plain, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 5)
    with pytest.raises(Interrupted):
      loop.train(config, tmp_path)
  before = goodput.read(tmp_path)
  assert before['step'] == 5
  assert before['spent']['restart'] == 0
  lost = {**before, 'step': 8, 'spent': {**before['spent'], 'step': before['spent']['step'] + 100.0}}
  (tmp_path / goodput.FILE).write_text(json.dumps(lost))  # As if killed after 100 s more, in which nothing was saved.
  started = time.monotonic()
  loop.train(config, tmp_path)
  took = time.monotonic() - started
  spent = goodput.read(tmp_path)['spent']
  assert 100 < spent['restart'] < 100 + took
  assert spent['step'] < 50
  assert 0.9 * took < sum(spent.values()) - sum(lost['spent'].values()) <= took


def test_compiling_is_an_account_of_its_own_and_counted_once():
  accounts = Goodput()

  @jax.jit
  def inner(x):
    return jnp.sin(x) + 1

  with accounts.timed('step'):
    started = time.monotonic()
    jax.jit(lambda x: inner(x) * inner(x + 2))(jnp.ones(3)).block_until_ready()
    took = time.monotonic() - started
  spent = accounts.now()
  assert 0 < spent['compile'] <= took
  assert spent['compile'] + spent['step'] >= took


class Clock:
  """Stands in for the module `time` of `goodput`."""

  def __init__(self) -> None:
    self.now = 50.0

  def monotonic(self) -> float:
    return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
  clock = Clock()
  monkeypatch.setattr(goodput, 'time', clock)
  return clock


def test_stages_of_compiling_within_one_another_count_once(clock):
  accounts = Goodput()
  with accounts.timed('eval'):
    clock.now += 8
    accounts.compiled(1)
    clock.now += 1
    accounts.compiled(3)  # The one before lies within this.
    clock.now += 4
    accounts.compiled(2)
    other = threading.Thread(target=accounts.compiled, args=(5.0,))  # What it compiles holds nobody up.
    other.start()
    other.join()
  spent = accounts.now()
  assert (spent['compile'], spent['eval']) == (5, 8)


def test_a_heading_inside_another_takes_its_own_time_only(clock):
  accounts = Goodput()
  clock.now += 1
  with accounts.timed('eval'):
    clock.now += 2
    with accounts.timed('save'):
      clock.now += 4
    clock.now += 8
  spent = accounts.now()
  assert (spent['rest'], spent['eval'], spent['save']) == (1, 10, 4)
  assert sum(spent.values()) == 15


def test_going_back_makes_what_was_done_since_a_restart(clock):
  accounts = Goodput()
  with accounts.timed('step'):
    clock.now += 5
  saved = accounts.now()
  with accounts.timed('input'):
    clock.now += 7
  accounts.rewind(saved)
  assert accounts.now() == saved | {'restart': 7}


def test_a_file_that_is_not_as_written_counts_for_nothing(tmp_path):
  for content in ('', '[]', '{"step": 1}', '{"step": 1, "spent": {"step": "x"}}'):
    (tmp_path / goodput.FILE).write_text(content)
    assert goodput.read(tmp_path) is None
  assert goodput.read(Path('/nowhere')) is None
