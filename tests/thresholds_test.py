"""Thresholds are tuned on validation alone, kept with the run, and decide where they are asked to."""

import json
import shutil

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import mtl_jax
from mtl_jax import cli
from mtl_jax.errors import UserError


@pytest.fixture(scope='module')
def tuned(trained_dir, tmp_path_factory):
  """A run whose thresholds were tuned, and what its evaluation on test said."""
  directory = shutil.copytree(trained_dir, tmp_path_factory.mktemp('tuned') / 'run')
  predictions = directory / 'eval' / 'val.npz'
  mtl_jax.evaluate(directory, split='val', predictions=predictions)
  found = mtl_jax.evaluate(directory, tune_thresholds='f1', predictions=directory / 'eval' / 'test.npz')
  return directory, found


def arrays(directory, split):
  found = np.load(directory / 'eval' / f'{split}.npz')
  return (found[f'attributes/{name}'] for name in ('pred', 'label', 'mask'))


def test_thresholds_are_best_on_validation_and_applied_to_the_split_reported(tuned):
  directory, found = tuned
  thresholds = found['tuned']['thresholds']['attributes']
  for split in ('val', 'test'):
    predictions, labels, mask = arrays(directory, split)
    f1 = []
    for i, threshold in enumerate(thresholds.values()):
      scores, true = predictions[mask[:, i], i].astype(float), labels[mask[:, i], i]
      f1.append(sklearn_metrics.f1_score(true, scores >= threshold, zero_division=0))  # pyright: ignore
      if split == 'val' and len(set(true)) == 2:
        assert f1[-1] == pytest.approx(max(sklearn_metrics.f1_score(true, scores >= t) for t in scores))
      elif split == 'val':
        assert threshold == 0.5
    if split == 'test':
      assert found['tuned']['tasks']['attributes']['macro_f1'] == pytest.approx(np.mean(f1))
  assert found['tasks']['attributes']['macro_f1'] != found['tuned']['tasks']['attributes']['macro_f1']
  assert json.loads((directory / 'thresholds.json').read_text())['tasks'] == found['tuned']['thresholds']


def test_predictions_say_yes_or_no_by_the_thresholds_only_when_asked(tuned, store_dir, tmp_path, capsys):
  directory, found = tuned
  face = str(next((store_dir / 'source').rglob('*.jpg')))
  (plain,), (one,) = (mtl_jax.load(directory, tuned_thresholds=asked).predict([face]) for asked in (False, True))
  decisions = one.pop('decisions')
  assert plain == one
  thresholds = found['tuned']['thresholds']['attributes']
  assert decisions == {'attributes': {name: p >= thresholds[name] for name, p in one['attributes'].items()}}
  table = tmp_path / 'table.csv'
  more = ['--tuned_thresholds', '--csv', str(table), '--out', str(tmp_path / 'drawn')]
  assert cli.main(['predict', '--workdir', str(directory), face, *more]) == 0
  assert json.loads(capsys.readouterr().out)['decisions'] == decisions
  assert 'decisions/attributes/Smiling' in table.read_text()


def test_what_cannot_be_tuned_or_taken_up_is_refused(tuned, tmp_path):
  directory, _ = tuned
  with pytest.raises(UserError, match='--split'):
    mtl_jax.evaluate(directory, split='val', tune_thresholds='f1')
  with pytest.raises(UserError, match='--tune_thresholds'):
    mtl_jax.evaluate(directory, tune_thresholds='accuracy')
  step = mtl_jax.load(directory).step
  with pytest.raises(UserError, match=r'thresholds\.json'):
    mtl_jax.load(directory, step=6 - step, tuned_thresholds=True)
  copy = shutil.copytree(directory, tmp_path / 'copy')
  for content in ({'step': step, 'by': 'f1', 'tasks': {'attributes': {'Smiling': 0.5}}}, {'step': step}):
    (copy / 'thresholds.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'thresholds\.json'):
      mtl_jax.load(copy, tuned_thresholds=True)
  (copy / 'thresholds.json').unlink()
  with pytest.raises(UserError, match='--tune_thresholds'):
    mtl_jax.load(copy, tuned_thresholds=True)
