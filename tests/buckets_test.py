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

import hypothesis
import pytest
import small_runs
import stand_in
from hypothesis import strategies

from mtl_jax import cli, leaving, processes, workdir
from mtl_jax.buckets import lock, sets, workdirs
from mtl_jax.buckets.address import Bucket
from mtl_jax.buckets.mirror import TEMPORARY, Mirror
from mtl_jax.buckets.workdirs import Copy
from mtl_jax.errors import BucketError, DataError, DivergedError, Interrupted, UserError
from mtl_jax.training import loop

RUN = 'gs://b/run'
CHECKPOINT = {'config.json': '{}', 'checkpoints/3/a': 'a', 'checkpoints/3/digests.json': '{}'}


@pytest.fixture(scope='module')
def faces(tmp_path_factory) -> Path:
  return small_runs.make_faces(tmp_path_factory.mktemp('store') / 'faces')


@pytest.fixture(autouse=True)
def cloud(tmp_path, monkeypatch) -> Path:
  """The folder that is gs://; this host's cache is empty."""
  folder = tmp_path / 'cloud'
  monkeypatch.setenv(stand_in.VARIABLE, str(folder))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setitem(sys.modules['fsspec.registry']._registry, 'gs', stand_in.Buckets)
  stand_in.WRITTEN.clear()
  stand_in.FAILING.clear()
  return folder


def write(folder: Path, files: dict[str, str]) -> None:
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, bytes]:
  """What each file holds, of those that are mirrored."""
  paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob('*') if path.is_file()}
  return {name: path.read_bytes() for name, path in paths.items() if not TEMPORARY.fullmatch(name)}


def refused(capsys, *arguments: object) -> str:
  assert cli.main([str(argument) for argument in arguments]) == 2
  err = capsys.readouterr().err
  assert 'Traceback' not in err
  told = [line for line in err.splitlines() if line.startswith('mtl-jax: error: ')]
  assert len(told) == 1, err
  return told[0]


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


# The mirror.


@pytest.fixture
def mirror(tmp_path) -> Mirror:
  return Mirror(Bucket.at(RUN), tmp_path / 'folder', tmp_path / 'copy.json')


def test_a_checkpoint_is_complete_last_and_incomplete_first(mirror, cloud):
  files = {'config.json': '', 'checkpoints/3/digests.json': '{}', 'checkpoints/3/z': 'z', 'checkpoints/3/a': 'a'}
  write(mirror.folder, files)
  mirror.push()
  assert len(stand_in.WRITTEN) == 4
  assert stand_in.WRITTEN[-1].endswith('3/digests.json')
  shutil.rmtree(mirror.folder / 'checkpoints')
  stand_in.WRITTEN.clear()
  mirror.push()
  assert [name.removeprefix('-b/run/') for name in stand_in.WRITTEN[:1]] == ['checkpoints/3/digests.json']
  assert tree(cloud / 'b' / 'run') == {'config.json': b''}


def test_a_step_that_is_saved_again_is_incomplete_while_it_is_uploaded(mirror):
  write(mirror.folder, {'checkpoints/3/a': 'a', 'checkpoints/3/digests.json': '{}'})
  mirror.push()
  stand_in.WRITTEN.clear()
  write(mirror.folder, {'checkpoints/3/a': 'other', 'checkpoints/3/digests.json': '{"a": 1}'})
  mirror.push()
  wanted = ['-b/run/checkpoints/3/digests.json', 'b/run/checkpoints/3/a', 'b/run/checkpoints/3/digests.json']
  assert wanted == stand_in.WRITTEN


def test_a_prepared_set_within_is_complete_last_and_incomplete_first(mirror):
  write(mirror.folder, {'config.json': '', 'data/schema.json': '{}', 'data/images.npy': ''})
  mirror.push()
  assert stand_in.WRITTEN[-1] == 'b/run/data/schema.json'
  shutil.rmtree(mirror.folder / 'data')
  mirror.push()
  assert stand_in.WRITTEN[3:] == ['-b/run/data/schema.json', '-b/run/data/images.npy']


def test_what_is_being_written_is_never_uploaded(mirror, cloud):
  written = ['.lock', '.data.lock', 'metrics.partial', 'a/.data.partial/images.npy', 'checkpoints/3/a']
  written += ['checkpoints/6.orbax-checkpoint-tmp-1/state/a', 'checkpoints/3.digests.json.partial']
  write(mirror.folder, dict.fromkeys(('config.json', *written), ''))
  mirror.push()
  assert tree(cloud / 'b' / 'run') == {'config.json': b''}


