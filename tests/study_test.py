"""A study trains every arm with the same seeds, keeps what is done, and writes what DESIGN promises."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax import reports
from mtl_jax.config import with_fields
from mtl_jax.errors import ConfigError
from mtl_jax.evaluation import evaluate
from mtl_jax.objectives import OBJECTIVES, options
from mtl_jax.studies import arms, study
from mtl_jax.studies.arms import TUNING_SEED, Arm
from mtl_jax.studies.replicas import Replica
from mtl_jax.studies.result_store import ResultStore
from mtl_jax.tasks import BinaryTask

RATES = (1e-3, 3e-3)


@pytest.fixture(scope='module')
def study_config(tiny_config):
  return tiny_config(**{'study.num_seeds': 3, 'study.learning_rates': RATES, 'study.num_resamples': 100})


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
  for arm, programs in (('single', ('attributes', 'landmarks')), ('joint', ('joint',))):
    tried = [
      ResultStore(directory / 'replicas').get(one, Replica(TUNING_SEED, rate)) for one in programs for rate in RATES
    ]
    assert found['cost'][arm]['tuning_seconds'] == pytest.approx(sum(result.seconds for result in tried))
  assert found['data']['splits']['test'] == found['data']['num_test']
  print(json.dumps(found['cost']), found['learning_rates'])


def test_the_best_step_may_be_picked_by_a_mean_over_tasks():
  metrics = {'a': {'macro_f1': 0.5}, 'b': {'macro_f1': 0.7}, 'landmarks': {'nme': 0.2}, 'none': {'macro_f1': None}}
  assert evaluate.score('*/macro_f1', total_loss=0.0, metrics=metrics) == pytest.approx(0.6)
  assert evaluate.score('*/nme', total_loss=0.0, metrics=metrics) == pytest.approx(-0.2)
  with pytest.raises(ConfigError, match=r'no metric .\*/ap.'):
    evaluate.score('*/ap', total_loss=0.0, metrics=metrics)


def test_the_protocol_of_celeba_40_has_every_method_as_an_arm():
  config = configs.load(Path(__file__).parent.parent / 'configs' / 'celeba40_protocol.py')
  tasks = [BinaryTask(f'attributes/{name}', (name,)) for name in 'ab']
  found = arms.from_config(config, tasks)
  assert set(found) == {'single', 'joint', *OBJECTIVES} - {'fixed', 'pivrg'}
  assert list(found['single'].programs) == ['attributes/a', 'attributes/b']
  for name, arm in found.items():
    if name not in ('single', 'joint'):
      assert options.from_config(arm.programs[name].objective, ['a', 'b']).needs == OBJECTIVES[name]().needs


def test_the_table_of_celeba_40_sets_published_values_beside_delta_m(monkeypatch):
  monkeypatch.syspath_prepend(Path(__file__).parent.parent / 'benchmarks')
  import celeba40

  f1 = {'mean': 1.25, 'ci95': [0.5, 2.0], 'ci95_people': [-0.25, 2.75], 'median': 0.75}
  ap = {**f1, 'mean': -0.5, 'ci95_people': None}
  compared = {'delta_m': {'per_metric': {'f1': f1, 'ap': ap}}}
  entry = {'macro_f1': {'single': {'mean': 0.7}, 'famo': {'mean': 0.6}}}
  cost = {'single': {'seconds': 8.0}, 'famo': {'seconds': 4.0}}
  study_of_one = {'arms': ['single', 'famo'], 'tasks': {'a': entry, 'b': entry}, 'cost': cost, **compared}
  rows = celeba40.table(study_of_one)
  assert rows[2].startswith('| single | 0.700 | 0 | 0 | 0 | 0 | 2.00 |')
  assert rows[3] == '| famo | 0.600 | 1.25 (-0.25 to 2.75) | 0.75 | -0.50 (0.50 to 2.00) | 0.75 | 1.00 | 1.21 |'


def test_the_bar_counts_the_replicas_that_were_asked_for_and_not_those_that_fill_the_devices(monkeypatch):
  steps = 4

  class EightDevices:
    """Stands for a trainer on eight devices; tells of its steps as a real one does."""

    def __init__(self, program):
      self.program = SimpleNamespace(mesh=SimpleNamespace(devices=np.zeros(8)))

    def width(self, count, asked):
      return 8

    def run(self, replicas, *, test, stop, advance):
      assert len(replicas) % 8 == 0
      for _ in range(steps):
        advance(1)
      return [SimpleNamespace(diverged_at=0, replica=replica) for replica in replicas]

  monkeypatch.setattr(study, 'Trainer', EightDevices)
  monkeypatch.setattr(study.Study, 'program', lambda self, name: name)
  monkeypatch.setattr(study.Study, '_recipe', lambda self, name: name)
  kept, counted = [], []
  results = SimpleNamespace(put=lambda name, result, made_by: kept.append(result))
  config = SimpleNamespace(study=SimpleNamespace(replicas_at_once=0))
  one = study.Study(config, None, {}, Path(), results, None)
  one._train_program('joint', [Replica(seed, 1e-3) for seed in range(11)], test=True, advance=counted.append)
  assert len(kept) == 11
  assert sum(counted) == 11 * steps


def test_a_finished_study_has_a_page_with_its_curves(finished):
  directory, found = finished
  page = reports.rebuild(directory).read_text()
  assert page.count('<figcaption>') >= 6  # Intervals of two metrics, two curves of each task.
  for task, metric in (('attributes', 'macro_accuracy'), ('landmarks', 'nme')):
    for arm in ('single', 'joint'):
      assert f'{100 * found["tasks"][task][metric][arm]["mean"]:.2f}%' in page


@pytest.mark.parametrize(
  ('fields', 'steps'), [({}, 50), ({'train__batch_size': 64}, 100), ({'train__steps': 50}, 50)], ids=str
)
def test_matched_compute_is_of_all_images_of_a_run(monkeypatch, tiny_config, fields, steps):
  """A net twice as dear as the reference, with as many images or half as many."""
  base = tiny_config(**{'train.steps': 100, 'train.batch_size': 128})
  sides = {'one': Arm({'one': base}), 'two': Arm({'two': with_fields(base, model__width=8, **fields)})}

  def build(config, store, directory):
    return SimpleNamespace(flops_trained=lambda: 2.0 if config.model.width == 8 else 1.0)

  monkeypatch.setattr(study.program, 'build', build)
  found = study.matched(sides, None, Path())
  assert found['one'].programs['one'].train.steps == 100
  assert found['two'].programs['two'].train.steps == steps
