"""XLA's settings on CPUs: public reproducers of its faults, and our own programs against float64 at such sizes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from mtl_jax import objectives
from mtl_jax.models import normalization
from mtl_jax.platform import xla
from mtl_jax.tasks import losses

ROWS = 32_769  # One more than a power of two, where jax#39103 was seen.
IN_PROCESS_OF_ITS_OWN = 'import mtl_jax, jax, jax.numpy as jnp\n'


@pytest.fixture(scope='module', autouse=True)
def as_users_compile() -> Iterator[None]:
  """With all optimizations, which the rest of the suite does without."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
  """In a new process on one device, with no flags but these."""
  return subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'XLA_FLAGS': '', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '0', **environment},
    capture_output=True,
    text=True,
    timeout=120,
  )


# Public reproducers.


@pytest.mark.parametrize('rows', [1_025, ROWS, 70_001])
def test_a_vmapped_product_and_its_sum_are_right(rows):
  """jax#39103: 1071645696 instead of 1073741824 at 32,769 rows."""
  x = jnp.zeros((rows, 3)).at[:, 0].set(jnp.arange(rows))
  found = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)
  np.testing.assert_array_equal(found, np.arange(rows, dtype=np.float32) ** 2)


def test_sums_over_small_axes_of_seven_do_not_end_the_process():
  """jax#40412, jax#39257: a segmentation fault."""
  shape = (3, 1, 2, 2, 8, 8, 8)
  code = f'x = jnp.ones({shape})\nprint(float(jax.jit(lambda a, b: (a * b).sum(axis=3))(x, x).sum()))'
  found = run(IN_PROCESS_OF_ITS_OWN + code)
  assert (found.returncode, found.stdout) == (0, f'{np.prod(shape):.1f}\n'), found.stderr[-500:]


@pytest.mark.parametrize('shape', [(5, 60), (7, 33), (3, 129)])
def test_the_sum_of_a_product_with_a_broadcast_is_right(shape):
  """Infinite, or wrong by orders of magnitude, in jaxlib 0.10.2, 0.11.2 and 0.12.0.1."""
  num, size = shape
  matrices = np.random.default_rng(0).normal(size=(num, size, size)).astype(np.float32)
  found = jax.jit(lambda e, c: (e @ jnp.broadcast_to(c, e.shape) * e).sum(axis=(1, 2)))(matrices, jnp.float32(1.7))
  wide = matrices.astype(np.float64)
  expected = (wide @ np.full(wide.shape, 1.7) * wide).sum(axis=(1, 2))
  np.testing.assert_allclose(found, expected, rtol=1e-4)


# Our own programs, against float64.


@pytest.mark.parametrize('num', [2, 7, 40])
def test_a_gram_matrix_over_many_parameters_is_right(num):
  rows = np.random.default_rng(1).normal(size=(num, ROWS)).astype(np.float32)
  found = jax.jit(lambda g: jnp.einsum('ip,jp->ij', g, g))(rows)
  wide = rows.astype(np.float64)
  np.testing.assert_allclose(found, wide @ wide.T, rtol=1e-4, atol=1e-4 * ROWS**0.5)