def test_a_checkpoint_that_vanishes_while_it_is_uploaded_does_not_become_complete(mirror, cloud, monkeypatch):
  write(mirror.folder, {'checkpoints/3/a': 'a', 'checkpoints/3/b': 'b', 'checkpoints/3/digests.json': '{}'})
  put = Bucket.put

  def remove_first(self, path, name):
    (mirror.folder / 'checkpoints/3/a').unlink(missing_ok=True)
    return put(self, path, name)

  monkeypatch.setattr(Bucket, 'put', remove_first)
  mirror.push()
  assert 'checkpoints/3/digests.json' not in tree(cloud / 'b' / 'run')


def test_a_copy_that_has_vanished_takes_nothing_from_the_bucket(mirror, cloud):
  write(mirror.folder, {'config.json': '{}'})
  mirror.push()
  shutil.rmtree(mirror.folder)
  write(mirror.folder, {'goodput.json': '{}'})
  with pytest.raises(BucketError, match='has vanished'):
    mirror.push()
  assert tree(cloud / 'b' / 'run') == {'config.json': b'{}'}


def test_a_pull_brings_what_differs_and_removes_what_the_bucket_lacks(mirror, cloud, monkeypatch):
  write(cloud / 'b' / 'run', {'config.json': '{}', 'a/b': 'b', 'checkpoints/3/digests.json': '{}'})
  mirror.pull()
  assert tree(mirror.folder) == tree(cloud / 'b' / 'run')
  write(cloud / 'b' / 'run', {'a/b': 'c'})
  write(mirror.folder, {'left': '', 'checkpoints/9/a': '', 'config.json': 'spoilt'})
  got = []
  get = Bucket.get
  monkeypatch.setattr(
    Bucket, 'get', lambda self, name, *rest, **more: got.append(name) or get(self, name, *rest, **more)
  )
  mirror.pull()
  assert sorted(got) == ['a/b', 'config.json']
  assert tree(mirror.folder) == tree(cloud / 'b' / 'run')
  assert not (mirror.folder / 'checkpoints' / '9').exists()  # An empty folder would be a checkpoint to Orbax.


def test_an_object_whose_name_leads_out_of_the_folder_is_refused(mirror, monkeypatch):
  monkeypatch.setattr(stand_in.Buckets, 'find', lambda *_, **__: {'b/run/../x': {'size': 1, 'type': 'file'}})
  with pytest.raises(BucketError, match='no run has written'):
    mirror.pull()


NAMES = ('metrics.jsonl', 'eval/test.json', 'checkpoints/3', 'checkpoints/6', 'x.partial')
CHANGES = strategies.lists(
  strategies.tuples(strategies.sampled_from(NAMES), strategies.sampled_from((None, 'a', 'b', 'longer'))), max_size=4
)


