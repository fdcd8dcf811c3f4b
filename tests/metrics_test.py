"""Metrics equal scikit-learn's where it has them, count only existing labels, and always fit into JSON."""

# pyright: reportArgumentType=false
# (scikit-learn's inferred types do not know that zero_division may be a number.)

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from mtl_jax import metrics
from mtl_jax.errors import DivergedError
from mtl_jax.metrics.binary import TUNED_BY, best_threshold

POINTS = ('lefteye', 'righteye', 'nose')
# Tenths make ties likely, and 0.5 is the threshold itself.
PROBABILITIES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.5 - 1e-7, 0.7, 0.9, 1.0])


@st.composite
def binary_cases(draw):
  shape = (draw(st.integers(1, 12)), draw(st.integers(1, 4)))
  predictions = draw(arrays(np.float64, shape, elements=PROBABILITIES))
  labels = draw(arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0])))
  return predictions, labels, draw(arrays(bool, shape))


@st.composite
def categorical_cases(draw):
  num_examples, num_classes = draw(st.integers(1, 15)), draw(st.integers(2, 5))
  predictions = draw(arrays(np.float64, (num_examples, num_classes), elements=PROBABILITIES))
  labels = draw(arrays(np.float64, (num_examples, 1), elements=st.sampled_from([*range(num_classes)])))
  return predictions, labels, draw(arrays(bool, (num_examples, 1)))


def quietly(function, *arguments, **keywords):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # scikit-learn warns about classes that are absent.
    return function(*arguments, **keywords)


def calibration_error(scores, true):
  """By scikit-learn's curve; 15 bins."""
  frequencies, means = calibration_curve(true, scores, n_bins=15)
  counts = np.histogram(scores, np.linspace(0, 1, 16))[0]
  return np.average(np.abs(frequencies - means), weights=counts[counts > 0])


def sklearn_binary(scores, true):
  predicted = scores >= 0.5
  return {
    'accuracy': sklearn_metrics.accuracy_score(true, predicted),
    'balanced_accuracy': quietly(sklearn_metrics.balanced_accuracy_score, true, predicted),
    'precision': sklearn_metrics.precision_score(true, predicted, zero_division=0),
    'recall': sklearn_metrics.recall_score(true, predicted, zero_division=0),
    'f1': sklearn_metrics.f1_score(true, predicted, zero_division=0),
    'ap': sklearn_metrics.average_precision_score(true, scores) if true.any() else None,
    'ece': calibration_error(scores, true),
    'positive_rate': true.mean(),
    'num_labels': len(true),
  }


