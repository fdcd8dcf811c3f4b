"""Losses equal their formulas in float64, and what lies under a False mask reaches neither them nor a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import TypeCheckError

from mtl_jax.tasks import losses

SHAPE = (5, 3)
values = hnp.arrays(np.float32, SHAPE, elements=st.floats(-20, 20, width=32))
labels = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([0.0, 1.0]))
masks = hnp.arrays(np.bool_, SHAPE)
quick = settings(deadline=None, max_examples=50)


@given(logits=values, truth=labels)
@quick
def test_binary_cross_entropy_is_its_formula(logits, truth):
  x = logits.astype(np.float64)
  expected = truth * np.logaddexp(0, -x) + (1 - truth) * np.logaddexp(0, x)
  np.testing.assert_allclose(losses.binary_cross_entropy(jnp.array(logits), jnp.array(truth)), expected, 2e-6, 1e-7)


@given(outputs=values, targets=values)
@quick
def test_squared_error_is_its_formula(outputs, targets):
  expected = (outputs.astype(np.float64) - targets) ** 2
  np.testing.assert_allclose(losses.squared_error(jnp.array(outputs), jnp.array(targets)), expected, 1e-6, 1e-6)


@given(logits=values, truth=hnp.arrays(np.int32, (5, 1), elements=st.integers(0, 2)))
@quick
def test_categorical_cross_entropy_is_its_formula(logits, truth):
  x = logits.astype(np.float64)
  expected = np.logaddexp.reduce(x, axis=1, keepdims=True) - np.take_along_axis(x, truth, axis=1)
  found = losses.categorical_cross_entropy(jnp.array(logits), jnp.array(truth, jnp.float32))
  np.testing.assert_allclose(found, expected, 2e-6, 5e-6)


@pytest.mark.parametrize('logit', [-1e4, 1e4])
def test_extreme_logits_give_finite_losses_and_gradients(logit):
  truth = jnp.array([[0.0, 1.0]])
  for loss in (losses.binary_cross_entropy, lambda x, y: losses.categorical_cross_entropy(x, y[:, 1:])):
    value, gradient = jax.value_and_grad(lambda x, loss=loss: loss(x, truth).sum())(jnp.array([[logit, -logit]]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@given(numbers=values, mask=masks, rubbish=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
@quick
def test_masked_mean_is_the_mean_over_the_labels_that_exist(numbers, mask, rubbish):
  filled = np.where(mask, numbers, np.float32(rubbish))
  expected = numbers[mask].astype(np.float64).mean() if mask.any() else 0.0
  np.testing.assert_allclose(losses.masked_mean(jnp.array(filled), jnp.array(mask)), expected, 1e-5, 1e-5)


@given(numbers=values, mask=masks)
@quick
def test_the_gradient_of_masked_mean_is_finite_and_zero_where_nothing_is(numbers, mask):
  filled = np.where(mask, numbers, np.float32(np.nan))
  gradient = jax.grad(losses.masked_mean)(jnp.array(filled), jnp.array(mask))
  np.testing.assert_allclose(gradient, mask / max(mask.sum(), 1), rtol=1e-6)


@pytest.mark.parametrize('loss', [losses.binary_cross_entropy, losses.squared_error])
@given(outputs=values, mask=masks)
@quick
def test_a_nan_label_moves_no_output(loss, outputs, mask):
  def total(outputs, targets):
    return losses.masked_mean(loss(outputs, losses.guard(targets, jnp.array(mask))), jnp.array(mask))

  gradient = jax.grad(total)(jnp.array(outputs), jnp.where(mask, 1.0, jnp.nan))
  clean = jax.grad(total)(jnp.array(outputs), jnp.ones(SHAPE))
  np.testing.assert_array_equal(gradient, clean)
  assert not np.asarray(gradient)[~mask].any()


def test_a_missing_class_moves_no_output():
  logits, mask = jnp.array([[0.3, -0.2, 1.0]] * 2), jnp.array([[True], [False]])

  def total(logits):
    targets = losses.guard(jnp.array([[2.0], [jnp.nan]]), mask)
    return losses.masked_mean(losses.categorical_cross_entropy(logits, targets), mask)

  gradient = jax.grad(total)(logits)
  shares = np.exp([0.3, -0.2, 1.0]) / np.exp([0.3, -0.2, 1.0]).sum()
  np.testing.assert_allclose(gradient, [shares - [0, 0, 1], [0, 0, 0]], atol=1e-6)


def test_no_gradient_flows_through_labels():
  gradient = jax.grad(lambda labels: losses.guard(labels, jnp.ones(SHAPE, bool)).sum())(jnp.ones(SHAPE))
  assert not gradient.any()


def test_a_call_with_other_shapes_than_its_annotations_say_is_refused_in_tests():
  with pytest.raises(TypeCheckError, match='targets'):
    losses.squared_error(jnp.ones((2, 3)), jnp.ones((2, 4)))
