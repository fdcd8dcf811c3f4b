"""Runs and prepared sets in buckets, with a folder as the cloud: what is there is whole, and no work is lost."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
import stand_in
from bucket_folders import RUN, refused, tree, write

from mtl_jax import cli, leaving, processes, workdir
from mtl_jax.buckets import lock, workdirs
from mtl_jax.buckets.address import Bucket
from mtl_jax.buckets.workdirs import Copy
from mtl_jax.errors import BucketError, DivergedError, Interrupted, UserError
from mtl_jax.training import loop

pytestmark = pytest.mark.usefixtures('cloud')
CHECKPOINT = {'config.json': '{}', 'checkpoints/3/a': 'a', 'checkpoints/3/digests.json': '{}'}


def own(
  files: dict[str, str] | None = None, *, before: Callable[[], Any] = bool, ended: Exception | None = None
) -> None:
  """A run that writes these files into its workdir, after something has happened, and ends in that way."""
  with workdirs.copied(RUN, 'train') as folder:
    before()
    write(folder, files or {})
    if ended:
      raise ended


# Runs.

# Saves at steps 3 and 6, uploads ten times a second, and hangs after step 8.
HANGS = """
import time
from mtl_jax.buckets import workdirs
from mtl_jax.training.interrupt import Interruption
workdirs.PUSH_SECS, asked = 0.1, []
def requested(self):
  asked.append(True)
  time.sleep(900 if len(asked) == 8 else 0)
Interruption.requested = requested
"""


def test_a_killed_run_goes_on_on_another_host_from_an_upload_that_was_cut_short_to_the_same_bits(
  faces, cloud, tmp_path, monkeypatch, said
):
  config = small_runs.make_config(faces)
  command = small_runs.command(tmp_path, config, Path('w'))
  arguments = [*command[3:-1], RUN]
  process = small_runs.start(stand_in.program(*arguments, before=HANGS))
  steps = cloud / 'b' / 'run' / 'checkpoints'
  while not (steps / '6' / 'digests.json').exists():
    assert process.poll() is None, process.stderr and process.stderr.read()
    time.sleep(0.05)
  small_runs.end(process, signal.SIGKILL)
  (steps / '6' / 'digests.json').unlink()  # As if the upload had not come to its end.
  (steps / '6' / 'state' / 'manifest.ocdbt').unlink()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'of_another_host'))
  monkeypatch.setattr(lock, 'STALE_SECS', 0.0)
  assert cli.main(arguments) == 0
  assert f'warning: {RUN}/checkpoints/6 is an upload that was cut short; it is passed over' in said
  assert any('resuming at step 3' in line for line in said)
  loop.train(config, tmp_path / 'whole')
  small_runs.assert_same_bits(tmp_path / 'whole', Copy.of(RUN).folder)
  assert tree(cloud / 'b' / 'run') == tree(Copy.of(RUN).folder)
  assert {path.name for path in steps.iterdir()} == {p.name for p in (tmp_path / 'whole' / 'checkpoints').iterdir()}
  assert not (cloud / 'b' / 'run' / lock.NAME).exists()


def test_a_run_that_is_asked_to_stop_uploads_its_checkpoint_and_exits_with_75(faces, cloud, tmp_path, monkeypatch):
  command = small_runs.command(tmp_path, small_runs.make_config(faces), Path('w'))
  small_runs.at_step(monkeypatch, 4)
  assert cli.main([*command[3:-1], RUN]) == 75
  assert (cloud / 'b' / 'run' / 'checkpoints' / '4' / 'digests.json').exists()


def test_a_run_that_fails_keeps_its_exit_code_and_uploads_what_there_is(cloud):
  with pytest.raises(DivergedError):
    own({'metrics.jsonl': 'one'}, ended=DivergedError('loss became nan'))
  assert tree(cloud / 'b' / 'run') == {'metrics.jsonl': b'one'}
  assert not (cloud / 'b' / 'run' / lock.NAME).exists()


@pytest.mark.parametrize('ended', [None, Interrupted('interrupted and saved')])
def test_where_the_last_upload_fails_the_local_copy_is_named_and_goes_on(cloud, ended, said):
  copy = Copy.of(RUN).folder
  with pytest.raises(UserError) as raised:
    own(CHECKPOINT, before=lambda: stand_in.FAILING.append('checkpoints'), ended=ended)
  assert raised.value.exit_code == (75 if ended else 2)
  told = said[-1] if ended else str(raised.value)
  assert re.search(f'no route.* what is not uploaded is in {copy}', told)
  stand_in.FAILING.clear()
  with workdirs.copied(RUN, 'train') as folder:
    assert (folder / 'checkpoints' / '3' / 'a').read_text() == 'a'
  assert any('ended before its last upload' in line for line in said)
  assert tree(cloud / 'b' / 'run') == tree(copy)


def test_what_another_host_has_done_since_outweighs_a_copy_that_was_ahead(cloud, tmp_path, monkeypatch):
  with pytest.raises(BucketError, match='no route'):
    own({'config.json': 'first'}, before=lambda: stand_in.FAILING.append('config'))
  stand_in.FAILING.clear()
  with monkeypatch.context() as other:
    other.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
    other.setattr(lock, 'STALE_SECS', 0.0)
    with workdirs.copied(RUN, 'train') as folder:
      write(folder, {'config.json': 'second'})
  with workdirs.copied(RUN, 'train') as folder:
    assert tree(folder) == {'config.json': b'second'}


def test_a_copy_that_was_deleted_after_a_failed_upload_is_fetched_and_takes_no_checkpoint_away(cloud):
  own(CHECKPOINT)
  with pytest.raises(BucketError, match='no route'):
    own({'metrics.jsonl': '1'}, before=lambda: stand_in.FAILING.append('metrics'))
  stand_in.FAILING.clear()
  for deleted in ('', 'checkpoints'):
    shutil.rmtree(Copy.of(RUN).folder / deleted)
    own()
    assert tree(cloud / 'b' / 'run').keys() == CHECKPOINT.keys()
    hold(cloud, copy=json.loads(Copy.of(RUN).record.read_text())['id'])


def test_a_visit_does_not_write_what_a_killed_run_had_here_over_what_another_host_has_done_since(cloud, tmp_path):
  own({**CHECKPOINT, 'metrics.jsonl': '1', 'eval/test.json': '1'})
  write(Copy.of(RUN).folder, {'metrics.jsonl': '1 2', 'left': ''})  # And killed before the upload.
  later = {'metrics.jsonl': '1 2 3', 'eval/test.json': '3'}
  write(cloud / 'b' / 'run', later)
  with workdirs.copied(RUN, 'eval') as folder:
    write(folder, {'eval/other-test.json': '{}'})
  there = tree(cloud / 'b' / 'run')
  assert there.keys() == {*CHECKPOINT, *later, 'eval/other-test.json'}
  assert {name: there[name].decode() for name in later} == later
  own()
  assert tree(Copy.of(RUN).folder) == tree(cloud / 'b' / 'run') == there


LEAVES = f"""
from mtl_jax import leaving
from mtl_jax.buckets import workdirs
def ours():
  return {{name for name in sys.modules if name.startswith('mtl_jax')}}
