"""A look-ahead on a batch gives TAG's affinities: against NumPy by hand, and with the invariances they must have."""

import dataclasses
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.affinities import lookahead
from mtl_jax.affinities.lookahead import Lookahead
from mtl_jax.models.backbone import Representation
from mtl_jax.models.heads import Linear
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.models.network import Network
from mtl_jax.objectives import loss_terms
from mtl_jax.tasks import RegressionTask
from mtl_jax.training.forward import Forward

ROWS, INPUTS, HIDDEN, NUM = 12, 5, 4, 4
STEP = 0.3


class Dense(nn.Module):
  """One shared layer with tanh."""

  @nn.compact
  def __call__(self, images, *, train: bool):
    return Representation(nn.tanh(nn.Dense(HIDDEN, name='dense')(images)))

  def penalty(self, params):
    """None: parameters are free."""


def make(order=range(NUM), *, absent=(), rows=slice(None)):
  """A batch of regression tasks in some order, with parameters, and NumPy's own."""
  random = np.random.default_rng(0)
  images = random.normal(size=(ROWS, INPUTS)).astype(np.float32)
  targets = random.normal(size=(ROWS, NUM)).astype(np.float32)
  given = random.random((ROWS, NUM)) < 0.8
  given[:, list(absent)] = False
  weights = [random.normal(size=shape).astype(np.float32) for shape in ((INPUTS, HIDDEN), (HIDDEN,))]
  heads = [(random.normal(size=(HIDDEN, 1)).astype(np.float32), np.float32(random.normal())) for _ in range(NUM)]
  tasks = tuple(RegressionTask(f't{k}', ('value',)) for k in order)
  model = MultiTaskModel(Dense(), tuple((t.name, 1) for t in tasks), head_kinds={t.name: Linear for t in tasks})
  model = Network(model)
  params = {'shared': {'dense': {'kernel': weights[0], 'bias': weights[1]}}} | {
    f'head_t{k}': {'output': {'kernel': heads[k][0], 'bias': heads[k][1][None]}} for k in order
  }
  labels, mask = ({f't{k}': values[rows][:, k : k + 1] for k in order} for values in (targets, given))
  stats = {t.name: t.stats(np.zeros((1, 1), np.float32), mask=np.ones((1, 1), bool), standardize=False) for t in tasks}
  forward = Forward(
    model=model,
    tasks=tasks,
    entries=loss_terms.entries(tasks),
    images=jnp.asarray(images[rows]),
    labels=labels,
    mask=mask,
    variables={},
    label_stats=stats,
  )
  return forward, params, (images, targets, given, weights, heads)


@pytest.fixture(scope='module')
def looked():
  """`looked(order, **options) -> Lookahead` of that one batch."""

  @lru_cache
  def compiled(order, chunk):
    forward, _, _ = make(order)

    def at(params, step, **batch):
      return lookahead.look_ahead(dataclasses.replace(forward, **batch), params, step_size=step, chunk=chunk)

    return jax.jit(at)

  def run(order=range(NUM), *, chunk=0, step=STEP, **options) -> Lookahead:
    forward, params, _ = make(order, **options)
    batch = {'images': forward.images, 'labels': forward.labels, 'mask': forward.mask}
    found = compiled(tuple(order), chunk)(params, step, **batch)
    return Lookahead(*(np.asarray(part)[None] for part in found))

  return run


def by_hand(step):
  """Affinities and gradients of the same net, backward by hand in float64."""
  _, _, (images, targets, given, (kernel, bias), heads) = make()
  x, y, kernel, bias = (np.asarray(one, np.float64) for one in (images, targets, kernel, bias))

  def losses(kernel, bias):
    z = np.tanh(x @ kernel + bias)
    errors = [np.where(given[:, k], (z @ heads[k][0])[:, 0] + heads[k][1] - y[:, k], 0) for k in range(NUM)]
    return z, errors, np.array([(e**2).sum() / given[:, k].sum() for k, e in enumerate(errors)])

  z, errors, before = losses(kernel, bias)
  affinities, flat = np.empty((NUM, NUM)), []
  for i in range(NUM):
    slope = 2 * errors[i][:, None] / given[:, i].sum() * heads[i][0].T * (1 - z**2)
    d_kernel, d_bias = x.T @ slope, slope.sum(0)
    affinities[i] = 1 - losses(kernel - step * d_kernel, bias - step * d_bias)[2] / before
    flat.append(np.concatenate([d_kernel.ravel(), d_bias]))
  return affinities, np.array(flat) @ np.array(flat).T


def test_affinities_and_products_are_those_had_by_hand(looked):
  affinities, gram = by_hand(STEP)
  found = looked()
  np.testing.assert_allclose(found.affinities()[0], affinities, rtol=2e-4, atol=2e-6)
  np.testing.assert_allclose(found.gram[0] / found.gram[0, 0, 0], gram / gram[0, 0], rtol=1e-4, atol=1e-5)
  norms = np.sqrt(np.diagonal(gram))
  np.testing.assert_allclose(found.cosines()[0], gram / norms[:, None] / norms[None], rtol=1e-4, atol=1e-5)
  assert (affinities[~np.eye(NUM, dtype=bool)] < 0).any()


def test_a_short_step_takes_off_what_the_gradients_product_says(looked):
  """Up to what is of second order in the step: half of it leaves a quarter."""
  left = []
  for step in (0.04, 0.02):
    found = looked(step=step)
    left.append(np.abs(found.affinities()[0] - step * found.gram[0] / found.before[0]).max())
  assert left[0] / left[1] == pytest.approx(4, rel=0.1)
  assert left[1] < 0.1 * np.abs(found.affinities()).max()


def test_permuting_tasks_permutes_the_matrix(looked):
  order = [2, 0, 3, 1]
  plain, permuted = looked(), looked(order)
  np.testing.assert_allclose(permuted.affinities()[0], plain.affinities()[0][np.ix_(order, order)], atol=1e-6)


@pytest.mark.parametrize('chunk', [1, 3])
def test_chunks_of_tasks_change_nothing(looked, chunk):
  np.testing.assert_allclose(looked(chunk=chunk).after, looked(chunk=NUM).after, rtol=1e-6)


def test_the_order_of_rows_changes_nothing(looked):
  np.testing.assert_allclose(looked(rows=slice(None, None, -1)).affinities(), looked().affinities(), atol=1e-6)


def test_an_absent_task_is_unknown_and_leaves_the_others_alone(looked):
  without, plain = looked(absent=[1]).affinities()[0], looked().affinities()[0]
  assert np.isnan(without[1]).all()
  assert np.isnan(without[:, 1]).all()
  rest = np.ix_([0, 2, 3], [0, 2, 3])
  np.testing.assert_allclose(without[rest], plain[rest], atol=1e-6)
  assert np.isfinite(plain).all()
