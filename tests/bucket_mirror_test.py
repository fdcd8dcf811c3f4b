"""A folder and its copy in a bucket: a checkpoint there is whole or cut, and only what has changed is written."""

import shutil

import hypothesis
import pytest
import stand_in
from bucket_folders import RUN, tree, write
from hypothesis import strategies

from mtl_jax.buckets.address import Bucket
from mtl_jax.buckets.mirror import Mirror
from mtl_jax.errors import BucketError

pytestmark = pytest.mark.usefixtures('cloud')


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
