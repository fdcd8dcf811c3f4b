"""What may happen to a workdir: checkpoints cut short or changed on disk, a full disk, a folder that vanishes."""

import json
import logging
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_runs

from mtl_jax.errors import CheckpointError, Interrupted
from mtl_jax.run import digests, trained_model
from mtl_jax.run.checkpoint import Checkpoints
from mtl_jax.training import loop


@pytest.fixture(scope='module')
def config(faces):
  return small_runs.make_config(faces)


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory) -> Path:
  """The workdir of a run that nothing happened to; tests must not write into it."""
  directory = tmp_path_factory.mktemp('runs') / 'whole'
  loop.train(config, directory)
  return directory


@pytest.fixture(scope='module')
def stopped(config, tmp_path_factory) -> Path:
  """The workdir of a run stopped at step 10, with checkpoints of 6 (the best), 9 and 10; copied by tests."""
  directory = tmp_path_factory.mktemp('runs') / 'stopped'
  with pytest.MonkeyPatch.context() as patch:
    small_runs.at_step(patch, 10)
    with pytest.raises(Interrupted):
      loop.train(config, directory)
  return directory


@pytest.fixture
def copy(stopped, tmp_path) -> Path:
  return Path(shutil.copytree(stopped, tmp_path / 'copy'))


