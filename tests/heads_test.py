"""Heads give their task's outputs; heat maps give the places of what they see; coordinates have losses of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax.configs import default
from mtl_jax.errors import ConfigError
from mtl_jax.models import heads, multitask
from mtl_jax.models.backbone import Representation
from mtl_jax.models.heads import HEADS
from mtl_jax.run.workdir import DataFacts
from mtl_jax.tasks import BinaryTask, LandmarkTask, from_json, losses

LANDMARKS = LandmarkTask('landmarks', tuple(f'p{i}_{axis}' for i in range(3) for axis in 'xy'))
TASKS = (BinaryTask('attributes', ('Smiling', 'Male')), LANDMARKS)
READ = Representation(jax.random.normal(jax.random.key(0), (4, 5)), jax.random.normal(jax.random.key(1), (4, 2, 3, 5)))


def with_heads(config, head: str = 'mlp', **of_tasks: str):
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.model.head = head
    config.model.heads.update(of_tasks)
  return config


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('kind', HEADS)
def test_outputs_and_parameters_are_float32(kind, dtype):
  head = HEADS[kind](6, 8, dtype)
  outputs, variables = jax.eval_shape(lambda: head.init_with_output(jax.random.key(0), READ))
  assert outputs.shape == ((4, 8, 12, 6) if HEADS[kind].dense else (4, 6))  # Maps of 2 x 3, doubled twice.
  assert {leaf.dtype for leaf in jax.tree.leaves((outputs, variables))} == {jnp.dtype('float32')}


def test_heads_per_output_are_as_many_heads_of_one_output():
  head = HEADS['per_output'](3, 8, jnp.float32)
  outputs, variables = head.init_with_output(jax.random.key(0), READ)
  for i in range(3):
    own = {'params': jax.tree.map(lambda leaf: leaf[i], variables['params']['each'])}  # noqa: B023
    np.testing.assert_allclose(HEADS['mlp'](1, 8, jnp.float32).apply(own, READ)[:, 0], outputs[:, i], rtol=1e-5)
  first, second = (variables['params']['each']['hidden']['kernel'][i] for i in (0, 1))
  assert not np.allclose(first, second)


def test_a_linear_head_is_linear():
  head = HEADS['linear'](3, 8, jnp.float32)
  outputs, variables = head.init_with_output(jax.random.key(0), READ)
  kernel, bias = (variables['params']['output'][name] for name in ('kernel', 'bias'))
  np.testing.assert_allclose(outputs, READ.features @ kernel + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('row', 'column'), [(0, 0), (1, 2), (4, 3)])
def test_a_peak_gives_its_pixels_centre(row, column):
  heat = jnp.zeros((1, 5, 4, 1)).at[0, row, column].set(50.0)
  np.testing.assert_allclose(heads.expected_places(heat)[0, 0], [(column + 0.5) / 4, (row + 0.5) / 5], rtol=1e-5)


def test_two_peaks_give_the_place_between_and_none_the_centre():
  heat = jnp.zeros((1, 5, 4, 2)).at[0, 1, 0, 0].set(50.0).at[0, 1, 3, 0].set(50.0)
  np.testing.assert_allclose(heads.expected_places(heat)[0], [[0.5, 0.3], [0.5, 0.5]], rtol=1e-5)


def test_a_flat_heat_map_means_the_mean_face_at_first():
  head = HEADS['soft_argmax'](6, 8, jnp.float32)
  flat = Representation(READ.features, jnp.ones((4, 2, 3, 5)))
  outputs, _ = head.init_with_output(jax.random.key(0), flat)
  np.testing.assert_allclose(outputs, 0, atol=1e-5)


@pytest.mark.parametrize(('kind', 'rate'), [('soft_argmax', 3e-2), ('upsampled_soft_argmax', 3e-3)])
def test_heat_maps_learn_where_a_dot_is(kind, rate):
  """Dots at random places, on maps alone: features are the same for all images. Places are standardised."""
  head = HEADS[kind](2, 8, jnp.float32)
  places = jax.random.randint(jax.random.key(0), (32, 2), 0, 6)
  maps = jnp.zeros((32, 6, 6, 1)).at[jnp.arange(32), places[:, 1], places[:, 0]].set(3.0)
  read = Representation(jnp.zeros((32, 1)), maps)
  targets = (places - places.mean(0)) / places.std(0)
  tx = optax.adam(rate)
  params = head.init(jax.random.key(1), read)

  @jax.jit
  def step(params, state):
    loss, gradient = jax.value_and_grad(lambda p: losses.squared_error(head.apply(p, read), targets).mean())(params)
    updates, state = tx.update(gradient, state)
    return optax.apply_updates(params, updates), state, loss

  state, found = tx.init(params), []
  for _ in range(150):
    params, state, loss = step(params, state)
    found.append(float(loss))
  assert found[0] > 0.5
  assert found[-1] < 0.01


# By config.


def test_each_task_can_have_a_head_of_its_own(tiny_config):
  model = multitask.from_config(with_heads(tiny_config(), 'linear', landmarks='soft_argmax').model, TASKS).module
  images = jnp.zeros((2, 16, 16, 3))
  outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
  assert set(variables['params']['head_attributes']) == {'output'}
  assert set(variables['params']['head_landmarks']) == {'hidden', 'heat', 'offset', 'scale'}
  assert {name: value.shape for name, value in outputs.items()} == {'attributes': (2, 2), 'landmarks': (2, 6)}


def test_a_split_task_has_its_groups_head_unless_it_has_its_own(tiny_config):
  config = with_heads(tiny_config(), attributes='linear', **{'attributes/Male': 'per_output'})
  smiling, male = (BinaryTask(f'attributes/{name}', (name,)) for name in ('Smiling', 'Male'))
  assert [multitask.head_of(config.model, task) for task in (smiling, male, LANDMARKS)] == [
    HEADS['linear'],
    HEADS['per_output'],
    HEADS['mlp'],
  ]


@pytest.mark.parametrize(
  ('head', 'of_tasks', 'told'),
  [
    ('soft_argmax', {}, 'config.model.head: soft_argmax gives coordinates, and attributes has none'),
    ('mlp', {'attributes': 'soft_argmax'}, 'config.model.heads.attributes: soft_argmax gives coordinates'),
    ('mlpp', {}, "config.model.head: no choice 'mlpp'; did you mean 'mlp'?"),
    ('mlp', {'landmarks': 'soft'}, "config.model.heads.landmarks: no choice 'soft'"),
  ],
)
def test_heads_that_do_not_fit_are_refused_by_their_field(tiny_config, head, of_tasks, told):
  with pytest.raises(ConfigError) as caught:
    multitask.from_config(with_heads(tiny_config(), head, **of_tasks).model, TASKS)
  assert str(caught.value).startswith(told)


# Losses of coordinates.

ERRORS = np.array([[-3.0, -1.0, -0.3, 0.05, 0.5, 0.7, 1.0, 2.0]], np.float32)


def wing(x, w=1.0, e=0.2):
  return np.where(abs(x) < w, w * np.log(1 + abs(x) / e), abs(x) - (w - w * np.log(1 + w / e)))


@pytest.mark.parametrize(
  ('name', 'formula'),
  [
    ('squared', np.square),
    ('l1', np.abs),
    ('smooth_l1', lambda x: np.where(abs(x) < 1, x**2 / 2, abs(x) - 0.5)),
    ('wing', wing),
  ],
)
def test_coordinate_losses_are_their_formulas_with_finite_gradients(name, formula):
  task = LandmarkTask('landmarks', tuple(f'{point}_{axis}' for point in 'abcd' for axis in 'xy')).with_coordinate_loss(
    name
  )
  targets = jnp.full_like(ERRORS, 0.25)
  np.testing.assert_allclose(task.loss(jnp.array(targets + ERRORS), targets), formula(ERRORS), rtol=1e-4, atol=1e-6)
  gradient = jax.grad(lambda outputs: task.loss(outputs, targets).sum())(jnp.array(targets + ERRORS))
  assert np.isfinite(gradient).all()
  assert (np.sign(gradient) == np.sign(ERRORS)).all()


def test_a_coordinate_loss_that_is_not_there_is_refused():
  config = default.get_config()
  config.objective.coordinate_loss = 'wings'
  with pytest.raises(ConfigError, match=r"coordinate_loss: no choice 'wings'; did you mean 'wing'\?"):
    DataFacts((16, 16), TASKS, '').selected(config)


def test_the_wing_loss_has_no_step_at_its_width():
  ends = losses.wing(jnp.array([[0.9999, 1.0001]]), jnp.zeros((1, 2)))[0]
  assert abs(ends[1] - ends[0]) < 1e-3


def test_a_tasks_loss_is_the_configs_and_not_the_datas():
  task = LANDMARKS.with_coordinate_loss('wing')
  assert task.coordinate_loss == 'wing'
  assert task.to_json() == LANDMARKS.to_json()
  assert from_json(task.to_json()) == LANDMARKS
  assert TASKS[0].with_coordinate_loss('wing') is TASKS[0]