@hypothesis.given(strategies.lists(CHANGES, min_size=1, max_size=5))
@hypothesis.settings(
  max_examples=30, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_after_any_changes_both_trees_are_equal_and_only_changes_were_written(tmp_path, cloud, pushes):
  for left in (cloud, tmp_path / 'folder', tmp_path / 'pulled'):
    shutil.rmtree(left, ignore_errors=True)
  for record in ('copy.json', 'pulled.json'):
    (tmp_path / record).unlink(missing_ok=True)
  folder = tmp_path / 'folder'
  write(folder, {'config.json': '{}'})
  before: dict[str, bytes] = {}
  for changes in pushes:
    for name, text in changes:
      if name.startswith('checkpoints'):
        shutil.rmtree(folder / name, ignore_errors=True)
        if text:
          write(folder, {f'{name}/state': text, f'{name}/digests.json': f'"{text}"'})
      elif text:
        write(folder, {name: text})
      else:
        (folder / name).unlink(missing_ok=True)
    touched = {name for changed, _ in changes for name in (changed, f'{changed}/state', f'{changed}/digests.json')}
    stand_in.WRITTEN.clear()
    Mirror(Bucket.at(RUN), folder, tmp_path / 'copy.json').push()
    assert tree(cloud / 'b' / 'run') == tree(folder)
    written = {name.removeprefix('-').removeprefix('b/run/') for name in stand_in.WRITTEN}
    assert written <= touched | ({'config.json'} if not before else set())
    assert {name for name in before.keys() | tree(folder) if before.get(name) != tree(folder).get(name)} <= written
    before = tree(folder)
    Mirror(Bucket.at(RUN), tmp_path / 'pulled', tmp_path / 'pulled.json').pull()
    assert tree(tmp_path / 'pulled') == before


# Prepared sets.


@pytest.fixture
def uploaded(faces, cloud) -> str:
  shutil.copytree(faces, cloud / 'b' / 'faces', ignore=shutil.ignore_patterns('source'))
  return 'gs://b/faces'


@pytest.fixture
def got(monkeypatch) -> list[str]:
  """The names of objects that are downloaded from here on."""
  names, get = [], Bucket.get
  monkeypatch.setattr(
    Bucket, 'get', lambda self, name, *rest, **more: names.append(name) or get(self, name, *rest, **more)
  )
  return names


def test_a_set_is_copied_once_also_for_several_that_start_at_once(uploaded, faces, got):
  found = []
  threads = [threading.Thread(target=lambda: found.append(sets.open_set(uploaded))) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len({store.directory for store in found}) == 1
  assert {store.checksum for store in found} == {sets.open_set(faces).checksum}
  assert got.count('images.npy') == 1
  assert sets.open_set(uploaded).directory.name == 'faces'
  assert got.count('images.npy') == 1


def test_a_copy_that_was_damaged_or_emptied_is_fetched_again(uploaded, said):
  images = sets.open_set(uploaded).directory / 'images.npy'
  shutil.rmtree(images.parent)
  sets.open_set(uploaded)
  images.write_bytes(images.read_bytes()[:-1] + b'~')
  sets.open_set(uploaded)
  assert any(f'{uploaded} is fetched again' in line and str(images.parent) in line for line in said)


def test_a_set_that_is_damaged_or_cut_short_in_the_bucket_is_refused(uploaded, cloud):
  labels = cloud / 'b' / 'faces' / 'labels' / 'attributes.npy'
  labels.write_bytes(labels.read_bytes()[:-1] + b'~')
  with pytest.raises(DataError, match=f'^{uploaded}: .*was changed since it was prepared'):
    sets.open_set(uploaded)
  labels.unlink()
  shutil.rmtree(Path(os.environ['XDG_CACHE_HOME']))
  with pytest.raises(DataError, match=f'^{uploaded}: .*is missing'):
    sets.open_set(uploaded)
  (cloud / 'b' / 'faces' / 'schema.json').unlink()
  with pytest.raises(DataError, match=f'make one with: mtl-jax prepare SET --source DIR --out {uploaded}'):
    sets.open_set(uploaded)


def prepare(address: str) -> list[str]:
  return ['prepare', 'synthetic', '--num', '20', '--image_size', '16', '16', '--out', address]


def test_prepare_uploads_a_set_schema_last_and_refuses_a_second(cloud, capsys):
  assert cli.main(prepare('gs://b/new')) == 0
  assert stand_in.WRITTEN[-1] == 'b/new/schema.json'
  assert len(sets.open_set('gs://b/new').names) == 20
  assert not list(Path(os.environ['XDG_CACHE_HOME']).glob('mtl_jax/prepare-*'))
  assert 'gs://b/new: already holds a prepared set; remove it or choose another --out' in refused(
    capsys, *prepare('gs://b/new')
  )


def test_where_the_upload_fails_the_prepared_set_is_kept_and_named(cloud, capsys):
  stand_in.FAILING.append('labels')
  told = refused(capsys, *prepare('gs://b/new'))
  kept = Path(told.partition('the prepared set is in ')[2].partition(':')[0])
  assert len(sets.open_set(kept).names) == 20
  assert not (cloud / 'b' / 'new' / 'schema.json').exists()
  assert 'and no schema.json, as after a cut upload' in refused(capsys, *prepare('gs://b/new'))


def test_where_the_upload_is_interrupted_the_prepared_set_is_kept_and_named(faces, monkeypatch, said):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(Bucket, 'put', interrupted)
  with pytest.raises(KeyboardInterrupt), sets.new_set('gs://b/new') as folder:
    shutil.copytree(faces, folder)
  assert f'gs://b/new is not complete; the prepared set is in {folder}' in said[-1]
  assert len(sets.open_set(folder).names) == len(sets.open_set(faces).names)


def test_eval_names_another_set_and_report_its_page_by_their_addresses(uploaded, faces, cloud, capsys):
  with workdirs.copied(RUN, 'train') as folder:
    loop.train(small_runs.make_config(faces), folder)
  sets.open_set(uploaded)
  (cloud / 'b' / 'faces').rename(cloud / 'b' / 'other')
  assert cli.main(['eval', '--workdir', RUN, '--data', 'gs://b/other/']) == 0
  found = json.loads((cloud / 'b' / 'run' / 'eval' / 'other-test.json').read_text())
  assert found['data'] == 'gs://b/other'
  assert cli.main(['eval', '--workdir', RUN]) == cli.main(['report', '--workdir', RUN]) == 0
  assert capsys.readouterr().out.endswith(f'\n{RUN}/report.html\n')


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
