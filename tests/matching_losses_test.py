"""The algebra of coupled tasks against NumPy in float64, its gradients, what is stationary, and its extremes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.objectives.matching import losses, tables

EPS = 1e-3


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def log_softmax(x):
  return jax.nn.log_softmax(jnp.asarray(x, jnp.float32))


REFERENCE = {
  'kl': lambda p, q: (p * np.log(p / q)).sum(-1),
  'reverse_kl': lambda p, q: (q * np.log(q / p)).sum(-1),
  'jensen_shannon': lambda p, q: ((p * np.log(2 * p / (p + q))).sum(-1) + (q * np.log(2 * q / (p + q))).sum(-1)) / 2,
  'cross_entropy': lambda p, q: -(p * np.log(q)).sum(-1),
  'one_sided': lambda p, q: -(p * np.log(q))[:, 1:].sum(-1),
}


@pytest.fixture(scope='module')
def drawn():
  """Logits of a source of 4 classes and a target of 2, in float64, and a table."""
  random = np.random.default_rng(0)
  return random.normal(size=(6, 4)), random.normal(size=(6, 2)), softmax(random.normal(size=(4, 2)))


def matched(source, target, table, **how):
  how = {'divergence': 'kl', 'stop_gradient': 'none', 'eps': EPS, **how}
  return losses.match(log_softmax(target), losses.expected(log_softmax(source), jnp.asarray(table)), **how)


def reference(source, target, table, divergence):
  q = np.clip(softmax(source) @ table, EPS, 1 - EPS)
  return REFERENCE[divergence](softmax(target), q / q.sum(-1, keepdims=True))


@pytest.mark.parametrize('divergence', losses.DIVERGENCES)
def test_matching_is_the_formula(drawn, divergence):
  found = matched(*drawn, divergence=divergence)
  np.testing.assert_allclose(found, reference(*drawn, divergence), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(('divergence', 'stop'), list(itertools.product(losses.DIVERGENCES, ('none', 'p', 'q'))))
def test_gradients_are_those_of_finite_differences_and_what_is_stopped_has_none(drawn, divergence, stop):
  source, target, table = drawn
  gradients = jax.grad(
    lambda s, t: matched(s, t, table, divergence=divergence, stop_gradient=stop).sum(), argnums=(0, 1)
  )(jnp.asarray(source, jnp.float32), jnp.asarray(target, jnp.float32))
  for place, stopped in ((0, stop == 'q'), (1, stop == 'p')):
    numeric = np.zeros_like(drawn[place])
    for at in np.ndindex(numeric.shape if not stopped else ()):
      values = [[np.array(source), np.array(target)] for _ in range(2)]
      for sign, both in zip((1, -1), values, strict=True):
        both[place][at] += sign * 1e-6
      up, down = (reference(*both, table, divergence).sum() for both in values)
      numeric[at] = (up - down) / 2e-6 if not stopped else 0
    np.testing.assert_allclose(gradients[place], numeric * (not stopped), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
  ('divergence', 'in_q', 'in_p'),
  [
    ('kl', True, True),
    ('reverse_kl', True, True),
    ('jensen_shannon', True, True),
    ('cross_entropy', True, False),
    ('one_sided', False, False),
  ],
)
def test_which_losses_are_stationary_where_both_agree(divergence, in_q, in_p):
  logits = jnp.array([[0.3, -0.9]])

  def loss(p_logits, q_logits):
    return losses.DIVERGENCES[divergence](jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)).sum()

  for gradient, stationary in zip(jax.grad(loss, (1, 0))(logits, logits), (in_q, in_p), strict=True):
    assert (jnp.abs(gradient).max() < 1e-6) == stationary
    assert stationary or jnp.abs(gradient).max() > 1e-2


def test_one_sided_cross_entropy_drives_p_to_no():
  gradient = jax.grad(lambda z: losses.one_sided(jax.nn.log_softmax(z), jnp.log(jnp.array([[0.1, 0.9]]))).sum())
  assert gradient(jnp.array([[0.0, 2.0]]))[0, 1] > 0  # Descent lowers yes, though q says yes.


@pytest.mark.parametrize(('divergence', 'stop'), list(itertools.product(losses.DIVERGENCES, ('none', 'p', 'q'))))
def test_extremes_of_p_and_q_stay_finite(divergence, stop):
  certain = jnp.array([[200.0, -200.0], [-200.0, 200.0], [0.0, 0.0]])
  identity = np.eye(2)
  for source, target in itertools.product(certain, certain):
    value, gradients = jax.value_and_grad(
      lambda s, t: matched(s[None], t[None], identity, divergence=divergence, stop_gradient=stop).sum(), (0, 1)
    )(source, target)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_expected_probabilities_are_clipped_and_sum_to_one():
  q = losses.clipped(jnp.array([[0.0, 1.0], [0.5, 0.5]]), 0.01)
  np.testing.assert_allclose(q, [[0.01, 0.99], [0.5, 0.5]], rtol=1e-6)
  np.testing.assert_allclose(losses.clipped(jnp.array([[0.0, 0.0, 1.0]]), 0.1).sum(), 1, rtol=1e-6)


def test_the_posterior_of_labels_is_bayes_rule(drawn):
  prior = np.array([0.1, 0.2, 0.3, 0.4])
  table = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.05, 0.95]])
  one_hot = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
  found = losses.posterior(np.log(prior), [one_hot, one_hot[::-1]], [table, table], eps=EPS)
  joint = [prior * table[:, 1], prior * table[:, 0] ** 2, prior * table[:, 1]]
  np.testing.assert_allclose(found, [row / row.sum() for row in joint], rtol=1e-5)


def test_the_mean_score_is_the_formula_over_the_units_that_have_labels():
  weights = np.array([[1.0, 0.0, 0.5], [0.5, 1.0, 0.0]])  # [units, classes]
  labels = jnp.array([[1, 0], [1, 1], [0, 1]])
  known = jnp.array([[True, True], [True, False], [False, True]])
  scores = np.array([[1 / 1.5, 0, 1], [1, 0, 1], [1, 1, 0]])
  found = losses.mean_score(labels, known, weights, binary_source=False)
  np.testing.assert_allclose(found, softmax(scores), rtol=1e-6)


def test_a_yes_or_no_source_scores_no_as_what_yes_lacks():
  weights = np.array([[0.1, 0.8], [0.2, 0.2]])
  found = losses.mean_score(jnp.array([[1, 0]]), jnp.ones((1, 2), bool), weights, binary_source=True)
  np.testing.assert_allclose(found, softmax(np.array([[0.2, 0.8]])), rtol=1e-6)


def test_a_class_implies_the_units_that_are_likely_and_never_a_no():
  table = np.array([[0.4, 0.6], [0.0, 1.0], [0.7, 0.3]])
  classes, weight = losses.implied_targets(jnp.array([0, 1, 2]), table)
  np.testing.assert_allclose(weight, [0.6, 1.0, 0.0], rtol=1e-6)
  assert classes[:2].tolist() == [1, 1]


def test_a_unit_that_speaks_against_a_class_does_not_imply_it():
  no_beard, prior = np.array([[1.0, 0.6]]), np.array([0.5, 0.5])  # Of women, and of men.
  classes, implied = losses.implied_source(jnp.ones((1, 1), int), jnp.ones((1, 1), bool), no_beard, prior)
  assert (classes.tolist(), implied.tolist()) == ([0], [True])
  with_makeup = np.array([[1.0, 0.6], [0.8, 0.0]])
  labels, known = jnp.array([[1, 0]]), jnp.ones((1, 2), bool)
  assert not losses.implied_source(labels, known, with_makeup, prior)[1].any()  # Without makeup: neither is sure.


def test_all_units_imply_the_class_with_the_most_of_them():
  weights = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.1, 0.2, 1.0]])
  prior = np.full(3, 1 / 3)
  labels = jnp.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]])
  classes, implied = losses.implied_source(labels, jnp.ones((5, 3), bool), weights, prior)
  assert implied.tolist() == [True, True, False, False, True]  # The third row: two classes of one unit each.
  assert classes[np.array([0, 1, 4])].tolist() == [1, 0, 1]
  assert not losses.implied_source(labels, jnp.zeros((5, 3), bool), weights, prior)[1].any()


def test_the_counted_table_converges_to_the_true_one():
  random = np.random.default_rng(1)
  true, errors = np.array([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]), []
  for num in (100, 1_000, 100_000):
    source = random.integers(0, 3, num)
    target = (random.random(num) < true[source, 1]).astype(int)
    found = tables.counted(source, target, known=np.ones(num, bool), shape=(3, 2), smoothing=1.0)
    np.testing.assert_allclose(found.sum(1), 1)
    errors.append(np.abs(found - true).max())
  assert errors[2] < 0.01  # Four standard errors of a third of the rows are 0.011 at the most.
  assert errors[2] < errors[0]


def test_counting_is_smoothed_and_skips_rows_that_lack_a_label():
  source, target = np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1])
  known = np.array([True, True, True, False])
  found = tables.counted(source, target, known=known, shape=(2, 2), smoothing=1.0)
  np.testing.assert_allclose(found, [[2 / 5, 3 / 5], [1 / 2, 1 / 2]])
  bare = tables.counted(source, target, known=known, shape=(2, 2), smoothing=0.0)
  np.testing.assert_allclose(bare, [[1 / 3, 2 / 3], [1 / 2, 1 / 2]])


def test_relevance_is_the_share_of_entropy_explained():
  assert tables.relevance(np.eye(2), np.array([0.3, 0.7])) == pytest.approx(1)
  assert tables.relevance(np.array([[0.4, 0.6]] * 2), np.array([0.3, 0.7])) == pytest.approx(0, abs=1e-12)
  assert tables.relevance(np.array([[1.0, 0.0]] * 2), np.array([0.3, 0.7])) == 0
