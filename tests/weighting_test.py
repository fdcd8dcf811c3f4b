"""Every loss weighting is its formula, in NumPy and float64, over several steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import objectives
from mtl_jax.objectives.weighting.go4align import group_means

K = 3
STEPS = 7
LOSSES = np.random.default_rng(0).uniform(0.1, 2.0, (STEPS, K))
AFTER = LOSSES * np.random.default_rng(1).uniform(0.8, 1.1, (STEPS, K))  # Of the same batches after the step.
NORMS = np.random.default_rng(2).uniform(0.5, 5.0, (STEPS, K))


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def adam(rate, decay=0.0):
  """A step of Adam as its paper has it, on an array that it keeps."""
  first, second, time = 0.0, 0.0, 0

  def step(value, gradient):
    nonlocal first, second, time
    gradient = gradient + decay * value
    time += 1
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    return value - rate * first / (1 - 0.9**time) / (np.sqrt(second / (1 - 0.999**time)) + 1e-8)

  return step


def run(objective):
  """The total and its gradient in the losses, at every step."""
  present, state = jnp.ones(K, bool), objective.init(K)

  @jax.jit
  def step(losses, after, state, key):
    def total(losses):
      return objective.update(losses, state, present=present, key=key)

    (value, state_), gradient = jax.value_and_grad(total, has_aux=True)(losses)
    if objective.after is not None:
      state_ = objective.after(after, state_, present=present)
    return value, gradient, state_

  found = []
  for t in range(STEPS):
    value, gradient, state = step(jnp.float32(LOSSES[t]), jnp.float32(AFTER[t]), state, jax.random.key(t))
    found.append((float(value), np.asarray(gradient)))
  return found


def expected_fixed():
  return [((L * [1.0, 0.5, 2.0]).sum(), [1.0, 0.5, 2.0]) for L in LOSSES]


def expected_uncertainty():
  s, move = np.full(K, -0.5), adam(0.1)
  for L in LOSSES:
    yield (L / (2 * np.exp(s)) + s / 2).sum(), 1 / (2 * np.exp(s))
    s = move(s, -L / (2 * np.exp(s)) + 0.5)


def expected_imtl_l():
  s, move = np.zeros(K), adam(0.1)
  for L in LOSSES:
    yield (np.exp(s) * L - s).sum(), np.exp(s)
    s = move(s, np.exp(s) * L - 1)


def expected_gls():
  for L in LOSSES:
    total = L.prod() ** (1 / K)
    yield total, total / (K * L)


def expected_dwa():
  """Epochs of two steps: the weights move from the third epoch on."""
  means = LOSSES[:6].reshape(3, 2, K).mean(1)
  for t, L in enumerate(LOSSES):
    epoch = t // 2
    weights = np.ones(K) if epoch < 2 else K * softmax(means[epoch - 1] / means[epoch - 2] / 2.0)
    yield (weights * L).sum(), weights


def expected_stch():
  """Epochs of two steps, one of warm-up: the second is measured."""
  nadir, mu = LOSSES[2:4].mean(0), 0.5
  for t, L in enumerate(LOSSES):
    if t < 4:
      yield np.log(L).sum(), 1 / L
    else:
      scaled = np.log(L / nadir) / mu
      yield K * mu * np.log(np.exp(scaled).sum()), K * softmax(scaled) / L


def expected_famo():
  w, move = np.zeros(K), adam(0.025, decay=0.01)
  for old, new in zip(LOSSES, AFTER, strict=True):
    z = softmax(w)
    unit = (z / old).sum()
    yield (z * np.log(old)).sum() / unit, z / old / unit
    gain = np.log(old) - np.log(new)
    w = move(w, z * (gain - (z * gain).sum()))


def expected_scale_invariant():
  return [(np.log(L).sum(), 1 / L) for L in LOSSES]


def expected_uw_so():
  for L in LOSSES:
    weights = softmax(1 / L / 2.0)
    yield (weights * L).sum(), weights


def expected_ldc_mtl():
  s, move = np.ones(K), adam(0.1)
  sigmoid = lambda s: 1 / (1 + np.exp(-s))  # noqa: E731
  for L in LOSSES:
    w = sigmoid(s)
    signs = np.sign(np.diff(w * L))
    slopes = np.array([-signs[0], signs[0] - signs[1], signs[1]])  # Of the sum of the differences' sizes, in w_k L_k.
    yield (w * L).sum() / w.sum() + 0.3 * np.abs(np.diff(w * L)).sum(), w / w.sum() + 0.3 * slopes * w
    s = move(s, (1 / w.sum() + 0.3 * slopes) * L * w * (1 - w))


def expected_go4align(groups):
  total = np.zeros(K)
  for L in LOSSES:
    total = total + L
    weights = L.sum() / L * softmax(-0.5 * total)
    if groups == 1:
      weights = np.full(K, weights.mean())
    elif groups == 2:
      order = np.argsort(weights)
      cuts = [(weights[order[:c]].var() * c + weights[order[c:]].var() * (K - c), c) for c in range(1, K)]
      _, cut = min(cuts)
      weights = weights.copy()
      weights[order[:cut]], weights[order[cut:]] = weights[order[:cut]].mean(), weights[order[cut:]].mean()
    yield (weights * L).sum(), weights


def of_torchjd(make):
  torch = pytest.importorskip('torch')
  scalarization = pytest.importorskip('torchjd.scalarization')
  scalarizer = make(scalarization, lambda *numbers: torch.tensor(numbers, dtype=torch.float64))
  for L in LOSSES:
    losses = torch.tensor(L, requires_grad=True)
    value = scalarizer(losses)
    value.backward()
    yield value.item(), losses.grad.numpy()


def expected_pbi():
  return of_torchjd(lambda s, vector: s.PBI(2.0, vector(0.2, 0.3, 0.5), reference=vector(0.1, 0.0, 0.05)))


def expected_cosmos():
  return of_torchjd(lambda s, vector: s.COSMOS(0.7, vector(0.2, 0.3, 0.5)))


CASES = {
  'fixed': (objectives.fixed([1.0, 0.5, 2.0]), expected_fixed),
  'uncertainty': (objectives.uncertainty(learning_rate=0.1), expected_uncertainty),
  'imtl_l': (objectives.imtl_l(learning_rate=0.1), expected_imtl_l),
  'gls': (objectives.gls(), expected_gls),
  'dwa': (objectives.dwa(steps_per_epoch=2), expected_dwa),
  'stch': (objectives.stch(mu=0.5, warmup_epochs=1, steps_per_epoch=2), expected_stch),
  'famo': (objectives.famo(gamma=0.01), expected_famo),
  'scale_invariant': (objectives.scale_invariant(), expected_scale_invariant),
  'uw_so': (objectives.uw_so(temperature=2.0), expected_uw_so),
  'ldc_mtl': (objectives.ldc_mtl(lam=0.3, learning_rate=0.1), expected_ldc_mtl),
  'go4align 1': (objectives.go4align(groups=1, step_size=0.5), lambda: expected_go4align(1)),
  'go4align 2': (objectives.go4align(groups=2, step_size=0.5), lambda: expected_go4align(2)),
  'go4align 5': (objectives.go4align(groups=5, step_size=0.5), lambda: expected_go4align(5)),
  'pbi': (objectives.pbi(2.0, (2.0, 3.0, 5.0), reference=(0.1, 0.0, 0.05)), expected_pbi),
  'cosmos': (objectives.cosmos(0.7, (2.0, 3.0, 5.0)), expected_cosmos),
}


@pytest.mark.parametrize(('objective', 'expected'), CASES.values(), ids=CASES)
def test_totals_and_weights_are_the_formula(objective, expected):
  for (total, weights), (value, gradient) in zip(run(objective), expected(), strict=True):
    np.testing.assert_allclose(total, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights, gradient, rtol=1e-4)


@pytest.mark.parametrize(('num', 'groups'), [(1, 2), (5, 3), (6, 2), (7, 4)])
def test_groups_are_those_with_the_least_squares(num, groups):
  values = np.random.default_rng(num).gamma(1.0, size=num)
  present = np.arange(num) != 2
  found = np.asarray(group_means(jnp.float32(values), jnp.asarray(present), groups))
  here = values[present]
  best = np.inf
  for labels in itertools.product(range(min(groups, len(here))), repeat=len(here)):
    members = [here[np.array(labels) == label] for label in set(labels)]
    best = min(best, sum(((each - each.mean()) ** 2).sum() for each in members))
  np.testing.assert_allclose(((here - found[present]) ** 2).sum(), best, atol=1e-5)
  assert len(np.unique(found[present].round(5))) <= groups


def test_random_weights_are_a_softmax_of_standard_normals():
  objective = objectives.rlw()
  present = jnp.array([True, False, True])

  def weights(key):
    return jax.grad(lambda losses: objective.update(losses, (), present=present, key=key)[0])(jnp.ones(K))

  drawn = np.asarray(jax.jit(jax.vmap(weights))(jax.random.split(jax.random.key(0), 20_000)))
  np.testing.assert_array_equal(drawn[:, 1], 0)
  np.testing.assert_allclose(drawn.sum(1), 1, rtol=1e-5)
  logits = np.log(drawn[:, 0] / drawn[:, 2])  # The difference of two standard normals: variance 2.
  assert abs(logits.mean()) < 0.04  # Four standard errors of sqrt(2 / 20000).
  assert abs(logits.var() - 2) < 0.08  # Four of 2 * sqrt(2 / 20000).


def test_gradnorm_descends_the_distance_of_the_norms_from_their_target():
  objective = objectives.gradnorm(alpha=1.5, learning_rate=0.1)
  state, s, move = objective.init(K), np.zeros(K), adam(0.1)
  present = jnp.ones(K, bool)
  update = jax.jit(lambda g, state, losses: objective.update(g, state, losses=losses, present=present, key=None))
  for L, norms in zip(LOSSES, NORMS, strict=True):
    gradients = np.diag(norms)  # Their norms are known and they do not overlap.
    combined, state = update(jnp.float32(gradients), state, jnp.float32(L))
    w = K * softmax(s)
    np.testing.assert_allclose(combined, w * norms, rtol=1e-4)
    np.testing.assert_allclose(state.weights, w, rtol=1e-4)
    rates = L / LOSSES[0] / (L / LOSSES[0]).mean()
    signs = np.sign(w * norms - (w * norms).mean() * rates**1.5)
    jacobian = K * (np.diag(softmax(s)) - np.outer(softmax(s), softmax(s)))
    s = move(s, jacobian @ (signs * norms))


def test_uncertainty_learns_the_variance_of_each_task():
  """At the optimum exp(s) = L: every task adds 1/2."""
  objective = objectives.uncertainty(learning_rate=0.05)
  losses, state = jnp.array([0.05, 1.0, 5.0]), objective.init(K)
  step = jax.jit(lambda state: objective.update(losses, state, present=jnp.ones(K, bool), key=None)[1])
  for _ in range(400):
    state = step(state)
  np.testing.assert_allclose(np.exp(state.values), losses, rtol=0.02)  # Adam at this rate hovers about it.