@settings(deadline=None, max_examples=60)
@given(binary_cases())
def test_binary_metrics_equal_scikit_learn(case):
  predictions, labels, mask = case
  names = [f'a{i}' for i in range(labels.shape[1])]
  result = metrics.binary(predictions, labels, mask=mask, names=names)
  outputs = []
  for i, name in enumerate(names):
    if not mask[:, i].any():
      assert set(result['per_output'][name].values()) == {None, 0}
      continue
    outputs.append(sklearn_binary(predictions[mask[:, i], i], labels[mask[:, i], i]))
    assert result['per_output'][name] == pytest.approx(outputs[-1], abs=1e-12)
  for metric in ('accuracy', 'balanced_accuracy', 'precision', 'recall', 'f1', 'ap', 'ece'):
    defined = [output[metric] for output in outputs if output[metric] is not None]
    assert result[f'macro_{metric}'] == (pytest.approx(np.mean(defined), abs=1e-12) if defined else None)
  if mask.any():
    micro = sklearn_metrics.f1_score(labels[mask], predictions[mask] >= 0.5, zero_division=0)
    assert result['micro_f1'] == pytest.approx(micro, abs=1e-12)
  json.dumps(result, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(categorical_cases())
def test_categorical_metrics_equal_scikit_learn(case):
  predictions, labels, mask = case
  names = [f'c{i}' for i in range(predictions.shape[1])]
  result = metrics.categorical(predictions, labels, mask=mask, names=names)
  json.dumps(result, allow_nan=False)
  true, predicted = labels[mask[:, 0], 0].astype(int), predictions[mask[:, 0]].argmax(-1)
  if not len(true):
    assert result['accuracy'] is result['balanced_accuracy'] is result['macro_f1'] is None
    assert np.sum(result['confusion']) == 0
    return
  assert result['accuracy'] == pytest.approx(sklearn_metrics.accuracy_score(true, predicted))
  sure = predictions[mask[:, 0]].max(-1)
  assert result['ece'] == pytest.approx(calibration_error(sure, true == predicted), abs=1e-12)
  assert sum(n for n, _, _ in result['reliability']) == len(true)
  assert np.average([p for _, p, _ in result['reliability']], weights=[n for n, _, _ in result['reliability']]) == (
    pytest.approx(sure.mean())
  )
  assert result['balanced_accuracy'] == pytest.approx(quietly(sklearn_metrics.balanced_accuracy_score, true, predicted))
  assert result['macro_f1'] == pytest.approx(
    sklearn_metrics.f1_score(true, predicted, average='macro', zero_division=0)
  )
  classes = range(len(names))
  assert result['confusion'] == sklearn_metrics.confusion_matrix(true, predicted, labels=classes).tolist()
  scores = sklearn_metrics.precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0)
  for name, precision, recall, f1, support in zip(names, *scores, strict=True):
    expected = {'precision': precision, 'recall': recall, 'f1': f1, 'num_labels': support}
    seen = result['per_output'][name]['f1'] is not None
    assert seen == (names.index(name) in {*true, *predicted})
    assert result['per_output'][name] == (
      pytest.approx(expected) if seen else {**dict.fromkeys(expected), 'num_labels': 0}
    )


@settings(deadline=None, max_examples=100)
@given(binary_cases(), st.sampled_from(TUNED_BY))
def test_no_threshold_is_better_than_the_best(case, by):
  scores, labels = case[0][:, 0], case[1][:, 0]
  best = best_threshold(scores, labels == 1, by=by)
  if len(set(labels)) < 2:
    assert best is None
    return
  score = {'f1': sklearn_metrics.f1_score, 'balanced_accuracy': sklearn_metrics.balanced_accuracy_score}[by]
  values = {threshold: score(labels, scores >= threshold) for threshold in {0.5, *scores}}
  assert score(labels, scores >= best) == pytest.approx(max(values.values()))
  tuned = metrics.binary(
    scores[:, None], labels[:, None], mask=np.ones((len(labels), 1), bool), names=['a'], thresholds=[best]
  )
  assert tuned[f'macro_{by}'] == pytest.approx(max(values.values()))


def test_the_best_threshold_lies_between_neighbouring_numbers():
  for low, high in ((0.2, 0.8), (0.5, np.nextafter(0.5, 1)), (0.0, 5e-324)):
    threshold = best_threshold(np.array([low, high]), np.array([False, True]), by='f1')
    assert threshold is not None
    assert low < threshold <= high


def test_half_is_positive():
  result = metrics.binary(np.array([[0.5]]), np.array([[1.0]]), mask=np.ones((1, 1), bool), names=['Smiling'])
  assert result['macro_recall'] == 1.0


def test_nme_of_a_wide_and_a_tall_image_by_hand():
  # Eyes 40 px apart in 200 x 100; the nose is off by 3 px and 4 px there, so 5 px: nme = 5 / 40 / 3 points.
  # Eyes 50 px apart in 100 x 200 and unlabelled nose; the right eye is off by 12 px: nme = 12 / 50 / 2 points.
  labels = np.array([[0.4, 0.5, 0.6, 0.5, 0.5, 0.6], [0.2, 0.3, 0.7, 0.3, np.nan, np.nan]])
  predictions = labels + np.array([[0, 0, 0, 0, 3 / 200, 4 / 100], [0, 0, 0, 12 / 200, 0.1, 0.1]])
  mask = ~np.isnan(labels)
  source_size = np.array([[200, 100], [100, 200]])
  result = metrics.landmarks(predictions, labels, mask=mask, points=POINTS, source_size=source_size)
  first, second = 5 / 40 / 3, 12 / 50 / 2
  assert result['nme'] == pytest.approx((first + second) / 2)
  assert (result['failure_rate_8'], result['failure_rate_10'], result['num_images']) == (0.5, 0.5, 2)
  errors = np.array([3 / 200, 4 / 100, 12 / 200])
  assert result['mae'] == pytest.approx(errors.sum() / 10)
  assert result['mse'] == pytest.approx((errors**2).sum() / 10)
  assert result['rmse'] == pytest.approx(np.sqrt(result['mse']))
  assert result['per_output']['nose'] == pytest.approx({'mae': (3 / 200 + 4 / 100) / 2, 'nme': 5 / 40, 'num_labels': 1})
  assert result['per_output']['righteye']['nme'] == pytest.approx((0 + 12 / 50) / 2)