def largest_file(checkpoint: Path) -> Path:
  return max((path for path in checkpoint.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(checkpoint: Path) -> None:
  path = largest_file(checkpoint)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def cut_short(checkpoint: Path) -> None:
  path = largest_file(checkpoint)
  path.write_bytes(path.read_bytes()[:-1])


def wait_for(path: Path) -> None:
  while not path.exists():
    time.sleep(0.01)


def steps_in(directory: Path) -> set[str]:
  return {path.name for path in (directory / 'checkpoints').iterdir()}


def test_every_file_of_a_checkpoint_that_is_changed_cut_or_removed_is_noticed(copy):
  checkpoint = copy / 'checkpoints' / '10'
  paths = [path for path in checkpoint.rglob('*') if path.is_file() and path.name != digests.FILE]
  assert len(paths) > 8
  for path in paths:
    content = path.read_bytes()
    for harmed in (content[:-1], b'~' + content[1:] if content else None, None):
      if harmed == content:
        continue
      path.unlink()
      if harmed is not None:
        path.write_bytes(harmed)
      assert path.relative_to(checkpoint).as_posix() in (digests.damage(checkpoint) or '')
      path.write_bytes(content)
  assert digests.damage(checkpoint) is None
  (checkpoint / digests.FILE).write_bytes((checkpoint / digests.FILE).read_bytes()[:-5])
  assert digests.damage(checkpoint)


def test_damaged_and_unfinished_checkpoints_are_said_and_the_one_before_is_used(copy, whole, config, said):
  folder = copy / 'checkpoints'
  flip_a_bit(folder / '10')
  shutil.copytree(folder / '10', folder / '11.orbax-checkpoint-tmp')
  loop.train(config, copy)
  unfinished, damaged = [line for line in said if line.startswith('warning')]
  assert 'checkpoints/11.orbax-checkpoint-tmp is a save that was cut short' in unfinished
  assert 'checkpoints/10: state' in damaged
  assert 'is not as it was saved; it is now 10.damaged, and step 9 is the last complete one' in damaged
  small_runs.assert_same_bits(whole, copy)
  assert steps_in(copy) == {'9', '12', '10.damaged'} | ({'6'} & steps_in(copy))


def test_somebodys_folder_is_left_alone_though_its_name_is_a_number(copy, whole, config, said):
  (copy / 'checkpoints' / '2024').mkdir()
  (copy / 'checkpoints' / '2024' / 'notes.txt').write_text('mine')
  loop.train(config, copy)
  assert [line for line in said if line.startswith('warning')] == [
    f'warning: {copy / "checkpoints" / "2024"} is no checkpoint; it is left alone'
  ]
  small_runs.assert_same_bits(whole, copy)
  assert steps_in(copy) >= {'10', '12', '2024'}
  assert (copy / 'checkpoints' / '2024' / 'notes.txt').read_text() == 'mine'


def test_a_removal_that_was_cut_short_leaves_nothing_over(copy, said):
  (copy / 'checkpoints' / '9' / 'state' / 'manifest.ocdbt').unlink()
  digests.set_aside_damaged(copy / 'checkpoints')
  assert said == [f'warning: the removal of {copy / "checkpoints" / "9"} had been cut short; it is done now']
  assert '10' in steps_in(copy)
  assert not any(name.startswith('9') for name in steps_in(copy))


def test_a_run_all_of_whose_checkpoints_are_damaged_does_not_begin_anew_by_itself(copy, config):
  before = steps_in(copy)
  for checkpoint in (copy / 'checkpoints').iterdir():
    cut_short(checkpoint)
  with pytest.raises(CheckpointError, match=r'every checkpoint is damaged .* delete the folder to begin anew'):
    loop.train(config, copy)
  assert steps_in(copy) == before


def test_evaluation_refuses_a_damaged_checkpoint_and_names_the_others(copy):
  flip_a_bit(copy / 'checkpoints' / '9')
  with pytest.raises(CheckpointError, match=r'checkpoints/9 is damaged: .*other steps: (6, )?10'):
    trained_model.restore(copy, step=9)
  assert trained_model.restore(copy, step=10).step == 10


def test_a_checkpoint_killed_before_its_digests_is_taken_at_orbax_word(copy):
  (copy / 'checkpoints' / '10' / digests.FILE).unlink()
  assert digests.damage(copy / 'checkpoints' / '10') is None
  (copy / 'checkpoints' / '10' / 'commit_success.txt').unlink()
  assert digests.damage(copy / 'checkpoints' / '10') == 'its save was cut short'


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_keeps_what_was_saved(config, whole, tmp_path, monkeypatch):
  """The limit of a file's size stands in for the disk's: both let a write fail."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill() -> None:
    wait_for(tmp_path / 'checkpoints' / '6' / digests.FILE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 8, fill)
    try:
      with pytest.raises(
        CheckpointError, match=r'cannot be (saved|written): .*; what was saved before is as'
      ) as caught:
        loop.train(config, tmp_path)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert '\n' not in str(caught.value)
  assert digests.damage(tmp_path / 'checkpoints' / '6') is None
  loop.train(config, tmp_path)
  small_runs.assert_same_bits(whole, tmp_path)


FULL_DISK = """
mount -t tmpfs -o size={kilobytes}k tmpfs {mount}
{command}; echo exit $?
mount -o remount,ro {mount}
{command}; echo exit $?
mount -o remount,rw,size=40m {mount}
{command}; echo exit $?
"""


@pytest.mark.slow
@pytest.mark.parametrize('kilobytes', [190, 260])
def test_a_full_and_a_read_only_disk_end_a_run_in_one_line_until_they_are_mended(config, tmp_path, kilobytes):
  """On a file system of its own, in a namespace where this process may mount one."""
  if subprocess.run(['unshare', '-rm', 'true'], capture_output=True, check=False).returncode:
    pytest.skip('needs user namespaces')
  mount = tmp_path / 'mount'
  mount.mkdir()
  command = shlex.join(small_runs.command(tmp_path, config, mount / 'run'))
  script = FULL_DISK.format(kilobytes=kilobytes, mount=mount, command=command)
  ran = subprocess.run(
    ['unshare', '-rm', 'bash', '-c', f'exec 2>&1; {script}'],
    capture_output=True,
    text=True,
    check=True,
    env=small_runs.one_device(),
  )
  assert 'Traceback' not in ran.stdout
  full, read_only, mended, _ = re.split(r'exit (?=\d)', ran.stdout)
  assert 'what was saved before is as it was' in full.splitlines()[-1]
  assert 'Read-only file system' in read_only.splitlines()[-1]
  assert re.findall(r'^exit (\d+)', ran.stdout, re.M) == ['2', '2', '0']
  assert re.search(r'resuming at step \d+', mended)


class Raising:
  """Raises at its end, where no caller can take it."""

  def __init__(self, told: str):
    self.told = told

  def __del__(self):
    raise RuntimeError(self.told)


def test_after_a_save_that_failed_only_our_line_is_shown(tmp_path, capsys, caplog, monkeypatch):
  """TensorStore's threads and asyncio tell the rest of it, of every array, in tracebacks."""
  monkeypatch.setattr('sys.unraisablehook', sys.__unraisablehook__)  # pytest has one of its own.
  Checkpoints(tmp_path).close()
  for told in ('Event loop is closed', 'of the user'):
    Raising(told)
  shown = capsys.readouterr().err
  assert 'closed' not in shown
  assert 'RuntimeError: of the user' in shown
  for told in ('_GatheringFuture exception was never retrieved', 'of the user'):
    logging.getLogger('asyncio').error(told)
  assert caplog.messages == ['of the user']


def test_a_workdir_that_vanishes_is_said_and_not_made_anew(config, tmp_path, monkeypatch):
  directory = tmp_path / 'gone'

  def vanish() -> None:
    wait_for(directory / 'checkpoints' / '6' / digests.FILE)
    shutil.rmtree(directory)

  small_runs.at_step(monkeypatch, 8, vanish)
  with pytest.raises(CheckpointError, match='has vanished'):
    loop.train(config, directory)
  assert not directory.exists()


def test_a_best_checkpoint_that_was_damaged_is_judged_anew(copy, config):
  clock = json.loads((copy / 'checkpoints' / '10' / 'clock' / 'metadata').read_text())
  flip_a_bit(copy / 'checkpoints' / str(clock['best_step']))
  assert loop.train(config, copy).best_step == 12
