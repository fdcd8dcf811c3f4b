"""Prepared sets in buckets: copied once, checked, and uploaded whole or not at all."""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import fsspec
import pytest
import small_runs
from bucket_runs_test import set_in_bucket

from mtl_jax import cli
from mtl_jax.data.store import cache as sets
from mtl_jax.errors import BucketError, DataError
from mtl_jax.run import workdir
from mtl_jax.training import loop


@pytest.fixture
def uploaded(faces, cloud) -> str:
  set_in_bucket(faces, cloud)
  return 'gs://bucket/faces'


@pytest.fixture
def got(monkeypatch) -> list[str]:
  """The names of objects that are downloaded from here on."""
  names, each = [], sets._each
  monkeypatch.setattr(sets, '_each', lambda act, some, **more: names.extend(some) or each(act, some, **more))
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
  labels = 'faces/labels/attributes.npy'
  cloud.put(labels, cloud.objects[labels][0][:-1] + b'~', {})
  with pytest.raises(DataError, match=f'^{uploaded}: .*was changed since it was prepared'):
    sets.open_set(uploaded)
  del cloud.objects[labels]
  shutil.rmtree(Path(os.environ['XDG_CACHE_HOME']))
  with pytest.raises(DataError, match=f'^{uploaded}: .*is missing'):
    sets.open_set(uploaded)
  del cloud.objects['faces/schema.json']
  with pytest.raises(DataError, match=f'make one with: mtl-jax prepare SET --source DIR --out {uploaded}'):
    sets.open_set(uploaded)


def prepare(address: str) -> list[str]:
  return ['prepare', 'synthetic', '--num', '20', '--image_size', '16', '16', '--out', address]


def test_prepare_uploads_a_set_schema_last_and_refuses_a_second(cloud, refused):
  assert cli.main(prepare('gs://bucket/new')) == 0
  assert cloud.written[-1] == 'new/schema.json'
  assert len(sets.open_set('gs://bucket/new').names) == 20
  assert not list(Path(os.environ['XDG_CACHE_HOME']).glob('mtl_jax/prepare-*'))
  assert 'gs://bucket/new: already holds a prepared set; remove it or choose another --out' in refused(
    *prepare('gs://bucket/new')
  )


def test_where_the_upload_fails_the_prepared_set_is_kept_and_named(cloud, refused):
  cloud.failing.append('labels')
  told = refused(*prepare('gs://bucket/new'))
  kept = Path(told.partition('the prepared set is in ')[2].partition(':')[0])
  assert len(sets.open_set(kept).names) == 20
  assert 'new/schema.json' not in cloud.objects
  assert 'and no schema.json, as after a cut upload' in refused(*prepare('gs://bucket/new'))


def test_where_the_upload_is_interrupted_the_prepared_set_is_kept_and_named(faces, cloud, monkeypatch, said):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(sets, '_each', interrupted)
  with pytest.raises(KeyboardInterrupt), sets.new_set('gs://bucket/new') as folder:
    shutil.copytree(faces, folder)
  assert f'gs://bucket/new is not complete; the prepared set is in {folder}' in said[-1]
  assert len(sets.open_set(folder).names) == len(sets.open_set(faces).names)


def test_a_set_in_any_store_of_fsspec_is_copied_and_opened(faces, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  fsspec.filesystem('memory').put(str(faces), '/faces', recursive=True)
  assert sets.open_set('memory://faces').checksum == sets.open_set(faces).checksum


def test_eval_names_another_set_by_its_address(uploaded, faces, cloud, tmp_path):
  loop.train(small_runs.make_config(faces), tmp_path / 'run')
  assert cli.main(['eval', '--workdir', str(tmp_path / 'run'), '--data', f'{uploaded}/']) == 0
  assert json.loads((tmp_path / 'run' / 'eval' / 'faces-test.json').read_text())['data'] == uploaded


def test_without_gcsfs_the_command_that_installs_it_is_told(refused, monkeypatch, tmp_path):
  monkeypatch.delitem(sys.modules['fsspec.registry']._registry, 'gs', raising=False)
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  told = refused('predict', '--workdir', 'gs://bucket/run', tmp_path / 'face.jpg')
  assert told.endswith("gs://bucket/run: what opens gs:// is not installed: pip install 'mtl_jax[gcs]'")


@pytest.mark.parametrize('field', ['model.weights', 'data.feature_cache'])
def test_a_field_that_must_be_local_is_not_taken_for_a_folder_named_gs(faces, field):
  config = small_runs.make_config(faces, **{field: 'gs://b/file.pth'})
  with pytest.raises(BucketError, match=r'gs://b/file\.pth: only --workdir and prepared sets may lie in a bucket'):
    workdir.with_absolute_paths(config)
