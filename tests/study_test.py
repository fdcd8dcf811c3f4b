"""A study trains every arm with the same seeds, keeps what is done, and writes what DESIGN promises."""

import json

import pytest

from mtl_jax.study import study


@pytest.fixture(scope='module')
def study_config(tiny_config):
  return tiny_config(**{'study.num_seeds': 3, 'study.learning_rates': (1e-3, 3e-3), 'study.num_resamples': 100})


@pytest.fixture(scope='module')
def finished(tmp_path_factory, study_config):
  directory = tmp_path_factory.mktemp('study')
  return directory, study.run(study_config, directory)


def test_the_json_holds_what_both_arms_scored_with_every_seed(finished):
  directory, found = finished
  assert json.loads((directory / 'study.json').read_text()) == found
  assert found['arms'] == ['single', 'joint']
  assert found['seeds'] == [0, 1, 2]
  for task, metric in (('attributes', 'macro_accuracy'), ('landmarks', 'nme')):
    entry = found['tasks'][task][metric]
    assert len(entry['single']['values']) == len(entry['joint']['values']) == 3
    assert entry['verdict'] in ('helps', 'hurts', 'no evidence')
    assert entry['delta']['ci95'][0] <= entry['delta']['mean'] <= entry['delta']['ci95'][1]
  assert set(found['cost']) == {'single', 'joint'}
  print(json.dumps(found['cost']), found['learning_rates'])