def test_images_without_two_distinct_eyes_are_left_out_of_nme():
  labels = np.array([[0.4, 0.5, 0.4, 0.5, 0.5, 0.6], [0.4, 0.5, 0.6, 0.5, 0.5, 0.6], [0.4, 0.5, 0.6, 0.5, 0.5, 0.6]])
  mask = np.ones((3, 6), bool)
  mask[1, 2] = False
  sizes = np.full((3, 2), 100)
  result = metrics.landmarks(labels + 0.02, labels, mask=mask, points=POINTS, source_size=sizes)
  assert result['num_images'] == 1
  assert result['nme'] == pytest.approx(0.02 * np.sqrt(2) / 0.2)
  assert result['per_output']['righteye']['num_labels'] == 2
  assert result['mae'] == pytest.approx(0.02)


def test_points_without_eyes_have_no_nme():
  labels = np.full((2, 2), 0.5)
  result = metrics.landmarks(
    labels, labels, mask=np.ones((2, 2), bool), points=('nose',), source_size=np.full((2, 2), 9)
  )
  assert result == {'mae': 0, 'mse': 0, 'rmse': 0, 'per_output': {'nose': {'mae': 0, 'num_labels': 2}}}


def test_nme_over_two_points_the_diagonal_and_pixels_by_hand():
  # In 200 x 100 the tips are 100 px apart, in 30 x 40 one of them is not labelled; the tail is off by 5 px in both.
  labels = np.array([[0.1, 0.5, 0.6, 0.5, 0.5, 0.6], [0.2, 0.3, np.nan, np.nan, 0.5, 0.5]])
  sizes = np.array([[200, 100], [30, 40]])
  predictions = labels + np.array([[0, 0, 0, 0, 3 / 200, 4 / 100], [0, 0, 0, 0, 3 / 30, 4 / 40]])
  expected = {('tip', 'fin'): (5 / 100 / 3, 1), 'diagonal': ((5 / np.hypot(200, 100) / 3 + 5 / 50 / 2) / 2, 2)}
  for over, (nme, num_images) in {**expected, 20: ((5 / 20 / 3 + 5 / 20 / 2) / 2, 2)}.items():
    result = metrics.landmarks(
      predictions, labels, mask=~np.isnan(labels), points=('tip', 'fin', 'tail'), source_size=sizes, over=over
    )
    assert (result['nme'], result['num_images']) == (pytest.approx(nme), num_images)


def test_regression_by_hand():
  labels = np.array([[30.0, 1.0], [40.0, np.nan]])
  result = metrics.regression(labels + np.array([[3, -1], [4, 0]]), labels, mask=~np.isnan(labels), names=('age', 'x'))
  assert result['mae'] == pytest.approx(8 / 3)
  assert result['rmse'] == pytest.approx(np.sqrt(26 / 3))
  assert result['per_output'] == {
    'age': pytest.approx({'mae': 3.5, 'rmse': np.sqrt(12.5), 'num_labels': 2}),
    'x': pytest.approx({'mae': 1, 'rmse': 1, 'num_labels': 1}),
  }


