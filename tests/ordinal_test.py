"""Ordinal tasks: a likelihood over ordered bins, metrics that know distance, and numbers that fall into bins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.tasks import OrdinalTask

AGE = OrdinalTask('age', ('age',), classes=('child', 'young', 'middle', 'old'), edges=(13.0, 30.0, 60.0))


@pytest.mark.parametrize('num_bins', [2, 3, 6])
def test_loss_is_the_negative_logarithm_of_the_predicted_probability(num_bins):
  task = OrdinalTask('age', ('age',), classes=tuple('abcdef'[:num_bins]))
  outputs = 3 * jax.random.normal(jax.random.key(0), (50, num_bins - 1))
  probabilities = np.asarray(task.predict(outputs), np.float64)
  assert (probabilities > 0).all()
  np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
  for number in range(num_bins):
    loss = task.loss(outputs, jnp.full((50, 1), number, jnp.float32))
    np.testing.assert_allclose(loss[:, 0], -np.log(probabilities[:, number]), rtol=2e-3, atol=1e-4)


def test_the_best_constant_outputs_predict_the_share_of_each_bin():
  labels = np.repeat([0.0, 1.0, 2.0, 3.0], [5, 1, 3, 11])[:, None]
  outputs = jnp.zeros((1, 3))
  mean_loss = lambda one: AGE.loss(jnp.tile(one, (len(labels), 1)), jnp.asarray(labels)).mean()  # noqa: E731
  step = jax.jit(lambda one: one - 0.5 * jax.grad(mean_loss)(one))
  for _ in range(2000):
    outputs = step(outputs)
  shares = AGE.constant_prediction(labels, mask=np.ones(labels.shape, bool))
  np.testing.assert_allclose(AGE.predict(outputs)[0], shares, atol=1e-3)


def test_far_outputs_give_finite_losses_and_gradients():
  outputs = jnp.array([[1e3, -1e3, 1e3], [-1e3, -1e3, -1e3]])
  for number in range(4):
    loss = lambda one, number=number: AGE.loss(one, jnp.full((2, 1), number, jnp.float32)).sum()  # noqa: E731
    assert np.isfinite(loss(outputs))
    assert np.isfinite(jax.grad(loss)(outputs)).all()


def test_numbers_of_a_source_fall_into_bins():
  stated = np.array([[12.9], [13.0], [59.0], [99.0], [np.nan]], np.float32)
  np.testing.assert_array_equal(AGE.from_source(stated, width=1, height=1)[:, 0], [0, 1, 2, 3, np.nan])
  with pytest.raises(ValueError, match='edges'):
    OrdinalTask('age', ('age',), classes=('a', 'b', 'c', 'd'), edges=(3.0, 2.0, 4.0))


def test_metrics_count_how_many_bins_off_the_median_is():
  predictions = np.array([[0.6, 0.4, 0, 0], [0.3, 0.1, 0.1, 0.5], [0.0, 0.0, 0.1, 0.9], [0.25, 0.25, 0.25, 0.25]])
  labels, mask = np.array([[0.0], [0.0], [2.0], [3.0]]), np.array([[True], [True], [True], [False]])
  found = AGE.metrics(predictions, labels, mask=mask, source_size=np.ones((4, 2)))
  assert found['bin_mae'] == 1.0
  assert [found[name] for name in ('exact_bin', 'within_one_bin')] == pytest.approx([1 / 3, 2 / 3])
  assert found['per_output']['young'] == {'bin_mae': None, 'exact_bin': None, 'within_one_bin': None, 'num_labels': 0}
