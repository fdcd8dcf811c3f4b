"""Balancing methods that need more than a Gram matrix are their formulas, and agree with torchjd where it has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import objectives
from mtl_jax.objectives.balancing.sdmgrad import project

K, SIZE, STEPS = 4, 11, 5
RANDOM = np.random.default_rng(0)
GRADIENTS = RANDOM.normal(size=(STEPS, K, SIZE)) * RANDOM.uniform(0.1, 3, (1, K, 1))
LOSSES = RANDOM.uniform(0.1, 2.0, (STEPS, K))


def as_tree(matrix):
  """A gradient in two leaves of different shapes."""
  return {'a': jnp.float32(matrix[..., :6]).reshape(*matrix.shape[:-1], 2, 3), 'b': jnp.float32(matrix[..., 6:])}


def as_vector(tree):
  return np.concatenate([np.ravel(tree['a']), np.ravel(tree['b'])])


def run(objective, gradients=GRADIENTS, present=None):
  """The combined gradient and the state after each step."""
  present = jnp.ones(K, bool) if present is None else present
  like = as_tree(np.zeros(SIZE))
  state = objective.init(K, like)
  step = jax.jit(lambda g, state, losses: objective.update(g, state, losses=losses, present=present, key=None))
  for t in range(STEPS):
    combined, state = step(as_tree(gradients[t]), state, jnp.float32(LOSSES[t]))
    yield as_vector(combined), state


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def expected_db_mtl(beta=0.9, sigma=0.5):
  average = np.zeros((K, SIZE))
  for t, (g, L) in enumerate(zip(GRADIENTS, LOSSES, strict=True), 1):
    fresh = g / (L[:, None] + 1e-8)
    average = fresh + beta / t**sigma * (average - fresh)
    norms = np.linalg.norm(average, axis=1)
    yield (norms.max() / norms) @ average


def expected_moco(beta=0.5, beta_sigma=0.5, gamma=0.1, gamma_sigma=0.5, rho=0.2):
  y, weights = np.zeros((K, SIZE)), np.full(K, 1 / K)
  for t, (g, L) in enumerate(zip(GRADIENTS, LOSSES, strict=True), 1):
    y = y - beta / t**beta_sigma * (y - g / np.linalg.norm(g, axis=1)[:, None] * L[:, None])
    weights = softmax(weights - gamma / t**gamma_sigma * (y @ y.T + rho * np.eye(K)) @ weights)
    yield weights @ y


def expected_excess_mtl(eta=0.5):
  squares, weights, first = np.zeros((K, SIZE)), np.full(K, 1 / K), None
  for g in GRADIENTS:
    squares = squares + g**2
    excess = (g**2 / np.sqrt(squares)).sum(1)
    first = excess if first is None else first
    weights = weights * np.exp(eta * excess / first)
    weights = weights / weights.sum()
    yield weights @ g


@pytest.mark.parametrize(
  ('objective', 'expected'),
  [
    (objectives.db_mtl(beta_sigma=0.5), expected_db_mtl),
    (objectives.moco(rho=0.2), expected_moco),
    (objectives.excess_mtl(eta=0.5), expected_excess_mtl),
  ],
  ids=['db_mtl', 'moco', 'excess_mtl'],
)
def test_updates_are_the_formula(objective, expected):
  for (found, _), value in zip(run(objective), expected(), strict=True):
    np.testing.assert_allclose(found, value, rtol=2e-4, atol=1e-5)


def torch_and_aggregation():
  return pytest.importorskip('torch'), pytest.importorskip('torchjd.aggregation')


def test_excess_mtl_is_torchjds_but_for_the_first_step():
  """torchjd takes the first excess risk unscaled, where the rule e / e(0) makes it 1: the same tasks, other weights.

  With equal first excess risks that factor is common to all tasks and drops out.
  """
  torch, aggregation = torch_and_aggregation()
  gradients = GRADIENTS.copy()
  gradients[0] *= (1 / np.abs(gradients[0]).sum(1))[:, None]  # e_k(0) = sum |g_k|.
  aggregator = aggregation.ExcessMTL(robust_step_size=0.5)
  for t, (found, _) in enumerate(run(objectives.excess_mtl(eta=0.5), gradients)):
    expected = aggregator(torch.tensor(gradients[t], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sdmgrad_weights_are_torchjds():
  torch, aggregation = torch_and_aggregation()
  thirds = RANDOM.normal(size=(STEPS, 3, K, SIZE)) + GRADIENTS[:, None]
  weighting = aggregation.SDMGradWeighting()
  for t, (found, state) in enumerate(run(objectives.sdmgrad(), thirds)):
    expected = weighting(torch.tensor(thirds[t, 0] @ thirds[t, 1].T, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(state.weights, expected, atol=1e-4)
    np.testing.assert_allclose(found, expected @ thirds[t, 2], rtol=1e-3, atol=1e-3)


def test_sdmgrads_preference_is_torchjds():
  torch, aggregation = torch_and_aggregation()
  thirds = RANDOM.normal(size=(STEPS, 3, K, SIZE)) + GRADIENTS[:, None]
  preference = (0.1, 0.2, 0.3, 0.4)
  weighting = aggregation.SDMGradWeighting(lr=0.5, pref_vector=torch.tensor(preference, dtype=torch.float64))
  for t, (_, state) in enumerate(run(objectives.sdmgrad(solver_rate=0.5, preference=preference), thirds)):
    expected = weighting(torch.tensor(thirds[t, 0] @ thirds[t, 1].T, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(state.weights, expected, atol=1e-4)


def test_sdmgrads_solver_comes_to_rest_at_a_rate_of_the_matrix_and_not_at_the_published_one():
  rows = np.random.default_rng(1).normal(size=(3, SIZE))
  thirds = as_tree(np.stack([rows / np.linalg.norm(rows, axis=1, keepdims=True)] * 3))

  def last_move(rate):
    ends = []
    for steps in (19, 20):
      objective = objectives.sdmgrad(solver_rate=rate, solver_steps=steps)
      ends.append(objective.update(thirds, objective.init(3), losses=jnp.ones(3))[1].simplex)
    return float(jnp.abs(ends[1] - ends[0]).max())

  assert last_move(10.0) > 0.5
  assert last_move(0.0) < 1e-3


def test_modos_weights_are_torchjds():
  torch, aggregation = torch_and_aggregation()
  thirds = RANDOM.normal(size=(STEPS, 3, K, SIZE)) + GRADIENTS[:, None]
  weighting = aggregation.MoDoWeighting(gamma=0.02, rho=0.3)
  for t, (found, state) in enumerate(run(objectives.modo(gamma=0.02, rho=0.3), thirds)):
    expected = weighting(torch.tensor(thirds[t, 0] @ thirds[t, 1].T, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(state.weights, expected, atol=1e-4)
    np.testing.assert_allclose(found, expected @ thirds[t, 2], rtol=1e-3, atol=1e-3)


def test_imtl_is_the_papers_closed_form_of_the_scaled_losses():
  """In float64: IMTL-G from differences to the first gradient, Adam's steps of the scales' logarithms."""
  logs, first, second, rate = np.zeros(K), np.zeros(K), np.zeros(K), 0.1
  for t, (found, state) in enumerate(run(objectives.imtl(learning_rate=rate))):
    scaled = np.exp(logs)[:, None] * GRADIENTS[t]
    units = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    apart = scaled[0] - scaled[1:], units[0] - units[1:]
    others = scaled[0] @ apart[1].T @ np.linalg.inv(apart[0] @ apart[1].T)
    weights = np.append(1 - others.sum(), others)
    np.testing.assert_allclose(found, weights @ scaled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.weights, np.exp(logs) * weights, rtol=1e-4)
    slope = np.exp(logs) * LOSSES[t] - 1
    first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
    logs = logs - rate * first / (1 - 0.9 ** (t + 1)) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
    np.testing.assert_allclose(state.inner.values, logs, rtol=1e-4)
  assert np.abs(logs).min() > 0.01


@pytest.mark.parametrize('num', [1, 2, 7])
def test_the_projection_gives_the_nearest_point_of_the_simplex(num):
  """The nearest point is where the inner product with every vertex's direction is not positive."""
  values = np.random.default_rng(num).normal(size=num) * 3
  found = np.asarray(project(jnp.float32(values), jnp.ones(num, bool)))
  assert (found >= 0).all()
  np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
  assert ((np.eye(num) - found) @ (values - found)).max() < 1e-5


