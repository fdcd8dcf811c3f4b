"""The balancing methods against float64 solvers of the papers' problems, and against torchjd."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.objectives import OBJECTIVES

optimize = pytest.importorskip('scipy.optimize')
SIZES = (2, 3, 7, 40)
SEEDS = range(3)


def jacobian(size, seed, *, columns=None):
  """Gradients [K, n] near one another's opposites as often as not, exact in float32."""
  rows = np.random.default_rng(seed).normal(size=(size, columns or 3 * size + 3)) * np.linspace(0.3, 3, size)[:, None]
  return rows.astype(np.float32).astype(np.float64)


@functools.cache
def compiled(name, **options):
  method = OBJECTIVES[name](**options).weighting

  @jax.jit
  def call(gram):
    size = len(gram)
    state, key = method.init(size), jax.random.key(0)
    return method.weights(gram, state, losses=jnp.ones(size), present=jnp.ones(size, bool), key=key)[0]

  return call


def update(name, rows, **options):
  return np.asarray(compiled(name, **options)(jnp.asarray(rows @ rows.T, jnp.float32)), np.float64) @ rows


def assert_close(found, expected):
  assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def random(columns=None):
  """Random Jacobians of every size; `columns` below the size leaves them dependent."""
  return [jacobian(size, seed, columns=columns and columns(size)) for size in SIZES for seed in SEEDS]


def test_mgda_is_the_shortest_vector_of_the_convex_hull():
  for rows in random():
    # Shortest in the hull: non-negative least squares of [rows'; 1] b = [0; 1], brought back to the simplex.
    system = np.vstack([rows.T, np.ones(len(rows))])
    found, _ = optimize.nnls(system, np.append(np.zeros(rows.shape[1]), 1.0), maxiter=10_000)
    assert_close(update('mgda', rows), found / found.sum() @ rows)


