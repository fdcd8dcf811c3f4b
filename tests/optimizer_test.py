"""One step of each optimizer equals its formula in NumPy; kernels alone decay; rates follow their schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.errors import ConfigError
from mtl_jax.run import optimizer

RATE, DECAY, EPS = 0.1, 0.01, 1e-8
PLAIN = {
  'optimizer.schedule': 'constant',
  'optimizer.learning_rate': RATE,
  'optimizer.clip_norm': 0.0,
  'optimizer.weight_decay': DECAY,
}


def draw(seed: int) -> dict:
  rng = np.random.default_rng(seed)
  shapes = {'kernel': (3, 2), 'conv': (3, 3, 2, 2), 'bias': (2,), 'scale': (4,)}
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def steps(config, params, gradients: list[dict]):
  """The parameters after each gradient."""
  tx = optimizer.from_config(config.optimizer, steps=config.train.steps)
  params = jax.tree.map(jnp.asarray, params)
  state = tx.init(params)
  found = []
  for gradient in gradients:
    updates, state = tx.update(jax.tree.map(jnp.asarray, gradient), state, params)
    params = jax.tree.map(jnp.add, params, updates)
    found.append(params)
  return found


def expected_steps(name: str, params, gradients, *, momentum=0.9):
  """The same in NumPy and float64: Kingma & Ba 2015, Loshchilov & Hutter 2019, Nesterov as Sutskever et al. 2013."""
  params = {key: value.astype(np.float64) for key, value in params.items()}
  first, second = ({key: np.zeros_like(value) for key, value in params.items()} for _ in range(2))
  found = []
  for t, gradient in enumerate(gradients, 1):
    for key, value in params.items():
      decay = DECAY * value if value.ndim > 1 else 0.0
      g = gradient[key] + (0.0 if name == 'adamw' else decay)
      if name == 'sgd':
        first[key] = momentum * first[key] + g
        update = g + momentum * first[key]
      else:
        first[key] = 0.9 * first[key] + 0.1 * g
        second[key] = 0.999 * second[key] + 0.001 * g**2
        update = first[key] / (1 - 0.9**t) / (np.sqrt(second[key] / (1 - 0.999**t)) + EPS)
      params[key] = value - RATE * (update + (decay if name == 'adamw' else 0.0))
    found.append(dict(params))
  return found


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw'])
def test_three_steps_are_the_formula(tiny_config, name):
  gradients = [draw(seed) for seed in (1, 2, 3)]
  found = steps(tiny_config(**PLAIN, **{'optimizer.name': name}), draw(0), gradients)
  for ours, theirs in zip(found, expected_steps(name, draw(0), gradients), strict=True):
    for key, value in theirs.items():
      np.testing.assert_allclose(ours[key], value, rtol=1e-5, atol=1e-5)  # 1 - 0.999^t in float32: 5e-5.


def test_what_mixes_nets_does_not_decay_whatever_its_axes():
  params = {'conv': {'kernel': jnp.ones((3, 3)), 'bias': jnp.ones((2, 3))}, 'stitch': {'unit': jnp.ones((2, 2, 4))}}
  params['choices'] = {'logits': jnp.ones((2, 2))}
  expected = {'conv': {'kernel': True, 'bias': False}, 'stitch': {'unit': False}, 'choices': {'logits': False}}
  assert optimizer.is_kernel(params) == expected


def test_sgd_without_momentum_is_gradient_descent(tiny_config):
  config = tiny_config(**PLAIN, **{'optimizer.name': 'sgd', 'optimizer.momentum': 0.0})
  expected = expected_steps('sgd', draw(0), [draw(1)], momentum=0.0)
  for key, value in steps(config, draw(0), [draw(1)])[0].items():
    np.testing.assert_allclose(value, expected[0][key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw'])
def test_weight_decay_moves_kernels_alone(tiny_config, name):
  still = {key: np.zeros_like(value) for key, value in draw(0).items()}
  after = steps(tiny_config(**PLAIN, **{'optimizer.name': name}), draw(0), [still])[0]
  for key, value in draw(0).items():
    if key in ('bias', 'scale'):
      np.testing.assert_array_equal(after[key], value)
    else:
      np.testing.assert_array_equal(np.sign(value - np.asarray(after[key])), np.sign(value))  # Towards zero.


@given(scale=st.floats(1e-3, 1e3), limit=st.floats(0.1, 10))
@settings(deadline=None, max_examples=10)
def test_the_gradients_global_norm_is_clipped(tiny_config, scale, limit):
  config = tiny_config(
    **PLAIN
    | {
      'optimizer.name': 'sgd',
      'optimizer.momentum': 0.0,
      'optimizer.weight_decay': 0.0,
      'optimizer.learning_rate': 1.0,
      'optimizer.clip_norm': limit,
    }
  )
  zeros = {key: np.zeros_like(value) for key, value in draw(0).items()}
  gradient = {key: np.float32(scale) * value for key, value in draw(1).items()}
  norm = np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in gradient.values()))
  for key, value in steps(config, zeros, [gradient])[0].items():
    np.testing.assert_allclose(value, -gradient[key] * min(1.0, limit / norm), rtol=1e-5)


def rates_of(tiny_config, steps: int, **settings) -> list[float]:
  config = tiny_config(**{f'optimizer.{name}': value for name, value in settings.items()})
  schedule = optimizer.schedule(config.optimizer, steps=steps)
  return [float(schedule(step)) for step in range(steps + 1)]


@pytest.mark.parametrize('warmup', [0, 1, 10])
@pytest.mark.parametrize('name', ['cosine', 'constant', 'warmup_stable_decay'])
def test_the_rate_warms_up_and_falls_as_its_schedule_says(tiny_config, name, warmup):
  rates = rates_of(tiny_config, 50, warmup_steps=warmup, schedule=name, learning_rate=0.2)
  for step, rate in enumerate(rates):
    past = (step - warmup) / (50 - warmup)
    after = {
      'cosine': 0.1 * (1 + np.cos(np.pi * past)),
      'constant': 0.2,
      'warmup_stable_decay': 0.2 * min(1, (50 - step) / 10),  # The last fifth.
    }[name]
    expected = 0.2 * step / warmup if step < warmup else after
    np.testing.assert_allclose(rate, expected, rtol=1e-5, atol=1e-8)


@given(
  steps=st.integers(1, 30),
  more=st.integers(1, 30),
  warmup=st.integers(0, 40),
  decay=st.integers(0, 40),
  name=st.sampled_from(['constant', 'warmup_stable_decay', 'cosine']),
)
@settings(deadline=None, max_examples=30)
def test_the_rates_of_settled_steps_are_those_of_any_longer_run(tiny_config, steps, more, warmup, decay, name):
  given = {'warmup_steps': warmup, 'decay_steps': decay, 'schedule': name}
  short, long = (rates_of(tiny_config, num, **given) for num in (steps, steps + more))
  config = tiny_config(**{f'optimizer.{field}': value for field, value in given.items()})
  settled = optimizer.steps_before_decay(config.optimizer, steps=steps)
  assert 0 <= settled <= steps
  assert short[:settled] == long[:settled]
  assert name == 'cosine' or settled or warmup >= steps or decay + warmup >= steps or steps < 2


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_a_warmup_longer_than_the_run_ends_with_it(tiny_config, steps):
  rates = rates_of(tiny_config, steps, warmup_steps=100)[:-1]
  assert np.isfinite(rates).all()
  np.testing.assert_allclose(rates[-1], 1e-3, rtol=1e-6)


@pytest.mark.parametrize('name', optimizer.optimizers())
def test_every_update_rule_of_optax_is_had_by_its_name_and_moves_the_parameters(tiny_config, name):
  params = draw(0)
  (found,) = steps(tiny_config(**PLAIN, **{'optimizer.name': name}), params, [draw(1)])
  assert all(np.isfinite(value).all() for value in found.values())
  assert any((np.asarray(found[key]) != params[key]).any() for key in params)


def test_options_reach_the_update_rule_and_decay_is_the_rules_own_where_it_has_one(tiny_config):
  params, gradient = draw(0), draw(1)
  config = tiny_config(**PLAIN, **{'optimizer.name': 'lion'})
  with config.unlocked():
    config.optimizer.options = {'b1': 0.5}
  (found,) = steps(config, params, [gradient])
  for key, value in params.items():
    decay = DECAY * value if value.ndim > 1 else 0.0
    np.testing.assert_allclose(found[key], value - RATE * (np.sign(gradient[key]) + decay), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('name', 'option', 'told'),
  [
    ('lyon', None, "did you mean 'lion'"),
    ('adamw', 'b3', 'config.optimizer.options'),
    ('missing.py:make', None, 'no file missing.py'),
    ('no_such_module:make', None, 'no_such_module'),
    ('optax:no_such_rule', None, 'no_such_rule'),
    ('math:sqrt', None, 'config.optimizer'),
  ],
)
def test_an_update_rule_that_there_is_not_is_refused_with_its_field(tiny_config, name, option, told):
  config = tiny_config(**PLAIN, **{'optimizer.name': name})
  if option:
    with config.unlocked():
      config.optimizer.options = {option: 1.0}
  with pytest.raises(ConfigError, match=told):
    optimizer.from_config(config.optimizer, steps=config.train.steps)


def test_an_update_rule_of_ones_own_is_a_function_of_the_learning_rate_and_its_options(tiny_config, tmp_path):
  (tmp_path / 'mine.py').write_text(
    'import optax\n\ndef signs(learning_rate, scale=1.0):\n'
    '  return optax.chain(optax.scale_by_sign(), optax.scale(scale), optax.scale_by_learning_rate(learning_rate))\n'
  )
  config = tiny_config(**PLAIN | {'optimizer.weight_decay': 0.0}, **{'optimizer.name': f'{tmp_path}/mine.py:signs'})
  with config.unlocked():
    config.optimizer.options = {'scale': 3.0}
  params, gradient = draw(0), draw(1)
  (found,) = steps(config, params, [gradient])
  for key, value in params.items():
    np.testing.assert_allclose(found[key], value - 3 * RATE * np.sign(gradient[key]), rtol=1e-6)
