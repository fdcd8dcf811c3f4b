"""What every objective must keep to: absent tasks, one task, zeros, the config; and a run that uses one."""

import functools
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import SIZE, TASKS, label_stats, make_batch, make_model

from mtl_jax import config as configs
from mtl_jax.configs import default
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.errors import ConfigError
from mtl_jax.objectives import OBJECTIVES, options
from mtl_jax.run import trained_model
from mtl_jax.run.state import init_state
from mtl_jax.training import loop
from mtl_jax.training.step import train_step

RANDOM = ('rlw', 'graddrop', 'pcgrad', 'gradvac')  # What they draw depends on the number of tasks.
FILE = Path(default.__file__)
ROWS, FEATURES, STEPS = 4, 6, 3


def make_config(name: str = 'fixed', **fields):
  config = default.get_config()
  config.update_from_flattened_dict({'objective.name': name, **{f'objective.{k}': v for k, v in fields.items()}})
  return config


def make(name: str, num: int):
  return options.from_config(make_config(name).objective, [f'task{k}' for k in range(num)])


@functools.cache
def compiled_step(name: str, num: int):
  """The method for so many tasks, and a step of it: the combined gradient, in class L that of the total."""
  objective = make(name, num)

  @jax.jit
  def step(gradients, losses, present, state, key):
    if objective.needs == 'losses':
      total = partial(objective.update, present=present, key=key)
      weights, state = jax.grad(total, has_aux=True)(losses, state)
      combined = jnp.einsum('k,k...->...', weights, jnp.where(weights[:, None, None] != 0, gradients, 0))
    else:
      if objective.parts > 1:
        gradients = jnp.stack([gradients] * objective.parts)
      combined, state = objective.update(gradients, state, losses=losses, present=present, key=key)
    if objective.after is not None:
      state = objective.after(losses, state, present=present)
    return combined, state

  return objective, step


def updates(name: str, gradients, losses, present):
  """The combined gradients of some steps, `[STEPS, ROWS, FEATURES]`."""
  objective, step = compiled_step(name, len(present))
  state, found = objective.init(len(present), jnp.zeros(gradients.shape[2:])), []
  for t in range(STEPS):
    arguments = jnp.float32(gradients[t]), jnp.float32(losses[t]), jnp.asarray(present)
    combined, state = step(*arguments, state, jax.random.key(t))
    found.append(combined)
  return np.stack(found)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_an_absent_task_is_as_if_it_were_not_there(name):
  random = np.random.default_rng(0)
  gradients, losses = random.normal(size=(STEPS, 3, ROWS, FEATURES)), random.uniform(0.1, 2, (STEPS, 3))
  gradients[:, 1], losses[:, 1] = np.nan, np.nan
  found = updates(name, gradients, losses, [True, False, True])
  assert np.isfinite(found).all()
  assert np.abs(found).max() > 0
  if name not in RANDOM:
    alone = updates(name, gradients[:, ::2], losses[:, ::2], [True, True])
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_a_batch_without_any_label_moves_nothing(name):
  nothing = np.full((STEPS, 2, ROWS, FEATURES), np.nan)
  found = updates(name, nothing, np.full((STEPS, 2), np.nan), [False, False])
  np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize('name', OBJECTIVES)
def test_one_task_alone_keeps_its_direction(name):
  random = np.random.default_rng(0)
  gradients = np.repeat(random.normal(size=(1, 1, ROWS, FEATURES)), STEPS, axis=0)
  found = updates(name, gradients, np.ones((STEPS, 1)), [True])
  cosines = (found * gradients[:, 0]).sum((1, 2)) / np.linalg.norm(found, axis=(1, 2)) / np.linalg.norm(gradients[0])
  np.testing.assert_allclose(cosines, 1, rtol=1e-5)


@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize('zero', ['losses and gradients', 'one gradient'])
def test_zeros_give_finite_updates(name, zero):
  gradients, losses = np.random.default_rng(0).normal(size=(STEPS, 2, ROWS, FEATURES)), np.ones((STEPS, 2))
  if zero == 'one gradient':
    gradients[:, 1], losses[:, 1] = 0, 0
  else:
    gradients, losses = 0 * gradients, 0 * losses
  assert np.isfinite(updates(name, gradients, losses, [True, True])).all()


def one_of_each_kind() -> list[str]:
  """A method for each way in which the step asks for gradients, which is all that it sees of a method."""
  kinds = {}
  for name in OBJECTIVES:
    one = make(name, 2)
    about = (one.weighting, one.after, one.head_scale)
    kinds.setdefault((one.needs, one.parts, *(part is None for part in about)), name)
  return list(kinds.values())


@pytest.mark.parametrize('name', one_of_each_kind())
def test_every_kind_of_method_trains_from_the_config_and_leaves_a_task_without_labels_alone(name):
  config = make_config(name)
  objective = options.from_config(config.objective, [task.name for task in TASKS], steps_per_epoch=2)
  batch = make_batch(rows=12)
  common = {'model': make_model(), 'tx': optax.sgd(0.01), 'objective': objective, 'ema_decay': 0.0}
  first = jax.jit(partial(init_state, 0, label_stats=label_stats(batch), input_shape=(*SIZE, 3), **common))()
  step = partial(train_step, tasks=TASKS, augmentation=Augmentation(), seed=0, **common)
  step = jax.jit(step, compiler_options={'xla_backend_optimization_level': 0})  # Compiles faster.
  state, metrics = step(first, batch)
  assert moved(first, state, 'shared') > 0
  assert moved(first, state, 'head_landmarks') > 0
  batch['mask']['landmarks'][:] = False
  batch['labels']['landmarks'][:] = np.nan
  second, metrics = step(state, batch)
  assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), (second.variables, metrics)))
  assert moved(state, second, 'head_landmarks') == 0
  assert moved(state, second, 'shared') > 0


