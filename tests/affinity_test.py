"""Affinity, cosines and transfer find who shares a factor, where that is known; watching changes no training."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import latent
import numpy as np
import pytest

from mtl_jax import cli, reports
from mtl_jax.affinities import affinity
from mtl_jax.config import to_json, with_fields
from mtl_jax.configs import default
from mtl_jax.data.prepare import prepare
from mtl_jax.errors import CheckpointError, ConfigError, Interrupted
from mtl_jax.platform import npz
from mtl_jax.training import loop

NAMES = [f'attributes/{label}' for label in latent.LABELS]
SAME = np.array([[any({a, b} <= set(group) for group in latent.GROUPS) for b in latent.LABELS] for a in latent.LABELS])
OFF = ~np.eye(len(NAMES), dtype=bool)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Three shared units for five tasks, on a small random network's features, computed once."""
  out = tmp_path_factory.mktemp('latent') / 'set'
  prepare(latent.__file__, source=out.parent, out=out, image_size=(8, 8), num=0, seed=0, log=lambda _: None)
  config = default.get_config()
  config.tasks = 'attributes/*'
  config.data.augment = dict.fromkeys(config.data.augment, 0.0) | {'flip': False}
  config.update_from_flattened_dict(
    {
      'data.dir': str(out),
      'model.backbone': 'convnet',
      'model.width': 4,
      'model.freeze': 'backbone',
      'model.trunk_features': (3,),
      'model.head': 'linear',
      'train.steps': 200,
      'train.batch_size': 64,
      'train.log_every_steps': 5,
      'eval.every_steps': 0,
      'optimizer.learning_rate': 1e-2,
      'affinity.every_steps': 5,
      'affinity.transfer_steps': 100,
    }
  )
  return config.lock()


@pytest.fixture(scope='module')
def finished(tmp_path_factory, config):
  directory = tmp_path_factory.mktemp('affinity') / 'done'
  return directory, affinity.run(config, directory)


def mean(found, kind):
  return np.array(found[kind]['mean'], float)


def test_tasks_that_share_a_factor_help_each_other_above_noise(finished):
  affinities, above = mean(finished[1], 'affinity'), np.array(finished[1]['affinity']['above_noise'])
  shared = SAME & OFF
  assert above[shared].all()
  assert affinities[shared].min() > 0
  assert affinities[shared].min() > affinities[~SAME].max()
  assert mean(finished[1], 'cosine')[shared].min() > 0.3
  assert finished[1]['affinity']['split_half'] > 0.7
  assert finished[1]['overshot'] == []


def test_the_task_that_conflicts_is_told_by_its_row_and_column(finished):
  rival = NAMES.index('attributes/rival')
  affinities, above = mean(finished[1], 'affinity'), np.array(finished[1]['affinity']['above_noise'])
  around = np.concatenate([np.delete(affinities[rival], rival), np.delete(affinities[:, rival], rival)])
  surely = np.concatenate([np.delete(above[rival], rival), np.delete(above[:, rival], rival)])
  assert around.mean() < 0
  assert (around[surely] < 0).any()
  assert not (around[surely] > 0).any()
  negative = np.array(finished[1]['cosine']['negative_share'], float)
  assert negative[rival].sum() / 4 > 0.5 > negative[SAME & OFF].max()


def test_the_groups_are_found_and_beat_one_network(finished):
  first, _, third = finished[1]['groupings']
  assert [set(group) for group in third['groups']] == [{f'attributes/{one}' for one in g} for g in latent.GROUPS]
  assert third['held_out_gain'] > first['expected_gain']
  assert third['sure'][:2] == [1.0, 1.0]
  assert third['sure'][2] is None
  assert finished[1]['together'] == pytest.approx(first['expected_gain'])
  order = [name.partition('/')[2] for name in finished[1]['order']]
  for group in latent.GROUPS:
    assert np.ptp([order.index(name) for name in group]) == len(group) - 1  # Neighbours on the maps.


def test_features_serve_the_tasks_that_share_their_factor(finished):
  gains, loss = mean(finished[1], 'transfer'), np.array(finished[1]['transfer']['loss'])
  assert gains.diagonal() == pytest.approx(0)
  pairs = SAME & OFF
  assert gains[pairs].min() > gains[~SAME & OFF][:12].mean()
  assert np.array(finished[1]['transfer']['above_noise'])[:4, :4][~SAME[:4, :4]].all()
  assert gains[:4, :4][~SAME[:4, :4]].max() < 0
  assert 1 - loss[0, 2] / loss[2, 2] == pytest.approx(gains[0, 2])


