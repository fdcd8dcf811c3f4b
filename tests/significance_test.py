"""The study's statistics equal scipy's, statsmodels' and scikit-learn's, and keep what they promise in simulations."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from mtl_jax.metrics import draws
from mtl_jax.metrics.binary import average_precision
from mtl_jax.studies import significance
from mtl_jax.studies.delta_m import delta_m
from mtl_jax.studies.scores import Scores, score_task
from mtl_jax.studies.summary import csv_rows, summarize
from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, OrdinalTask, RegressionTask

POINTS = ('lefteye', 'righteye', 'nose')
ATTRIBUTES = BinaryTask('attributes', ('Bald', 'Smiling', 'Young'))
LANDMARKS = LandmarkTask('landmarks', tuple(f'{point}_{axis}' for point in POINTS for axis in 'xy'))
AGE = RegressionTask('age', ('age',))
POSE = CategoricalTask('pose', ('pose',), classes=('left', 'front', 'right', 'back'))
DECADE = OrdinalTask('decade', ('decade',), classes=('young', 'middle', 'old'))
TASKS = (ATTRIBUTES, LANDMARKS, AGE, POSE)
RESAMPLED = (*TASKS, DECADE)
NUM_IMAGES = 40


def split_of(task, seed=0, num=NUM_IMAGES):
  """Labels, mask and source sizes of a test split with missing labels, for `task`."""
  rng = np.random.default_rng(seed)
  shape = (num, len(task.labels))
  if task.kind == 'landmarks':
    labels = rng.uniform(0.2, 0.8, shape)
  else:
    labels = rng.integers(0, {'binary': 2, 'categorical': 3, 'ordinal': 3, 'regression': 90}[task.kind], shape).astype(
      np.float64
    )
  return labels, rng.random(shape) < 0.8, rng.integers(50, 90, (num, 2))


def predict(task, labels, seed):
  """Predictions that know something of the labels, on a coarse grid so that scores are tied."""
  rng = np.random.default_rng((7, seed))
  if task.kind in ('categorical', 'ordinal'):
    classes = np.arange(len(task.classes))
    scores = rng.random((len(labels), len(classes))) + 0.5 * (labels == classes)
    return scores / scores.sum(-1, keepdims=True)
  noise = rng.normal(size=labels.shape)
  if task.kind == 'binary':
    return np.clip(np.round(0.5 + 0.3 * (labels - 0.5) + 0.2 * noise, 1), 0, 1)
  return labels + {'landmarks': 0.03, 'regression': 5.0}[task.kind] * noise


def resample(task, predictions, labels, mask, source_size, resampling):
  return task.metrics(predictions, labels, mask=mask, source_size=source_size, draws=resampling)


def assert_same_numbers(found, expected, draw):
  """Every metric of `expected` (of task.metrics) is number `draw` of `found`, and None is NaN."""
  assert set(found) == set(expected)
  for name, value in found.items():
    if name == 'per_output':
      assert list(value) == list(expected[name])
      for output, metrics in value.items():
        assert_same_numbers(metrics, expected[name][output], draw)
    elif isinstance(value, np.ndarray):
      reference = np.nan if expected[name] is None else expected[name]
      # Sums in another order, so float64's rounding and no more.
      np.testing.assert_allclose(value[draw], reference, rtol=1e-12, err_msg=name)


# --- paired tests -----------------------------------------------------------------------------------------------------


def test_p_value_equals_scipy():
  rng = np.random.default_rng(0)
  for num_seeds in (2, 3, 5, 10):
    arm, reference = rng.normal(size=(2, 30, num_seeds))
    np.testing.assert_allclose(
      significance.paired_p_value(arm, reference), stats.ttest_rel(arm, reference, axis=-1).pvalue, rtol=1e-12
    )


def test_equal_arms_have_p_value_one_even_where_rounding_differs():
  values = np.array([0.9, 0.91, 0.905, 0.92, 0.9])
  assert significance.paired_p_value(values, values) == 1.0
  assert significance.paired_p_value(values, values * (1 + 1e-15)) == 1.0


def test_constant_difference_is_no_certainty():
  values = np.array([0.9, 0.91, 0.905, 0.92, 0.9])
  assert significance.paired_p_value(values + 0.01, values) == pytest.approx(2 / 2**5)
  assert significance.interval(values + 0.01, values) is None
  assert significance.detectable_difference(values + 0.01, values, alpha=0.05) is None


def test_one_seed_says_nothing():
  one = np.array([0.9]), np.array([0.8])
  assert np.isnan(significance.paired_p_value(*one))
  assert significance.interval(*one) is None
  assert significance.detectable_difference(*one, alpha=0.05) is None


def test_interval_over_seeds_alone_equals_scipy():
  arm, reference = np.random.default_rng(1).normal(size=(2, 6))
  expected = stats.ttest_rel(arm, reference).confidence_interval(0.95)
  found = significance.interval(arm, reference)
  assert found is not None
  assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
  assert found.images is None


def test_holm_equals_statsmodels():
  rng = np.random.default_rng(2)
  p_values = np.round(rng.random((20, 7)) ** 3, 2)  # With ties.
  expected = [multipletests(row, method='holm')[1] for row in p_values]
  np.testing.assert_allclose(significance.holm(p_values), expected, rtol=1e-12)


def test_a_test_that_cannot_be_made_still_counts_in_the_family():
  adjusted = significance.holm(np.array([0.01, np.nan, 0.04]))
  np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.08])


@pytest.mark.parametrize(
  ('mean', 'p_adjusted', 'higher_is_better', 'expected'),
  [
    (0.1, 0.04, True, 'helps'),
    (0.1, 0.04, False, 'hurts'),
    (-0.1, 0.04, True, 'hurts'),
    (-0.1, 0.04, False, 'helps'),
    (0.1, 0.05, True, 'no evidence'),
    (0.1, None, True, 'no evidence'),
    (None, None, True, 'no evidence'),
  ],
)
def test_verdict_has_the_metrics_direction(mean, p_adjusted, higher_is_better, expected):
  assert significance.verdict(mean, p_adjusted, higher_is_better=higher_is_better) == expected


def test_disagreement_of_interval_and_verdict_is_said():
  assert significance.disagreement('helps', [0.1, 0.2]) is None
  assert significance.disagreement('no evidence', [-0.1, 0.2]) is None
  assert 'includes 0' in (significance.disagreement('hurts', [-0.1, 0.2]) or '')
  assert 'excludes 0' in (significance.disagreement('no evidence', [0.1, 0.2]) or '')
  assert significance.disagreement('helps', None)


# --- simulated studies ------------------------------------------------------------------------------------------------


def null_differences(kind, num_seeds):
  """Both arms of 2000 studies of 41 tasks in which no task differs."""
  rng = np.random.default_rng(3)
  shape = (2, 2000, 41, num_seeds)
  if kind == 'accuracies of 200 images':
    return rng.binomial(200, 0.8, shape) / 200
  shared = rng.normal(size=(2, 2000, 1, num_seeds)) if kind == 'correlated tasks' else 0.0
  return rng.normal(size=shape) + shared


@pytest.mark.parametrize('kind', ['independent tasks', 'correlated tasks', 'accuracies of 200 images'])
@pytest.mark.parametrize('num_seeds', [5, 10])
def test_false_alarm_rate_of_null_studies_is_at_most_the_stated_level(kind, num_seeds):
  p_values = significance.paired_p_value(*null_differences(kind, num_seeds))
  false_alarms = int((significance.holm(p_values) < significance.ALPHA).any(-1).sum())
  # At a true rate of exactly 0.05 a study passes this 995 times of 1000.
  assert false_alarms <= stats.binom.ppf(0.995, len(p_values), significance.ALPHA)
  assert (p_values < significance.ALPHA).any(-1).mean() > 0.3  # What Holm is there for.


def simulate_study(rng, truth, *, num_seeds=5, num_people=60):
  """Correctness `[n, S]` of both arms and identities; what the joint arm does differs by seed and person."""
  identities = np.repeat(np.arange(num_people), rng.integers(1, 9, num_people))
  difficulty = rng.uniform(-0.05, 0.05, num_people)[identities, None]
  person = rng.uniform(-0.3, 0.3, num_people)[identities, None]
  seed = rng.uniform(-0.04, 0.04, num_seeds)
  chance = 0.6 + difficulty
  arm = rng.random((len(identities), num_seeds)) < chance + truth + person + seed
  return arm, rng.random(arm.shape) < chance, identities


def test_interval_covers_the_truth_in_95_percent_of_simulated_studies():
  truth, num_studies = 0.03, 600
  rng = np.random.default_rng(4)
  covered = {'both': 0, 'seeds alone': 0}
  for study in range(num_studies):
    arm, reference, identities = simulate_study(rng, truth)
    resampling = draws.draw(identities, num_resamples=200, seed=study)
    total = resampling.sums(np.ones((len(identities), 1)))
    resampled = (resampling.sums(arm) / total).T, (resampling.sums(reference) / total).T
    sides = arm.mean(0), reference.mean(0)
    both = significance.interval(*sides, resampled=resampled, num_clusters=len(resampling.weights))
    alone = significance.interval(*sides)
    assert both is not None
    assert alone is not None
    covered['both'] += both.low <= truth <= both.high
    covered['seeds alone'] += alone.low <= truth <= alone.high
  low, high = stats.binom.ppf([0.005, 0.995], num_studies, 0.95)
  assert low <= covered['both'] <= high
  assert covered['seeds alone'] < 0.88 * num_studies  # Test images that are taken for granted cover too little.


def test_variance_over_images_leaves_out_what_the_spread_over_seeds_has():
  """Replicas whose errors have nothing in common add no variance over images; wholly common ones add all of it."""
  rng = np.random.default_rng(5)
  values = rng.normal(size=(4000, 8))
  resampling = draws.draw(np.full(4000, -1), num_resamples=1000)
  for shared in (False, True):
    deltas = np.repeat(values[:, :1], 8, axis=1) + 1e-3 * values if shared else values
    resampled = (resampling.sums(deltas) / 4000).T
    found = significance.interval(
      deltas.mean(0), np.zeros(8), resampled=(resampled, np.zeros_like(resampled)), num_clusters=4000
    )
    assert found is not None
    alone = 1 / np.sqrt(4000)  # The standard error of one replica's mean.
    assert found.images == pytest.approx(alone, rel=0.1) if shared else found.images < 0.2 * alone
    assert found.seeds < 0.01 * alone if shared else found.seeds == pytest.approx(alone / np.sqrt(8), rel=0.5)


# --- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('num_seeds', 'alpha'), [(3, 0.025), (5, 0.05), (10, 0.05), (10, 0.05 / 41), (20, 0.05)])
def test_detectable_effect_equals_statsmodels(num_seeds, alpha):
  # One of the two sides: the other counts for nothing, and scipy's noncentral t is NaN there for some effects.
  expected = TTestPower().solve_power(nobs=num_seeds, alpha=alpha / 2, power=0.8, alternative='larger')
  assert significance.detectable_effect(num_seeds, alpha=alpha) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(('num_seeds', 'alpha'), [(10, 0.05 / 41), (3, 0.025)])
def test_detectable_difference_is_found_in_80_percent_of_simulated_studies(num_seeds, alpha):
  effect = significance.detectable_effect(num_seeds, alpha=alpha)
  assert effect is not None
  differences = effect + np.random.default_rng(6).normal(size=(40000, num_seeds))
  found = (significance.paired_p_value(differences, np.zeros_like(differences)) < alpha).mean()
  assert found == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / 40000))


# --- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('task', RESAMPLED, ids=lambda task: task.kind)
@pytest.mark.parametrize('num', [1, 3, NUM_IMAGES])
def test_unit_weights_give_the_metrics_themselves(task, num):
  for seed in range(5):
    labels, mask, source_size = split_of(task, seed, num)
    predictions = predict(task, labels, seed)
    unit = draws.Draws(np.arange(num), np.ones((num, 1)))
    expected = task.metrics(predictions, labels, mask=mask, source_size=source_size)
    assert_same_numbers(resample(task, predictions, labels, mask, source_size, unit), expected, 0)


@pytest.mark.parametrize('task', RESAMPLED, ids=lambda task: task.kind)
def test_weighted_metrics_equal_a_plain_bootstrap_over_people(task):
  labels, mask, source_size = split_of(task)
  predictions = predict(task, labels, 0)
  identities = np.random.default_rng(8).integers(-1, 12, NUM_IMAGES)
  resampling = draws.draw(identities, num_resamples=30)
  found = resample(task, predictions, labels, mask, source_size, resampling)
  for draw in range(30):
    rows = np.repeat(np.arange(NUM_IMAGES), resampling.weights[resampling.clusters, draw].astype(int))
    expected = task.metrics(predictions[rows], labels[rows], mask=mask[rows], source_size=source_size[rows])
    assert_same_numbers(found, expected, draw)


def test_labels_and_predictions_under_a_false_mask_do_not_count():
  for task in TASKS:
    labels, mask, source_size = split_of(task)
    predictions = predict(task, labels, 0)
    resampling = draws.draw(np.arange(NUM_IMAGES), num_resamples=4)
    main = resample(task, predictions, labels, mask, source_size, resampling)[task.main_metric]
    hidden = np.where(mask, labels, np.nan)
    wrong = predictions if task.kind == 'categorical' else np.where(mask, predictions, np.nan)
    np.testing.assert_array_equal(resample(task, wrong, hidden, mask, source_size, resampling)[task.main_metric], main)


def test_average_precision_equals_scikit_learn_with_weights():
  rng = np.random.default_rng(9)
  for share, decimals in ((0.03, 1), (0.3, 1), (0.3, 9), (0.97, 2)):
    scores, true = np.round(rng.random(300), decimals), rng.random(300) < share
    resampling = draws.draw(rng.integers(0, 200, 300), num_resamples=300 if decimals == 1 else 20)
    found = average_precision(scores, true, draws=resampling)
    weights = resampling.weights[resampling.clusters]
    expected = [average_precision_score(true, scores, sample_weight=column) for column in weights.T]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_persons_images_are_drawn_together_and_unknown_ones_alone():
  identities = np.array([7, -1, 7, 3, -1, 3, 3])
  resampling = draws.draw(identities, num_resamples=50)
  assert len(resampling.weights) == 4  # Two people and two images of nobody knows whom.
  drawn = resampling.weights[resampling.clusters]
  np.testing.assert_array_equal(drawn[0], drawn[2])
  np.testing.assert_array_equal(drawn[3], drawn[5])
  assert (drawn[1] != drawn[4]).any()
  assert (resampling.weights.sum(0) == 4).all()
  np.testing.assert_array_equal(resampling.weights, draws.draw(identities, num_resamples=50).weights)


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
