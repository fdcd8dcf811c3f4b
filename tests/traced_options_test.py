"""Options of objectives as arguments of a compiled program: one for all their values, and the same results as apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax.errors import ConfigError
from mtl_jax.objectives import OBJECTIVES, options
from mtl_jax.objectives.declared import traceable

NUM = 3
DRAWN = np.random.default_rng(0)
GRADIENTS = DRAWN.normal(size=(4, 3, NUM, 5)).astype(np.float32)  # Of four steps, in three parts of a batch.
LOSSES = DRAWN.uniform(0.2, 2, (4, NUM)).astype(np.float32)
# Two values of every number that is none of these are 0.3 and 0.7.
OTHER_VALUES = {
  'weights': ([1.0, 2.0, 3.0], [0.5, 4.0, 1.0]),
  'preference': ([1.0, 2.0, 3.0], [0.5, 4.0, 1.0]),
  'leak': ([0.1, 0.2, 0.3], [0.6, 0.0, 1.0]),
  'scores': ([0.0, 20.0, 5.0], [30.0, 0.0, 1.0]),
  'bound': (2.0, 3.0),
  'alpha': (0.6, 0.95),
  'temperature': (2.0, 5.0),
  'steps_per_epoch': (1, 2),
  'warmup_epochs': (0, 1),
  'every_steps': (1, 3),
  'solver_rate': (0.0, 0.2),
}
NUMBERS = {name: traceable(make) for name, make in OBJECTIVES.items() if traceable(make)}


def run(name, values):
  """Combined gradients of four steps with these options."""
  objective, found = OBJECTIVES[name](**values), []
  state = objective.init(NUM, jnp.zeros(5))
  for gradients, losses in zip(jnp.asarray(GRADIENTS), jnp.asarray(LOSSES), strict=True):
    if objective.needs == 'losses':
      (_, state), slopes = jax.value_and_grad(objective.update, has_aux=True)(losses, state, key=jax.random.key(0))
      combined = slopes @ gradients[0]
    else:
      rows = gradients if objective.parts > 1 else gradients[0]
      combined, state = objective.update(rows, state, losses=losses, key=jax.random.key(0))
    if objective.after is not None:
      state = objective.after(0.9 * losses, state, present=jnp.ones(NUM, bool))
    found.append(combined)
  return jnp.stack(found)


@pytest.mark.parametrize('name', NUMBERS)
def test_one_program_for_two_values_of_every_number_gives_what_two_objectives_give(name):
  tried = [{option: OTHER_VALUES.get(option, (0.3, 0.7))[i] for option in NUMBERS[name]} for i in (0, 1)]
  apart = [np.asarray(jax.jit(lambda values=values: run(name, values))()) for values in tried]
  stacked = jax.tree.map(lambda *each: jnp.stack([jnp.asarray(one) for one in each]), *tried)
  together = jax.jit(jax.vmap(lambda values: run(name, values)))(stacked)
  np.testing.assert_allclose(together, apart, rtol=2e-4, atol=2e-5)
  assert np.abs(apart[0] - apart[1]).max() > 1e-3


def test_what_is_not_a_number_is_structural():
  structural = {(name, option) for name, make in OBJECTIVES.items() for option in make.options} - {
    (name, option) for name, those in NUMBERS.items() for option in those
  }
  assert {option for _, option in structural} == {'at', 'normalization', 'method', 'groups', 'solver_steps'}


@pytest.mark.parametrize(('name', 'option'), [('go4align', 'groups'), ('sdmgrad', 'solver_steps'), ('mgda', 'at')])
def test_a_traced_value_of_a_structural_option_is_refused_by_name(name, option):
  with pytest.raises(ConfigError, match=f'{name}: {option} must be'):
    jax.eval_shape(lambda value: OBJECTIVES[name](**{option: value}).init(NUM), jnp.int32(2))


def test_weights_and_options_of_a_config_may_be_traced():
  names = ['a', 'b/first', 'b/second']

  def totals(name, weights, option, given):
    config = configs.get_config().objective
    with config.ignore_type(), config.unlocked():
      config.name = name
      config.weights.update(weights)
      config.options.update({option: given} if option else {})
    objective = options.from_config(config, names)
    state = objective.init(NUM)
    return objective.update(jnp.asarray(LOSSES[0]), state)[0]

  found = jax.jit(lambda one, other: totals('fixed', {'a': one, 'b': other}, '', None))(2.0, 3.0)
  assert float(found) == pytest.approx(float(LOSSES[0] @ [2, 3, 3]), rel=1e-6)
  assert float(found) == float(totals('fixed', {'a': 2.0, 'b': 3.0}, '', None))
  traced = jax.jit(lambda theta: totals('pbi', {}, 'theta', theta))(2.0)
  assert float(traced) == pytest.approx(float(totals('pbi', {}, 'theta', 2.0)), rel=1e-6)