def graddrop_reference(g, at, uniform):
  """Algorithm 1 of the paper, one feature at a time."""
  signed = (g * np.sign(at)).sum(1)
  result = np.zeros_like(at)
  for f in range(at.shape[1]):
    purity = 0.5 * (1 + signed[:, f].sum() / np.abs(signed[:, f]).sum())
    for k in range(len(g)):
      if (signed[k, f] > 0 and purity > uniform[f]) or (signed[k, f] < 0 and purity < uniform[f]):
        result[:, f] += g[k, :, f]
  return result


def test_sign_dropout_is_the_papers_algorithm():
  g, at = RANDOM.normal(size=(K, 5, 6)), RANDOM.normal(size=(5, 6))
  key = jax.random.key(3)
  arguments = {'losses': jnp.ones(K), 'present': jnp.ones(K, bool), 'key': key}
  found, _ = objectives.graddrop().update(jnp.float32(g), (), at=jnp.float32(at), **arguments)
  uniform = np.asarray(jax.random.uniform(jax.random.split(key, 1)[0], (1, 6)))[0]
  np.testing.assert_allclose(found, graddrop_reference(g, at, uniform), rtol=1e-5, atol=1e-6)


def test_sign_dropout_agrees_with_torchjd_on_average():
  torch, aggregation = torch_and_aggregation()
  g = GRADIENTS[0]
  arguments = {'losses': jnp.ones(K), 'present': jnp.ones(K, bool)}
  draw = jax.jit(jax.vmap(lambda key: objectives.graddrop().update(jnp.float32(g), (), key=key, **arguments)[0]))
  found = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
  torch.manual_seed(0)
  aggregator, matrix = aggregation.GradDrop(), torch.tensor(g)
  expected = np.stack([aggregator(matrix).numpy() for _ in range(1000)])
  error = np.sqrt(found.var(0) / 4000 + expected.var(0) / 1000)
  assert (np.abs(found.mean(0) - expected.mean(0)) < 5 * error + 1e-3).all()  # 1e-3: rounding.