@pytest.mark.parametrize('c', [0.4, 1.0])
def test_cagrad_is_the_direction_that_helps_the_worst_off_most(c):
  cvxpy = pytest.importorskip('cvxpy')
  for rows in random():
    mean, basis = rows.mean(axis=0), np.linalg.qr(rows.T)[0]
    # The primal problem: max over |d - g_0| <= c |g_0| of min g_k . d, in the gradients' own space.
    change, worst = cvxpy.Variable(basis.shape[1]), cvxpy.Variable()
    length = np.linalg.norm(mean)
    gains = (rows @ basis) @ (basis.T @ mean / length + change)
    problem = cvxpy.Problem(cvxpy.Maximize(worst), [gains >= worst, cvxpy.norm(change) <= c])
    problem.solve(cvxpy.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    assert_close(update('cagrad', rows, c=c), (mean + length * basis @ change.value) / (1 + c**2))


def test_nash_mtl_is_the_bargaining_solution():
  for rows in random():
    gram = rows @ rows.T
    start = 1 / np.sqrt(np.diag(gram) * len(rows))
    found = optimize.minimize(
      lambda logs, gram=gram: (
        np.exp(logs) @ gram @ np.exp(logs) / 2 - logs.sum(),
        np.exp(logs) * (gram @ np.exp(logs)) - 1,
      ),
      np.log(start),
      jac=True,
      method='BFGS',
      options={'gtol': 1e-9},
    )
    assert_close(update('nash_mtl', rows), np.exp(found.x) @ rows)


def test_upgrad_is_the_mean_of_the_projections_on_the_cone_without_conflict():
  for rows in [*random(), *random(lambda size: size // 2 + 1)]:
    size = len(rows)
    gram = rows @ rows.T
    gram = gram / np.trace(gram) + 1e-4 * np.eye(size)
    root = np.linalg.cholesky(gram).T
    weights = np.zeros(size)
    for floor in np.eye(size) / size:
      # v = floor + x: least |root x + root floor| over x >= 0.
      weights += floor + optimize.nnls(root, -root @ floor, maxiter=10_000)[0]
    assert_close(update('upgrad', rows), weights @ rows)


def torch_update(method, rows):
  torch = pytest.importorskip('torch')
  return method(torch.tensor(rows, dtype=torch.float64)).numpy()


def test_methods_without_differences_agree_with_torchjd():
  torchjd = pytest.importorskip('torchjd.aggregation')
  for rows in [*random(), *random(lambda size: size // 2 + 1)]:
    assert_close(update('upgrad', rows), torch_update(torchjd.UPGrad(), rows))
  for rows in random():
    assert_close(update('imtl_g', rows), torch_update(torchjd.IMTLG(), rows))
    assert_close(update('fairgrad', rows, alpha=2.0), torch_update(torchjd.FairGrad(alpha=2.0), rows))


def test_preferences_and_newer_methods_agree_with_torchjd():
  torch = pytest.importorskip('torch')
  torchjd = pytest.importorskip('torchjd.aggregation')
  for rows in random():
    raw = np.random.default_rng(len(rows)).uniform(0.2, 1.0, len(rows))
    preference = tuple(float(p) for p in raw / raw.sum())
    theirs = torch.tensor(preference, dtype=torch.float64)
    assert_close(update('dualproj', rows), torch_update(torchjd.DualProj(), rows))
    assert_close(update('conflict_free', rows), torch_update(torchjd.ConFIG(), rows))
    for ours, method in (('upgrad', torchjd.UPGrad), ('dualproj', torchjd.DualProj), ('conflict_free', torchjd.ConFIG)):
      assert_close(update(ours, rows, preference=preference), torch_update(method(theirs), rows))
    aligned = torch_update(torchjd.AlignedMTL(theirs), rows)
    assert_close(update('aligned_mtl', rows, preference=preference), len(rows) * aligned)


def test_cr_mogm_agrees_with_torchjd():
  torch = pytest.importorskip('torch')
  torchjd = pytest.importorskip('torchjd.aggregation')
  theirs, ours = (
    torchjd.CRMOGMWeighting(torchjd.UPGradWeighting(), alpha=0.8),
    OBJECTIVES['cr_mogm']('upgrad', alpha=0.8).weighting,
  )
  state, known = ours.init(3), {'losses': jnp.ones(3), 'present': jnp.ones(3, bool), 'key': jax.random.key(0)}
  for seed in range(5):
    gram = jacobian(3, seed) @ jacobian(3, seed).T
    weights, state = ours.weights(jnp.float32(gram), state, **known)
    np.testing.assert_allclose(weights, theirs(torch.tensor(gram)).numpy(), rtol=1e-4)


def test_upgrad_does_not_share_torchjds_threshold():
  """The paper's projection has no scale; torchjd takes a trace below 1e-4 for zero gradients, and gives their mean."""
  torchjd = pytest.importorskip('torchjd.aggregation')
  rows = 1e-3 * np.array([[1.0, 0.0], [-1.0, 1.0]])
  np.testing.assert_allclose(torch_update(torchjd.UPGrad(), rows), rows.mean(axis=0))
  assert_close(update('upgrad', rows), torch_update(torchjd.UPGrad(), 1e3 * rows) / 1e3)


def test_imtl_g_of_dependent_gradients_agrees_with_torchjds_pseudo_inverse():
  torchjd = pytest.importorskip('torchjd.aggregation')
  torch = pytest.importorskip('torch')
  for rows in random(lambda size: size // 2 + 1)[3:]:  # Two gradients in two dimensions are independent.
    weights = torchjd.IMTLG().gramian_weighting(torch.tensor(rows @ rows.T, dtype=torch.float64)).numpy()
    assert_close(update('imtl_g', rows), weights @ rows)


def test_aligned_mtl_is_torchjds_times_the_number_of_tasks():
  """LibMTL, after the authors' code, sums the columns of the transform; torchjd averages them."""
  torchjd = pytest.importorskip('torchjd.aggregation')
  for rows in random():
    assert_close(update('aligned_mtl', rows), len(rows) * torch_update(torchjd.AlignedMTL(), rows))


@pytest.mark.parametrize('c', [0.4, 1.0])
def test_cagrad_is_torchjds_over_one_plus_c_squared(c):
  """The authors' code divides by 1 + c^2, torchjd does not."""
  pytest.importorskip('cvxpy')
  torchjd = pytest.importorskip('torchjd.aggregation')
  for rows in random()[:9]:
    assert_close(update('cagrad', rows, c=c), torch_update(torchjd.CAGrad(c=c), rows) / (1 + c**2))
  rows = jacobian(40, 1)
  # At K = 40 the solver's default tolerance leaves torchjd 1e-4 away: the rule's own measure says which is nearer.
  found, theirs = update('cagrad', rows, c=c), torch_update(torchjd.CAGrad(c=c), rows) / (1 + c**2)
  assert (rows @ found).min() >= (1 - 1e-6) * (rows @ theirs).min()
  assert np.linalg.norm(found - theirs) < 1e-3 * np.linalg.norm(found)


def test_mgda_is_torchjds_with_more_iterations():
  """Both the paper's problem; torchjd's Frank-Wolfe nears its solution slowly and stops after 100 steps."""
  torchjd = pytest.importorskip('torchjd.aggregation')
  for rows in random()[:6]:
    assert_close(update('mgda', rows), torch_update(torchjd.MGDA(epsilon=1e-9, max_iters=5000), rows))
  for rows in random()[6:]:
    stopped, solved = torch_update(torchjd.MGDA(), rows), update('mgda', rows)
    assert np.linalg.norm(solved) < np.linalg.norm(stopped)
    assert np.linalg.norm(solved - stopped) > 1e-3 * np.linalg.norm(solved)


def test_nash_mtl_agrees_with_torchjd_without_its_clipping():
  """The paper's equation gives the length sqrt(K), which torchjd and the authors' code clip to 1 by default."""
  pytest.importorskip('ecos')
  torchjd = pytest.importorskip('torchjd.aggregation')
  for rows in random()[:9]:
    assert_close(update('nash_mtl', rows), torch_update(torchjd.NashMTL(n_tasks=len(rows), max_norm=0), rows))
    clipped = torch_update(torchjd.NashMTL(n_tasks=len(rows)), rows)
    assert_close(update('nash_mtl', rows) / np.sqrt(len(rows)), clipped)


@pytest.mark.parametrize('name', ['pcgrad', 'gradvac'])
def test_two_tasks_in_random_order_agree_with_torchjd(name):
  """Among two there is one order, so the random draws do not matter."""
  torchjd = pytest.importorskip('torchjd.aggregation')
  method = getattr(torchjd, {'pcgrad': 'PCGrad', 'gradvac': 'GradVac'}[name])
  for seed in range(6):
    rows = jacobian(2, seed, columns=2)
    assert_close(update(name, rows), torch_update(method(), rows))


def test_gradvac_agrees_with_torchjd_over_several_steps():
  torchjd = pytest.importorskip('torchjd.aggregation')
  theirs, ours = torchjd.GradVac(), OBJECTIVES['gradvac']().weighting
  call = jax.jit(functools.partial(ours.weights, losses=jnp.ones(2), present=jnp.ones(2, bool), key=jax.random.key(0)))
  state = ours.init(2)
  for seed in range(8):
    rows = jacobian(2, seed, columns=3)
    weights, state = call(jnp.asarray(rows @ rows.T, jnp.float32), state)
    assert_close(np.asarray(weights, np.float64) @ rows, torch_update(theirs, rows))


def test_pcgrad_agrees_with_torchjd_on_average():
  torch = pytest.importorskip('torch')
  torchjd = pytest.importorskip('torchjd.aggregation')
  rows = np.array([[1.0, 0.2], [-0.8, 0.9], [-0.3, -1.0]])
  torch.manual_seed(0)
  theirs = np.mean([torch_update(torchjd.PCGrad(), rows) for _ in range(2000)], axis=0)
  method = OBJECTIVES['pcgrad']().weighting
  gram = jnp.asarray(rows @ rows.T, jnp.float32)
  one = lambda key: method.weights(gram, (), losses=jnp.ones(3), present=jnp.ones(3, bool), key=key)[0]  # noqa: E731
  updates = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))) @ rows
  error = updates.std(axis=0) * np.sqrt(1 / 2000 + 1 / 4000)
  assert (np.abs(updates.mean(axis=0) - theirs) < 5 * error).all()