@pytest.mark.parametrize('name', OBJECTIVES)
def test_a_state_can_be_donated(name):
  """The training step gives its state's memory away, which no two arrays may share."""
  objective = make(name, 2)
  state = jax.jit(lambda: objective.init(2, jnp.zeros(3)))()
  jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2, state), donate_argnums=0)(state)


def moved(before, after, part: str) -> float:
  """The largest change of a parameter."""
  a, b = (state.variables['params'][part] for state in (before, after))
  return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(
  ('fields', 'told'),
  [
    ({'name': 'cagard'}, "config.objective.name: no choice 'cagard'"),
    ({'name': 'dwa', 'options.temprature': 3.0}, "config.objective.options of 'dwa': no choice 'temprature'; did you"),
    ({'name': 'dwa', 'options.temperature': 'hot'}, 'config.objective.options.temperature must be '),
    ({'name': 'dwa', 'options.temperature': float('inf')}, 'config.objective.options.temperature must be '),
    ({'name': 'stch', 'options.warmup_epochs': 1.5}, 'config.objective.options.warmup_epochs must be a whole number'),
    ({'name': 'gls', 'options.c': 1.0}, 'config.objective.options.c: '),
    ({'name': 'fixed', 'options.weights': 1.0}, 'config.objective.options.weights: '),
    ({'name': 'gradnorm', 'options.at': 'nowhere'}, "config.objective.options.at: no choice 'nowhere'"),
    ({'name': 'fixed', 'gram_rows': 8}, 'config.objective.gram_rows is for methods with a Gram matrix'),
    ({'name': 'gradnorm', 'gram_every_steps': 2}, 'config.objective.gram_every_steps is for methods with a Gram'),
    ({'name': 'graddrop', 'heads': 'weighted'}, 'config.objective.heads=weighted is for methods with a weight'),
  ],
)
def test_wrong_settings_are_refused_in_one_line(fields, told):
  config = default.get_config()
  config.unlock()
  config.update_from_flattened_dict({f'objective.{key}': value for key, value in fields.items()})
  with pytest.raises(ConfigError) as caught:
    options.from_config(config.objective, ['a', 'b'])
  assert told in str(caught.value)
  assert '\n' not in str(caught.value)


OWN = """
import jax
import jax.numpy as jnp

from mtl_jax.objectives import Objective, of_losses


def vector(): return of_losses(lambda losses, present: losses)
def one_argument(): return of_losses(lambda losses: losses.sum())
def constant(): return of_losses(lambda losses, present: jnp.zeros(()))
def not_a_maker(losses): return losses.sum()
def number(): return 3
def bad_value(): raise ValueError('why')
def unreduced(): return Objective(lambda *_: (), lambda first, state, **_: (first, state), needs='parameters')
"""


@pytest.mark.parametrize(
  ('name', 'told'),
  [
    ('vector', 'scalar'),
    ('one_argument', r'rule\(losses, present\)'),
    ('constant', 'does not depend on the losses'),
    ('not_a_maker', "needs 'losses'"),
    ('number', 'gave int, not an Objective'),
    ('bad_value', 'why'),
    ('unreduced', 'without the first axis K'),
  ],
)
def test_a_mistake_in_an_objective_of_ones_own_names_its_file_once(tmp_path, name, told):
  (tmp_path / 'own.py').write_text(OWN)
  config = make_config(f'{tmp_path / "own.py"}:{name}')

  def update():
    objective = options.from_config(config.objective, ['a', 'b'])
    return objective.update(jnp.ones((2, 3)), objective.init(2), losses=jnp.ones(2))

  with pytest.raises(ConfigError, match=rf'^config\.objective\.\w+.*own\.py:{name}.*{told}') as caught:
    update()
  assert str(caught.value).count('config.objective.name') <= 1


def test_options_reach_the_method_from_the_command_line():
  overrides = ['objective.options.alpha=0', 'objective.options.at=parameters']
  config = configs.load(FILE, ['objective.name=gradnorm', *overrides])
  objective = options.from_config(config.objective, ['a', 'b'])
  assert objective.needs == 'parameters'
  back = configs.from_json(json.loads(json.dumps(configs.to_json(config))))
  assert back.objective.options.to_dict() == {'alpha': 0, 'at': 'parameters'}


def test_a_run_with_a_method_that_remembers_gradients_logs_saves_and_restores(tiny_config, tmp_path):
  overrides = {
    'objective.name': 'moco',
    'objective.chunk': 3,
    'objective.grain': 'outputs',
    'objective.log': True,
    'train.steps': 2,
  }
  config = tiny_config(**overrides, **{'data.attributes': ('Smiling', 'Male')})
  loop.train(config, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  for name in ('weight/attributes/Smiling', 'gradient_norm/landmarks', 'conflicting_pairs', 'least_cosine'):
    assert f'train/{name}' in lines[-1]
  weights = [lines[-1][f'train/weight/{name}'] for name in ('attributes/Smiling', 'attributes/Male', 'landmarks')]
  np.testing.assert_allclose(sum(weights), 1, rtol=1e-5)
  assert trained_model.restore(tmp_path).step == 2
