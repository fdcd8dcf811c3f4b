"""The study's tests equal SciPy's and statsmodels', and keep what they promise in simulations."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from mtl_jax.metrics import draws
from mtl_jax.studies import significance

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
