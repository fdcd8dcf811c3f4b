"""Prepared sets in buckets: copied once, checked, and uploaded whole or not at all."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import small_runs
import stand_in
from bucket_folders import RUN, refused

from mtl_jax import cli
from mtl_jax.buckets import sets, workdirs
from mtl_jax.buckets.address import Bucket
from mtl_jax.errors import DataError
from mtl_jax.training import loop

pytestmark = pytest.mark.usefixtures('cloud')


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
