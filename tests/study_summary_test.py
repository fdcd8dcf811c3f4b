"""Delta-m and the JSON of a study, from scores of made-up predictions."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from study_scores import (
  ATTRIBUTES,
  NUM_IMAGES,
  TASKS,
  predict,
  split_of,
)

from mtl_jax.metrics import draws
from mtl_jax.studies import significance
from mtl_jax.studies.delta_m import delta_m
from mtl_jax.studies.scores import Scores, score_task
from mtl_jax.studies.summary import csv_rows, summarize
from mtl_jax.tasks import LandmarkTask

# --- delta-m ----------------------------------------------------------------------------------------------------------


def scores_of(values, resampled=None, num_clusters=0):
  """Scores of the arm `a` against the reference `r`, from pairs of values by task and metric, the main one first."""
  resamples = resampled or {}
  return [
    Scores(
      task,
      '',
      metric,
      metric == next(iter(metrics)),
      dict(zip('ar', pair, strict=True)),
      dict(zip('ar', resamples[task][metric], strict=True)) if resampled else None,
      num_clusters,
    )
    for task, metrics in values.items()
    for metric, pair in metrics.items()
  ]


def test_delta_m_of_a_small_study_by_hand():
  values = {
    'attributes': {
      'macro_accuracy': (np.array([0.88, 0.90]), np.array([0.80, 0.80])),  # 11.25 % up.
      'macro_f1': (np.array([0.45, 0.45]), np.array([0.50, 0.50])),  # 10 % down.
      'macro_recall': (np.array([0.1, 0.1]), np.array([0.9, 0.9])),  # Not one of the metrics.
    },
    'landmarks': {'nme': (np.array([0.05, 0.06]), np.array([0.04, 0.06]))},  # 10 % up, lower is better.
    'age': {'mae': (np.array([6.0, 6.0]), np.array([5.0, 5.0]))},  # 20 % up, lower is better.
  }
  found = delta_m(scores_of(values), 'a', 'r')
  assert found['mean'] == pytest.approx((-11.25 + 10 + 10 + 20) / 4)
  assert found['values'] == pytest.approx([(-10 + 10 + 20 + 20) / 4, (-12.5 + 10 + 0 + 20) / 4])
  assert found['median'] == pytest.approx(10)
  assert (found['num_tasks'], found['num_terms'], found['left_out']) == (3, 4, [])
  assert {name: part['mean'] for name, part in found['per_metric'].items()} == pytest.approx(
    {'accuracy': -11.25, 'f1': 10, 'nme': 10, 'mae': 20}
  )
  expected = stats.t.interval(0.95, 1, *[np.mean(found['values']), stats.sem(found['values'])])
  assert found['ci95'] == pytest.approx(expected)


def test_delta_m_has_an_interval_over_seeds_and_people():
  rng, seeds, people = np.random.default_rng(0), 4, 50
  f1 = {task: (rng.normal(0.6, 0.01, seeds), rng.normal(0.7, 0.01, seeds)) for task in ('a', 'b')}
  values = {task: {'macro_f1': pair} for task, pair in f1.items()}
  shared = rng.normal(0, 0.02, (200, 1))  # What a resample's people do to all seeds alike.
  resampled = {task: {'macro_f1': (pair[0] + shared, pair[1] + 0 * shared)} for task, pair in f1.items()}
  found = delta_m(scores_of(values, resampled, people), 'a', 'r')
  by_seed = np.mean([100 * (r - a) / r.mean() for a, r in f1.values()], axis=0)
  terms = [100 * (r - a) / r.mean(-1, keepdims=True) for a, r in (pair['macro_f1'] for pair in resampled.values())]
  expected = significance.interval(
    by_seed, np.zeros(seeds), resampled=(np.mean(terms, axis=0), np.zeros((200, seeds))), num_clusters=people
  )
  assert found['ci95_people'] == pytest.approx([expected.low, expected.high])
  assert np.ptp(found['ci95_people']) > 1.5 * np.ptp(found['ci95'])
  assert delta_m(scores_of(values), 'a', 'r')['ci95_people'] is None


def test_delta_m_names_what_it_leaves_out():
  values = {
    'rare': {'f1': (np.array([0.1, 0.2, 0.1]), np.zeros(3))},
    'unlabelled': {'ap': (np.full(3, np.nan), np.full(3, np.nan))},
    'common': {'f1': (np.array([0.9, np.nan, 0.6]), np.array([0.5, 0.5, 0.5]))},
  }
  found = delta_m(scores_of(values), 'a', 'r')
  assert found['mean'] == pytest.approx(-50)
  assert found['values'] == [pytest.approx(-80), None, pytest.approx(-20)]
  assert found['num_terms'] == 1
  assert [(left['task'], left['reason']) for left in found['left_out']] == [
    ('unlabelled', 'no seed has both values'),
    ('rare', 'the reference is 0'),
  ]
  assert found['per_metric']['ap']['mean'] is None


# --- the study's JSON -------------------------------------------------------------------------------------------------


def study(arms=('single', 'joint'), num_seeds=4, tasks=TASKS, **changes):
  """A study of these tasks; `changes` holds, for an arm, a function of (task, seed, predictions)."""
  identities = np.random.default_rng(10).integers(-1, 15, NUM_IMAGES)
  resampling = draws.draw(identities, num_resamples=40)
  scores = []
  for task in tasks:
    labels, mask, source_size = split_of(task)
    predictions = {}
    for i, arm in enumerate(arms):
      change = changes.get(arm, lambda task, seed, predictions: predictions)
      predictions[arm] = [change(task, s, predict(task, labels, 100 * i + s)) for s in range(num_seeds)]
    scores += score_task(task, predictions, labels, mask=mask, source_size=source_size, resampling=resampling)
  return summarize(scores, arms=arms, seeds=range(num_seeds))


def test_points_without_a_distance_to_divide_by_are_tested_by_their_mae():
  wings = LandmarkTask('wings', ('tip_x', 'tip_y', 'tail_x', 'tail_y'))
  found = study(tasks=(wings,))
  assert list(found['tasks']['wings']) == ['mae', 'mse', 'rmse']
  assert found['tasks']['wings']['mae']['verdict'] in ('helps', 'hurts', 'no evidence')
  assert found['delta_m']['num_terms'] == 1
  assert (found['delta_m']['left_out'], found['dropped']) == ([], [])


def test_study_json_has_the_contracts_fields_and_no_nan():
  found = json.loads(json.dumps(study(), allow_nan=False))
  assert found['arms'] == ['single', 'joint']
  assert found['seeds'] == [0, 1, 2, 3]
  assert list(found['tasks']) == [task.name for task in TASKS]
  for task in TASKS:
    main = found['tasks'][task.name][task.main_metric]
    assert len(main['joint']['values']) == 4
    assert main['joint']['mean'] - main['single']['mean'] == pytest.approx(main['delta']['mean'])
    assert main['delta']['ci95'][0] < main['delta']['mean'] < main['delta']['ci95'][1]
    assert main['delta']['standard_error']['images'] is not None
    expected = stats.ttest_rel(main['joint']['values'], main['single']['values']).pvalue
    assert main['delta']['p_value'] == pytest.approx(expected)
    assert main['verdict'] in ('helps', 'hurts', 'no evidence')
    tested = [metric for metric, entry in found['tasks'][task.name].items() if entry['main']]
    assert tested == [task.main_metric]
  f1 = found['tasks']['attributes']['macro_f1']
  assert (f1['delta']['p_value'], f1['delta']['p_adjusted'], f1['verdict']) == (None, None, None)
  assert f1['delta']['ci95'] is not None
  assert set(found['outputs']['attributes']) == set(ATTRIBUTES.labels)
  assert found['outputs']['landmarks']['nose']['nme']['delta']['ci95'] is not None
  assert 'age' not in found['outputs']  # One output is the task itself.
  assert found['delta_m']['per_output']['attributes']['num_tasks'] == 3
  assert found['power']['alpha_worst_step'] == pytest.approx(0.05 / 4)
  assert found['power']['tasks']['landmarks']['smallest_difference'] > 0
  assert found['dropped'] == []


def test_p_values_are_adjusted_over_the_main_metrics_of_all_tasks():
  mains = [found['tasks'][t.name][t.main_metric]['delta'] for found in [study()] for t in TASKS]
  expected = multipletests([main['p_value'] for main in mains], method='holm')[1]
  assert [main['p_adjusted'] for main in mains] == pytest.approx(expected)


def test_the_same_model_on_both_sides_is_no_evidence():
  found = study(joint=lambda task, seed, predictions: predict(task, split_of(task)[0], seed))
  for task in TASKS:
    main = found['tasks'][task.name][task.main_metric]
    assert main['delta']['mean'] == 0
    assert main['delta']['ci95'] == [0, 0]
    assert main['delta']['p_value'] == 1
    assert (main['verdict'], main['disagreement']) == ('no evidence', None)
  assert found['delta_m']['mean'] == 0
  assert found['negative_transfer'] == {'shown': False, 'num_tasks': 0, 'num_tasks_tested': 4, 'tasks': []}


def test_a_task_made_worse_shows_negative_transfer_and_one_made_better_does_not():
  def change(task, seed, predictions):
    rng = np.random.default_rng(seed)
    if task.name == 'landmarks':
      return predictions + 0.2 + 0.02 * rng.random()
    if task.name == 'age':
      labels = split_of(task)[0]
      return labels + (0.1 + 0.02 * rng.random()) * (predictions - labels)
    return predictions

  found = study(joint=change, num_seeds=6)
  assert found['tasks']['landmarks']['nme']['verdict'] == 'hurts'
  assert found['tasks']['age']['mae']['verdict'] == 'helps'
  assert found['negative_transfer']['tasks'] == ['landmarks']
  assert found['negative_transfer']['shown']


def test_a_diverged_replica_is_dropped_as_a_pair_and_reported():
  def diverge(task, seed, predictions):
    if task.name == 'landmarks' and seed == 1:
      return None
    return predictions * np.nan if task.name == 'age' and seed == 2 else predictions

  whole, found = study(), study(joint=diverge)
  json.dumps(found, allow_nan=False)
  assert found['dropped'] == [
    {'task': 'landmarks', 'arm': 'joint', 'seed': 1},
    {'task': 'age', 'arm': 'joint', 'seed': 2},
  ]
  nme, all_nme = (s['tasks']['landmarks']['nme'] for s in (found, whole))
  assert nme['joint']['values'][1] is None
  assert nme['delta']['num_pairs'] == 3
  differences = [a - b for a, b in zip(all_nme['joint']['values'], all_nme['single']['values'], strict=True)]
  assert nme['delta']['mean'] == pytest.approx(np.mean([differences[i] for i in (0, 2, 3)]))
  assert found['tasks']['attributes'] == whole['tasks']['attributes'] | {
    'macro_accuracy': found['tasks']['attributes']['macro_accuracy']  # Its p-value is adjusted with the others'.
  }
  assert [value is None for value in found['delta_m']['values']] == [False, True, True, False]


def test_an_arm_that_always_diverged_is_no_evidence():
  found = study(joint=lambda task, seed, predictions: None, single=lambda task, seed, predictions: None)
  json.dumps(found, allow_nan=False)
  main = found['tasks']['landmarks']['nme']
  assert (main['delta']['mean'], main['delta']['ci95'], main['delta']['p_value']) == (None, None, None)
  assert main['verdict'] == 'no evidence'
  assert found['delta_m']['mean'] is None
  assert len(found['dropped']) == 2 * 4 * len(TASKS)


def test_one_seed_gives_means_and_no_verdict():
  found = study(num_seeds=1)
  json.dumps(found, allow_nan=False)
  main = found['tasks']['age']['mae']
  assert main['delta']['mean'] is not None
  assert (main['delta']['ci95'], main['delta']['p_value'], main['verdict']) == (None, None, 'no evidence')
  assert found['power']['tasks']['age']['smallest_difference'] is None


def test_more_arms_are_each_compared_with_the_single_one():
  arms = ('single', 'joint', 'matching')
  found = study(arms)
  alone = study(('single', 'joint'))
  assert list(found['comparisons']) == ['joint', 'matching']
  for task in TASKS:
    main = found['tasks'][task.name][task.main_metric]
    assert main['delta'] == alone['tasks'][task.name][task.main_metric]['delta']
    matching = found['comparisons']['matching']['tasks'][task.name][task.main_metric]
    assert matching['delta']['mean'] == pytest.approx(main['matching']['mean'] - main['single']['mean'])
  assert 'comparisons' not in alone
  rows = list(csv_rows(found))
  assert {row['arm'] for row in rows} == {'joint', 'matching'}


def test_csv_has_a_row_for_each_metric_and_no_none():
  found = study()
  rows = list(csv_rows(found))
  per_task = sum(len(metrics) for metrics in found['tasks'].values())
  per_output = sum(len(m) for outputs in found['outputs'].values() for m in outputs.values())
  assert len(rows) == per_task + per_output
  file = io.StringIO()
  writer = csv.DictWriter(file, rows[0])
  writer.writeheader()
  writer.writerows(rows)
  assert 'None' not in file.getvalue()
  assert sum(row['main'] for row in rows) == len(TASKS)
  nme = next(row for row in rows if (row['task'], row['output'], row['metric']) == ('landmarks', '', 'nme'))
  assert nme['delta'] == found['tasks']['landmarks']['nme']['delta']['mean']
  assert nme['higher_is_better'] is False


def test_scores_without_resamples_give_intervals_over_seeds():
  values = {'single': np.array([0.04, 0.05, np.nan]), 'joint': np.array([0.05, 0.07, 0.03])}
  found = summarize([Scores('landmarks', '', 'nme', True, values)], arms=('single', 'joint'), seeds=(0, 1, 2))
  nme = found['tasks']['landmarks']['nme']
  expected = stats.ttest_rel([0.05, 0.07], [0.04, 0.05]).confidence_interval()
  assert nme['delta']['ci95'] == pytest.approx([expected.low, expected.high])
  assert nme['delta']['standard_error']['images'] is None
  assert found['dropped'] == [{'task': 'landmarks', 'arm': 'single', 'seed': 2}]