def test_task_losses_over_a_whole_split_are_right():
  rng = np.random.default_rng(2)
  logits, labels = rng.normal(size=(ROWS, 40)).astype(np.float32), rng.integers(0, 2, (ROWS, 40)).astype(np.float32)
  mask = rng.random((ROWS, 40)) < 0.9
  per_label = lambda x, y: losses.binary_cross_entropy(x, y)  # noqa: E731
  found = jax.jit(lambda x, y, m: losses.masked_mean(per_label(x, y), m))(logits, labels, mask)
  wide = logits.astype(np.float64)
  expected = (np.logaddexp(0, wide) - labels * wide)[mask].mean()
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradients_of_vmapped_replicas_are_right():
  """A linear layer's squared error, in many replicas at once: a product, a broadcast and a sum, as of jax#39103."""
  rng = np.random.default_rng(3)
  x, w = rng.normal(size=(1_025, 33)), rng.normal(size=(5, 33, 7))
  loss = lambda w, x: ((x @ w) ** 2).sum()  # noqa: E731
  found = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(w.astype(np.float32), x.astype(np.float32))
  np.testing.assert_allclose(found, 2 * x.T @ (x @ w), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize('shape', [(3, 33, 17, 5), (129, 1, 1, 9), (2, 3, 257, 4)])
def test_batch_norm_and_its_gradient_are_right(shape):
  rng = np.random.default_rng(4)
  x, dy, scale = (rng.normal(1, 2, size=s) for s in (shape, shape, shape[-1:]))
  narrow = [jnp.asarray(v, jnp.float32) for v in (x, scale, scale)]
  (y, mean, var), backward = jax.vjp(jax.jit(normalization._normalize), *narrow)
  zero = jnp.zeros(shape[-1:])
  to_x, to_scale, to_bias = jax.jit(backward)((jnp.asarray(dy, jnp.float32), zero, zero))
  axes, num = (0, 1, 2), x[..., 0].size
  centred, std = x - x.mean(axes), np.sqrt(x.var(axes) + normalization.EPSILON)
  ours = centred / std
  expected = scale / std * (dy - dy.mean(axes) - ours * (dy * ours).sum(axes) / num)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)  # noqa: E731
  for found, wanted in (
    (mean, x.mean(axes)),
    (var, x.var(axes)),
    (y, ours * scale + scale),
    (to_x, expected),
    (to_scale, (dy * ours).sum(axes)),
    (to_bias, dy.sum(axes)),
  ):
    close(found, wanted)


# Where the setting comes from.


def test_this_process_sums_without_ynnpack():
  assert not xla.reductions_in_ynnpack()


def test_sums_go_to_ynnpack_where_nothing_is_set():
  """Else the setting, and this file, have outlived their reason."""
  code = "print('ynn_fusion' in jax.jit(lambda x: x.sum(0)).lower(jnp.ones((32769, 8))).compile().as_text())"
  assert run('import jax, jax.numpy as jnp\n' + code).stdout == 'True\n'


@pytest.mark.parametrize(('given', 'expected'), [
  ('', xla.FLAG),
  ('--xla_dump_to=x', f'--xla_dump_to=x {xla.FLAG}'),
  (f'{xla.NAME}=-reduce', f'{xla.NAME}=-reduce'),
])  # fmt: skip
def test_flags_are_added_to_the_users_and_their_choice_stands(given, expected, monkeypatch):
  monkeypatch.setattr(xla, '_started', lambda: False)
  environment = {'XLA_FLAGS': given, 'JAX_PLATFORMS': 'cpu'}
  xla.set_flags(environment)
  assert environment['XLA_FLAGS'] == expected


@pytest.mark.parametrize('version', ['0.10.1', '0.13.0', '1.0'])
def test_flags_that_a_jaxlib_may_not_know_are_left_out(version, monkeypatch):
  monkeypatch.setattr(xla, '_version', lambda: version)
  environment: dict[str, str] = {}
  xla.set_flags(environment)
  assert not environment


def test_a_tpus_compiler_gets_no_flags(monkeypatch):
  environment = {'JAX_PLATFORMS': 'tpu,cpu'}
  xla.set_flags(environment)
  assert 'XLA_FLAGS' not in environment


def test_an_import_after_jax_has_started_is_refused_where_sums_may_be_wrong():
  late = 'import jax\njax.devices()\nimport mtl_jax'
  found = run(late)
  assert found.returncode == 1
  assert 'restart Python and import mtl_jax first' in found.stderr.splitlines()[-1]
  assert run(late, XLA_FLAGS=xla.FLAG).returncode == 0


def test_an_import_between_jax_and_its_first_computation_is_in_time():
  code = 'import jax\nimport mtl_jax\nfrom mtl_jax.platform import xla\nprint(xla.reductions_in_ynnpack())'
  assert run(code).stdout == 'False\n'


def test_the_library_is_imported_without_jax():
  code = "import sys, mtl_jax\nprint('jax' in sys.modules)"
  assert run(code).stdout == 'False\n'
  assert mtl_jax.__version__
  assert objectives.OBJECTIVES