def test_watching_changes_no_bit_of_the_training(finished, config, tmp_path):
  directory, _ = finished
  loop.train(config, tmp_path / 'plain')
  lines = [(path / 'metrics.jsonl').read_text().splitlines() for path in (directory / 'joint', tmp_path / 'plain')]
  rows = [[json.loads(line) | {'images_per_sec': 0} for line in those] for those in lines]
  assert len(rows[0]) == 40
  assert rows[0] == rows[1]


def test_a_run_that_was_stopped_ends_in_the_same_matrices(finished, config, tmp_path, monkeypatch):
  waiting, write = ['000000050.npz', 'attributes_first_b.npz'], npz.write

  def stopping(path, *arguments, **keywords):
    write(path, *arguments, **keywords)
    if path.name in waiting:
      waiting.remove(path.name)
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(npz, 'write', stopping)
  for remaining in (1, 0):
    with pytest.raises(Interrupted) as stopped:
      affinity.run(config, tmp_path)
    assert stopped.value.exit_code == 75
    assert len(waiting) == remaining
    with pytest.raises(CheckpointError, match=r'affinity\.json is missing'):
      reports.rebuild(tmp_path)
  assert not (tmp_path / 'transfer' / 'attributes_rival.npz').exists()
  again, once = affinity.run(config, tmp_path), finished[1]
  for kind in ('affinity', 'cosine', 'transfer'):
    assert again[kind]['mean'] == once[kind]['mean']
  with pytest.raises(CheckpointError, match=r'train\.seed'):
    affinity.run(with_fields(config, train__seed=1), tmp_path)


def test_the_files_say_what_the_json_says(finished):
  directory, found = finished
  assert json.loads((directory / 'affinity.json').read_text()) == found
  with (directory / 'affinity.csv').open(newline='') as file:
    rows = {(row['source'], row['target']): row for row in csv.DictReader(file)}
  assert len(rows) == len(NAMES) ** 2
  row = rows[NAMES[1], NAMES[2]]
  assert float(row['affinity']) == found['affinity']['mean'][1][2]
  assert row['transfer_above_noise'] == str(found['transfer']['above_noise'][1][2])


def test_report_rebuilds_a_page_that_needs_no_network(finished, tmp_path, capsys):
  copy = Path(shutil.copytree(finished[0], tmp_path / 'copy', ignore=shutil.ignore_patterns('joint', 'transfer')))
  assert cli.main(['report', '--workdir', str(copy)]) == 0
  assert capsys.readouterr().out == f'{copy / "report.html"}\n'
  page = (copy / 'report.html').read_text()
  assert page.count('<div class="map">') == 3
  assert 'first a, first b' in page
  for kind in ('affinity', 'cosine', 'transfer'):
    assert (copy / 'plots' / f'{kind}.png').stat().st_size > 5_000
    assert (copy / 'plots' / f'{kind}.svg').exists()
  assert '://' not in page.replace(str(copy), '')


def test_bad_input_is_told_in_one_line(finished, config, tmp_path, capsys):
  with pytest.raises(ConfigError, match='attributes/rival is the only one'):
    affinity.run(with_fields(config, tasks='attributes/rival'), tmp_path / 'one')
  path = tmp_path / 'own.py'
  path.write_text(
    'import json\nfrom mtl_jax.config import from_json\ndef get_config():\n'
    f'  return from_json(json.loads({json.dumps(to_json(config))!r}))\n'
  )
  arguments = ['affinity', '--config', str(path), '--workdir', str(tmp_path / 'w')]
  assert cli.main([*arguments, '--config.affinity.every_steps=0']) == 2
  assert 'error: config.affinity.every_steps ' in capsys.readouterr().err
  assert cli.main([*arguments[:-1], str(finished[0]), '--config.train.seed=1']) == 2
  assert 'another configuration' in capsys.readouterr().err
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / 'affinity.json').write_text('[]')
  assert cli.main(['report', '--workdir', str(tmp_path / 'bad')]) == 2


@pytest.mark.parametrize(('folder', 'name'), [('looks', 'after'), ('looks', 'seconds'), ('transfer', 'losses')])
def test_a_spoilt_measurement_is_named_in_one_line(finished, config, tmp_path, folder, name):
  shutil.copytree(finished[0], tmp_path / 'copy')
  path = sorted((tmp_path / 'copy' / folder).glob('*.npz'))[-1]
  whole = path.read_bytes()
  with np.load(path) as file:
    arrays = {key: file[key] for key in file.files}
  wrong = (arrays[name][..., None], np.array('a'))
  for content in (whole[:-30], b'', *wrong):
    if isinstance(content, bytes):
      path.write_bytes(content)
    else:
      npz.write(path, arrays | {name: content}, root=tmp_path)
    with pytest.raises(CheckpointError, match=f'{path.name}.*remove '):
      affinity.run(config, tmp_path / 'copy')
