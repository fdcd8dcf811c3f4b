"""Metrics under resampling equal the metrics themselves, a plain bootstrap over people, and scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from study_scores import NUM_IMAGES, RESAMPLED, TASKS, predict, split_of

from mtl_jax.metrics import draws
from mtl_jax.metrics.binary import average_precision


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