def calls(num_examples=6, seed=0):
  """One call of each function: (function, predictions, labels, mask, other keywords)."""
  random = np.random.default_rng(seed)
  binary_labels = random.integers(0, 2, (num_examples, 3)).astype(np.float32)
  classes = random.integers(0, 3, (num_examples, 1)).astype(np.float32)
  names = ('a', 'b', 'c')
  six = random.random((num_examples, 6))
  size = np.tile([178, 218], (num_examples, 1))
  three = random.random((num_examples, 3))
  wide, narrow = random.random((num_examples, 3)) < 0.7, random.random((num_examples, 1)) < 0.7
  return {
    'binary': (metrics.binary, three, binary_labels, wide, {'names': names}),
    'landmarks': (metrics.landmarks, six + 0.01, six, np.repeat(wide, 2, 1), {'points': POINTS, 'source_size': size}),
    'regression': (metrics.regression, three, three * 2, wide, {'names': names}),
    'categorical': (metrics.categorical, three, classes, narrow, {'names': names}),
  }


@pytest.mark.parametrize('kind', calls())
def test_nan_under_the_mask_does_not_leak(kind):
  function, predictions, labels, mask, keywords = calls()[kind]
  expected = function(predictions, labels, mask=mask, **keywords)
  hidden = np.broadcast_to(mask, predictions.shape)
  result = function(np.where(hidden, predictions, np.nan), np.where(mask, labels, np.nan), mask=mask, **keywords)
  assert result == expected
  json.dumps(result, allow_nan=False)


@pytest.mark.parametrize('kind', calls())
def test_padding_does_not_change_metrics(kind):
  function, predictions, labels, mask, keywords = calls()[kind]
  expected = function(predictions, labels, mask=mask, **keywords)
  padded = [np.pad(a, ((0, 3), (0, 0)), constant_values=v) for a, v in ((predictions, 9), (labels, 7), (mask, False))]
  if 'source_size' in keywords:
    keywords['source_size'] = np.pad(keywords['source_size'], ((0, 3), (0, 0)))
  assert function(padded[0], padded[1], mask=padded[2], **keywords) == expected


@pytest.mark.parametrize('kind', calls())
@pytest.mark.parametrize('num_examples', [0, 4])
def test_no_labels_give_none_and_valid_json(kind, num_examples):
  function, predictions, labels, mask, keywords = calls(num_examples)[kind]
  result = function(predictions, labels, mask=np.zeros_like(mask), **keywords)
  values = {
    key: value for key, value in result.items() if key not in ('per_output', 'confusion', 'reliability', 'num_images')
  }
  assert set(values.values()) == {None}
  for output in result['per_output'].values():
    assert set(output.values()) == {None, 0}
  json.dumps(result, allow_nan=False)


@pytest.mark.parametrize('kind', calls())
@pytest.mark.parametrize('wrong', [np.s_[:, :, None], np.s_[:1], np.s_[:, 0]])
def test_a_mask_of_another_shape_raises(kind, wrong):
  function, predictions, labels, mask, keywords = calls()[kind]
  with pytest.raises(ValueError, match='shape'):
    function(predictions, labels, mask=mask[wrong], **keywords)


@pytest.mark.parametrize('kind', calls())
def test_a_prediction_that_is_not_finite_is_said_and_never_scored(kind):
  function, predictions, labels, mask, keywords = calls()[kind]
  row, column = np.argwhere(mask)[0]
  predictions[row, column] = np.nan
  with pytest.raises(DivergedError, match='1 of'):
    function(predictions, labels, mask=mask, **keywords)


def test_a_label_that_cannot_be_raises():
  mask = np.ones((1, 1), bool)
  with pytest.raises(ValueError, match='0 or 1'):
    metrics.binary(np.array([[0.5]]), np.array([[-1.0]]), mask=mask, names=['a'])
  with pytest.raises(ValueError, match='from 0 to 1'):
    metrics.categorical(np.array([[0.5, 0.5]]), np.array([[2.0]]), mask=mask, names=['a', 'b'])
  with pytest.raises(ValueError, match='source_size'):
    metrics.landmarks(
      np.ones((1, 2)), np.ones((1, 2)), mask=np.ones((1, 2), bool), points=['a'], source_size=np.ones((1, 1))
    )
