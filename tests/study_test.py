"""A study trains every arm with the same seeds, keeps what is done, and writes what DESIGN promises."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import small_runs

from mtl_jax import config as configs
from mtl_jax import reports
from mtl_jax.data.input import mixture
from mtl_jax.data.prepare import prepare
from mtl_jax.data.synthetic.canvas import PARTS
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.evaluation import evaluate
from mtl_jax.objectives import OBJECTIVES, options
from mtl_jax.studies import arms, program, study
from mtl_jax.studies.arms import RATE, TUNING_SEED, Arm, Replica
from mtl_jax.studies.results import ResultStore
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
      ResultStore(directory / 'replicas').get(one, Replica.of(TUNING_SEED, {RATE: rate}))
      for one in programs
      for rate in RATES
    ]
    assert found['cost'][arm]['tuning_seconds'] == pytest.approx(sum(result.seconds for result in tried))
  assert found['data']['splits']['test'] == found['data']['num_test']
  assert found['chosen'] == {program: {RATE: rate} for program, rate in found['learning_rates'].items()}


def test_a_finished_study_is_not_measured_again(finished, study_config, monkeypatch):
  directory, found = finished
  monkeypatch.setattr(program, 'latency_ms', None)
  assert json.dumps(study.run(study_config, directory)['cost']) == json.dumps(found['cost'])
  assert study.kept_cost(directory, {'single': {'seconds': 1.0, 'tuning_seconds': 0.0}}) is None
  assert study.kept_cost(directory / 'replicas', {}) is None


def test_networks_that_differ_in_names_of_tasks_are_timed_with_one_compilation(tiny_config, tmp_path):
  compiled, configured = {}, [tiny_config(tasks=(f'attributes/{name}',)) for name in ('Smiling', 'Male')]
  store = mixture.open_data(configured[0].data)
  programs = [program.build(config, store, directory=tmp_path) for config in configured]
  calls = [one.prediction(compiled) for one in programs]
  assert len(compiled) == 1
  assert program.latency_ms(calls, repeats=1) > 0


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


def test_a_finished_study_has_a_page_with_its_curves(finished):
  directory, found = finished
  page = reports.rebuild(directory).read_text()
  assert page.count('<figcaption>') >= 6  # Intervals of two metrics, two curves of each task.
  for task, metric in (('attributes', 'macro_accuracy'), ('landmarks', 'nme')):
    for arm in ('single', 'joint'):
      assert f'{100 * found["tasks"][task][metric][arm]["mean"]:.2f}%' in page


def test_matched_compute_cuts_the_dearer_arm_and_its_evaluations(tiny_config):
  base = tiny_config(**{'train.steps': 100, 'eval.every_steps': 10})
  sides = {'one': Arm({'one': base}), 'two': Arm({'first': base, 'second': base})}
  found = study.matched(sides, {'one': 2.0, 'first': 1.0, 'second': 3.0})
  assert found['one'].programs['one'].train.steps == 100
  for config in found['two'].programs.values():
    assert (config.train.steps, config.eval.every_steps) == (50, 5)


def test_compute_is_of_all_images_of_a_run(tiny_config, tmp_path):
  """Twice the steps, or twice the batch, are twice as dear."""

  def flops(**fields):
    config = tiny_config(**fields)
    return program.build(config, mixture.open_data(config.data), directory=tmp_path / 'study').flops_trained()

  assert flops() > 0
  assert flops(**{'train.steps': 8}) == flops(**{'train.batch_size': 16}) == 2 * flops()


def test_a_study_that_was_killed_between_two_results_ends_in_the_same_bits(faces, tmp_path, killed_after):
  """Two replicas a device; of eleven five are kept."""
  fields = {'study.num_seeds': 11, 'study.arms': ('joint', 'joint_again'), 'study.replicas_at_once': 16}
  config = small_runs.make_config(faces, **{'train.steps': 4, 'study.num_resamples': 100, **fields})
  whole = study.run(config, tmp_path / 'whole')
  with killed_after(5):
    study.run(config, tmp_path / 'killed')
  found = study.run(config, tmp_path / 'killed')
  assert found['tasks'] == whole['tasks']
  for path in (tmp_path / 'whole').rglob('*.npz'):
    ours, theirs = (np.load(one) for one in (path, tmp_path / 'killed' / path.relative_to(tmp_path / 'whole')))
    for name in set(ours.files) - {'facts'}:
      np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(
  ('fields', 'named'),
  [
    (
      {'study.learning_rates': RATES, 'study.grid.optimizer.learning_rate': '1,2'},
      r'grid\.optimizer\.learning_rate and',
    ),
    ({'study.grid.objective.weights.smile': '1,2'}, r'config\.study\.grid\.objective\.weights: no choice .smile'),
    ({'study.grid.objective.options.c': '0.1,0.2'}, r'config\.study\.grid\.objective\.options\.c changes nothing'),
    ({'study.grid.model.head': 'mlp,foo'}, r'config\.study\.grid\.model\.head: no choice .foo'),
  ],
)
def test_a_grid_that_cannot_be_or_changes_nothing_is_refused_before_the_first_step(fields, named, faces, tmp_path):
  with pytest.raises(ConfigError, match=named):
    study.run(configs.load(small_runs.make_config(faces), fields), tmp_path)
  assert not (tmp_path / 'replicas').exists()


def test_a_disk_that_fills_up_in_a_study_is_one_line_that_names_the_workdir(faces, tmp_path, monkeypatch):
  def full(self, *arguments):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(ResultStore, 'put', full)
  fields = {'study.num_seeds': 1, 'study.arms': ('joint', 'joint_again'), 'train.steps': 1, 'eval.every_steps': 0}
  with pytest.raises(CheckpointError, match=f'{tmp_path}.*No space left.*the same command goes on'):
    study.run(small_runs.make_config(faces, **fields), tmp_path / 'study')


def test_a_study_of_a_dense_task_beside_others_scores_its_classes(tmp_path):
  size = {'image_size': (16, 16), 'num': 60, 'seed': 0}
  prepare('synthetic', source=None, out=tmp_path / 'set', **size, parsing=True, log=lambda _: None)
  fields = {'tasks': 'attributes,landmarks,parsing', 'train.steps': 4, 'study.num_seeds': 2, 'study.num_resamples': 100}
  found = study.run(small_runs.make_config(tmp_path / 'set', **fields), tmp_path / 'study')
  miou = found['tasks']['parsing']['miou']
  assert miou['main']
  assert miou['verdict'] in ('helps', 'hurts', 'no evidence')
  assert all(0 <= value <= 1 for arm in ('single', 'joint') for value in miou[arm]['values'])
  assert miou['joint']['mean'] - miou['single']['mean'] == pytest.approx(miou['delta']['mean'])
  assert miou['delta']['standard_error']['images'] is not None
  classes = found['outputs']['parsing']
  assert set(classes) == set(PARTS)
  assert {'iou', 'recall'} <= set(classes[PARTS[0]])
  assert found['delta_m']['num_tasks'] == 3
  assert list(found['power']['tasks']) == ['attributes', 'landmarks', 'parsing']
  reports.rebuild(tmp_path / 'study')


def test_a_grid_over_any_field_is_tried_on_seeds_of_its_own_and_counted(faces, tmp_path):
  """One field is an argument of the compiled step, the other changes its shapes."""
  grid = {'study.grid.optimizer.weight_decay': '0.01,0.3', 'study.grid.train.batch_size': '8,16'}
  fields = {'study.arms': ('joint', 'joint_again'), 'study.num_seeds': 2, 'train.steps': 3, 'study.num_resamples': 100}
  config = configs.load(small_runs.make_config(faces, **fields), grid)
  found = study.run(config, tmp_path)
  chosen = found['chosen']['joint']
  assert chosen['optimizer.weight_decay'] in (0.01, 0.3)
  assert chosen['train.batch_size'] in (8, 16)
  kept = [path.name for path in (tmp_path / 'replicas' / 'joint').iterdir()]
  assert sorted(f'seed{TUNING_SEED}' in name for name in kept) == 4 * [False] + 4 * [True]
  assert found['cost']['joint']['tuning_seconds'] > 0
  assert 'batch_size' in reports.rebuild(tmp_path).read_text()
