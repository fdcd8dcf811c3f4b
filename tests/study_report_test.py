"""A study's page gives every verdict with its figures."""

import numpy as np
import pytest
from pages import ATTRIBUTES, LANDMARKS, MANY, RATE, Page, make_study

from mtl_jax import reports
from mtl_jax.reports import figures
from mtl_jax.studies.results import read_record


def written(directory, **keywords):
  text = reports.rebuild(directory, **keywords).read_text('utf-8')
  return text, Page(text)


@pytest.fixture(scope='module')
def grouped(tmp_path_factory):
  """Forty attributes as one task, and landmarks, which joint training helps; ten seeds."""
  directory = tmp_path_factory.mktemp('grouped')
  study = make_study(directory, (MANY, LANDMARKS), gains={'landmarks': 0.3}, num_seeds=10, grid=(RATE, 3e-3))
  return directory, study, *written(directory)


def verdicts(page):
  """The cells of every row of the tests by task."""
  return {row[0]: row[1:] for row in page.rows if len(row) == 11 and row[1] != 'Verdict'}


@pytest.mark.parametrize('split', ['', 'attributes/*,landmarks'])
def test_every_verdict_stands_in_the_table_with_its_figures(tmp_path, split):
  study = make_study(tmp_path, (ATTRIBUTES, LANDMARKS), split=split, gains={'landmarks': 0.3, 'attributes/Bald': 0.4})
  found = verdicts(written(tmp_path)[1])
  assert len(found) == len(study['tasks']) == (4 if split else 2)
  for task, metrics in study['tasks'].items():
    metric, entry = next((name, entry) for name, entry in metrics.items() if entry['main'])
    power, delta = study['power']['tasks'][task], entry['delta']
    row = found[f'{task} {figures.directed(metric)}']
    assert row[0] == entry['verdict']
    numbers = [
      float(text.replace('\N{MINUS SIGN}', '-').removesuffix(' points')) for text in (row[1], *row[2].split(' to '))
    ]
    np.testing.assert_allclose(numbers, 100 * np.array([delta['mean'], *delta['ci95']]), atol=0.051)
    assert row[3:5] == [f'{100 * entry[arm]["mean"]:.2f}%' for arm in ('joint', 'single')]
    assert row[5:7] == [figures.p_text(delta[name]) for name in ('p_adjusted', 'p_value')]
    assert row[7] == '5'
    assert row[8:] == [
      figures.size(power[name], metric) for name in ('smallest_difference', 'smallest_difference_alone')
    ]
  assert study['tasks']['landmarks']['nme']['verdict'] == 'helps'


def test_a_page_of_forty_attributes_is_small(grouped):
  assert len(grouped[2]) < 500_000


def test_plots_lie_beside_the_page(grouped):
  stems = {path.stem for path in (grouped[0] / 'plots').iterdir()}
  assert {'intervals-nme', 'intervals-macro_accuracy', 'outputs-joint-attributes', 'curve-val_landmarks_nme'} <= stems
  for stem in stems:
    assert (grouped[0] / 'plots' / f'{stem}.png').read_bytes().startswith(b'\x89PNG')
    assert '#0072b2' in (grouped[0] / 'plots' / f'{stem}.svg').read_text()


def test_curves_are_means_over_seeds_with_their_deviation(grouped):
  directory, study, *_ = grouped
  kept = read_record(directory, study)
  curve = kept.curve('joint', 'val/landmarks/nme')
  assert curve is not None
  steps, mean, deviation = curve
  assert steps.tolist() == [100.0 * (i + 1) for i in range(8)]
  np.testing.assert_allclose(mean, 0.809 + 0.01 * np.arange(10).mean())
  np.testing.assert_allclose(deviation, 0.01 * np.arange(10).std(ddof=1))
  assert kept.curve('joint', 'val/nothing') is None


def test_one_seed_is_not_tested(tmp_path):
  make_study(tmp_path, (ATTRIBUTES, LANDMARKS), num_seeds=1)
  page = written(tmp_path)[1]
  assert 'config.study.num_seeds' in page.text
  assert {row[0] for row in verdicts(page).values()} == {'not tested: one seed'}


def test_replicas_that_diverged_are_told_and_left_out(tmp_path):
  study = make_study(tmp_path, (ATTRIBUTES, LANDMARKS), diverged=[('landmarks', 1)])
  assert 'landmarks of single with seed 1 diverged at step 300' in written(tmp_path)[1].text
  assert study['tasks']['landmarks']['nme']['delta']['num_pairs'] == 4


def test_arms_stand_in_one_table_least_loss_first_with_their_worst_task(tmp_path):
  study = make_study(tmp_path, (ATTRIBUTES, LANDMARKS), sides=('single', 'joint', 'joint_again'))
  page = written(tmp_path)[1]
  delta_m = {arm: study['comparisons'][arm]['delta_m']['mean'] for arm in ('joint', 'joint_again')}
  rows = [row for row in page.rows if row[0] in delta_m and len(row) == 8]
  assert [row[0] for row in rows] == sorted(delta_m, key=lambda arm: delta_m[arm])
  for arm, shown, _, _, worst, *_ in rows:
    losses = {}
    for task, metric, sign in (('attributes', 'macro_accuracy', -1), ('landmarks', 'nme', 1)):
      found = study['tasks'][task][metric]
      losses[task] = 100 * sign * (found[arm]['mean'] / found['single']['mean'] - 1)
    assert shown == figures.percent(delta_m[arm])
    name = max(losses, key=lambda task: losses[task])
    assert worst == f'{name} {figures.percent(losses[name])}'