with workdirs.copied('{RUN}', 'train') as folder:
  before = ours()
  (folder / 'metrics.jsonl').write_text('1')
  with leaving.after(lambda: print(ours() - before, flush=True)):
    leaving.at_once(4)
"""


def test_a_run_that_the_watchdog_ends_uploads_what_there_is_in_a_thread_that_imports_nothing_of_ours(cloud):
  """An import there, while the main thread imports too, could give either a module that is half made."""
  done = subprocess.run(stand_in.program(before=LEAVES), capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (4, 'set()\n'), done.stderr
  assert tree(cloud / 'b' / 'run') == {'metrics.jsonl': b'1'}
  assert not (cloud / 'b' / 'run' / lock.NAME).exists()


def test_who_leaves_at_once_during_the_last_upload_waits_for_it_and_uploads_nothing_twice(cloud, monkeypatch):
  release, left = lock.Lock.release, []

  def meanwhile(self) -> None:
    left.extend(threading.Thread(target=act) for act in tuple(leaving._due))
    for thread in left:
      thread.start()
      thread.join(0.1)
    assert [thread.is_alive() for thread in left] == [True]
    release(self)

  monkeypatch.setattr(lock.Lock, 'release', meanwhile)
  own({'metrics.jsonl': '1'})
  for thread in left:
    thread.join()
  assert stand_in.WRITTEN.count('b/run/metrics.jsonl') == stand_in.WRITTEN.count(f'-b/run/{lock.NAME}') == 1


def test_while_a_run_goes_on_a_thread_uploads_what_changes(cloud, monkeypatch, said):
  monkeypatch.setattr(workdirs, 'PUSH_SECS', 0.02)

  def wait_for(there) -> None:
    for _ in range(500):
      if there():
        return
      time.sleep(0.02)
    pytest.fail('it did not come')

  with workdirs.copied(RUN, 'train') as folder:
    write(folder, {'metrics.jsonl': '1'})
    wait_for(lambda: tree(cloud / 'b' / 'run') == {'metrics.jsonl': b'1'})
    stand_in.FAILING.append('metrics')
    write(folder, {'metrics.jsonl': '1\n2'})
    wait_for(lambda: any('no route to the cloud; it is tried again' in line for line in said))
    stand_in.FAILING.clear()
    wait_for(lambda: tree(cloud / 'b' / 'run') == {'metrics.jsonl': b'1\n2'})
  assert sum('tried again' in line for line in said) == 1


def test_eval_adds_its_result_and_takes_no_checkpoint_away_while_a_run_goes_on(cloud):
  with workdirs.copied(RUN, 'train') as folder:
    write(
      folder, {'config.json': '{}', 'checkpoints/3/a': 'a', 'checkpoints/3/digests.json': '{}', 'metrics.jsonl': ''}
    )
  with workdirs.copied(RUN, 'train') as running, workdirs.copied(RUN, 'eval') as folder:
    assert folder != running
    assert tree(folder).keys() == CHECKPOINT.keys()
    write(folder, {'eval/test.json': '{}'})
    (folder / 'checkpoints' / '3' / 'a').unlink()
  assert 'eval/test.json' in tree(cloud / 'b' / 'run')
  assert 'checkpoints/3/a' in tree(cloud / 'b' / 'run')


def test_after_a_run_eval_reads_its_copy_and_downloads_nothing(monkeypatch):
  with workdirs.copied(RUN, 'train') as ran:
    write(ran, CHECKPOINT)
  monkeypatch.setattr(Bucket, 'get', lambda *_, **__: pytest.fail('it is there'))
  with workdirs.copied(RUN, 'predict') as folder:
    assert folder == ran


def test_predict_names_an_address_that_holds_no_run(capsys, tmp_path):
  assert f'--workdir: {RUN} holds no run' in refused(capsys, 'predict', '--workdir', RUN, tmp_path / 'face.jpg')


# Whose a run is.


def hold(cloud: Path, **fields: object) -> None:
  holder = {'copy': 'c', 'host': 'elsewhere', 'pid': 7, 'started': 0, 'renewed': time.time(), **fields}
  write(cloud / 'b' / 'run', {lock.NAME: json.dumps(holder)})


def when_watched(monkeypatch, act) -> list[float]:
  """Time passes for this process alone while it watches a lock, and `act` is done; how long it watched each time."""
  waits: list[float] = []
  clock = time.time
  monkeypatch.setattr(lock.time, 'time', lambda: clock() + sum(waits))
  monkeypatch.setattr(lock.time, 'sleep', lambda secs: (waits.append(secs), act()))
  return waits


@pytest.mark.parametrize(
  ('host', 'pid'), [('elsewhere', 7), (platform.node(), os.getpid())], ids=['another host', 'another container']
)
def test_a_run_that_lives_elsewhere_is_named_and_left_alone(cloud, monkeypatch, host, pid):
  hold(cloud, host=host, pid=pid)
  waits = when_watched(monkeypatch, lambda: hold(cloud, host=host, pid=pid, renewed=time.time() + 1))
  with pytest.raises(BucketError, match=rf'a run of {host} \(process {pid}\).*if it is dead remove {RUN}/.lock'):
    own()
  assert json.loads((cloud / 'b' / 'run' / lock.NAME).read_text())['copy'] == 'c'
  assert len(waits) == 1


def test_the_lock_of_a_host_that_died_is_taken_over_once_it_is_stale(cloud, monkeypatch):
  hold(cloud)
  waits = when_watched(monkeypatch, lambda: None)
  own()
  assert lock.STALE_SECS - lock.WATCH_SECS <= sum(waits) <= lock.STALE_SECS + lock.WATCH_SECS
  assert not (cloud / 'b' / 'run' / lock.NAME).exists()


def test_a_lock_that_is_released_while_it_is_watched_is_had_at_once(cloud, monkeypatch):
  hold(cloud)
  waits = when_watched(monkeypatch, (cloud / 'b' / 'run' / lock.NAME).unlink)
  own()
  assert len(waits) == 1


@pytest.mark.parametrize('holder', ['stale', 'own', 'spoilt'])
def test_the_lock_of_a_dead_run_is_taken_over_at_once(cloud, monkeypatch, holder):
  own()
  hold(cloud, **({'copy': json.loads(Copy.of(RUN).record.read_text())['id']} if holder == 'own' else {'renewed': 1.0}))
  if holder == 'spoilt':
    write(cloud / 'b' / 'run', {lock.NAME: '{"host": '})
  waits = when_watched(monkeypatch, bool)
  own()
  assert not waits
  assert not (cloud / 'b' / 'run' / lock.NAME).exists()


def test_a_lock_that_cannot_be_written_is_not_said_to_be_that_of_the_dead_run(cloud):
  hold(cloud, renewed=1.0)
  stand_in.FAILING.append(lock.NAME)
  with pytest.raises(BucketError, match='cannot be written: no route'):
    own()


def test_of_two_that_start_at_once_one_is_refused(cloud, monkeypatch):
  write_lock = lock.Lock._write

  def second(self, **options):
    hold(cloud)  # By another, after this one has looked.
    write_lock(self, **options)

  monkeypatch.setattr(lock.Lock, '_write', second)
  with pytest.raises(BucketError, match='belongs to a run of elsewhere'):
    own()


def test_a_run_that_was_taken_over_writes_nothing_more(cloud, monkeypatch):
  monkeypatch.setattr(lock, 'RENEW_SECS', 0.0)
  with pytest.raises(BucketError, match=r'was taken over by a run of elsewhere; what is not uploaded is in .*/run$'):
    own({'config.json': '{}'}, before=lambda: hold(cloud))
  assert tree(cloud / 'b' / 'run') == {}


def test_a_run_that_cannot_be_fetched_does_not_keep_its_lock(cloud, monkeypatch):
  write(cloud / 'b' / 'run', CHECKPOINT)
  monkeypatch.setattr(stand_in.Buckets, 'get_file', lambda *_, **__: 1 / 0)
  with pytest.raises(BucketError, match=f'{RUN}: cannot be read: division by zero'):
    own()
  assert not (cloud / 'b' / 'run' / lock.NAME).exists()


def test_a_second_run_on_this_host_is_refused_before_it_asks_the_bucket():
  with workdirs.copied(RUN, 'train'), pytest.raises(BucketError, match='another process of this host'):
    own()


def test_processes_on_several_hosts_are_told_to_mount_the_bucket(monkeypatch):
  monkeypatch.setattr(processes, 'count', lambda: 2)
  monkeypatch.setattr(processes, 'gather', lambda name, value: [value, 'another-host'])
  with pytest.raises(BucketError, match=r'processes on 2 hosts .* mount the bucket'):
    own()


# What cannot be.


def test_without_gcsfs_the_command_that_installs_it_is_told(capsys, monkeypatch, tmp_path):
  monkeypatch.delitem(sys.modules['fsspec.registry']._registry, 'gs')
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  told = refused(capsys, 'predict', '--workdir', RUN, tmp_path / 'face.jpg')
  assert told.endswith(f"{RUN}: what opens gs:// is not installed: pip install 'mtl_jax[gcs]'")


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    (['export', '--workdir', 'w', '--out', 'gs://b/out'], 'gs://b/out: only --workdir and prepared sets may lie in'),
    (['report', '--workdir', 'gs://'], 'gs://: names no bucket'),
    (['report', '--workdir', 'gs:///'], 'gs:///: names no bucket'),
    (['report', '--workdir', 'gs://b/..'], 'gs://b/..: names no bucket'),
    (['predict', '--workdir', 'quux://b/run', 'face.jpg'], 'quux://b/run: cannot be opened: Protocol not known: quux'),
  ],
)
def test_other_addresses_are_refused_in_one_line(capsys, arguments, told):
  assert told in refused(capsys, *arguments)


@pytest.mark.parametrize('field', ['model.weights', 'data.feature_cache'])
def test_a_field_that_must_be_local_is_not_taken_for_a_folder_named_gs(faces, field):
  config = small_runs.make_config(faces, **{field: 'gs://b/file'})
  with pytest.raises(BucketError, match='gs://b/file: only --workdir and prepared sets may lie in a bucket'):
    workdir.with_absolute_paths(config)


def test_a_process_that_leaves_at_once_does_what_is_due_but_does_not_wait_for_ever():
  program = (
    'import time\nfrom mtl_jax import leaving\nleaving.DUE_SECS = 0.2\n'
    'with leaving.after(lambda: print("due", flush=True)), leaving.after(lambda: time.sleep(60)):\n  leaving.at_once(4)'
  )
  done = subprocess.run([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True, timeout=50)
  assert (done.returncode, done.stdout) == (4, 'due\n')
  assert leaving.DUE_SECS < 40  # When JAX's heartbeat ends the others.
