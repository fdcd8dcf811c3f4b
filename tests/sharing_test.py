"""Every way of sharing trains, bears missing tasks, and has the property that defines it."""

import math
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.data.input.augment import Augmentation
from mtl_jax.errors import ConfigError
from mtl_jax.models import multitask
from mtl_jax.models.backbone import Backbone
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.models.network import Network
from mtl_jax.models.sharing import SHARING, check_options, dselect_k, multilinear, soft
from mtl_jax.models.sharing.cross_stitch import own_and_others
from mtl_jax.models.sharing.way import mixed
from mtl_jax.objectives import fixed
from mtl_jax.run.state import init_state
from mtl_jax.tasks import BinaryTask, LandmarkTask
from mtl_jax.training.step import train_step

TASKS = (BinaryTask('attributes', ('Smiling', 'Male')), LandmarkTask('landmarks', ('nose_x', 'nose_y')))
NAMES = tuple(task.name for task in TASKS)
ROWS, SIZE = 8, (16, 16)
IMAGES = jax.random.normal(jax.random.key(1), (ROWS, *SIZE, 3))
# There is much to compile and little to compute.
compiled = partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
)


class Tiny(Backbone):
  """A convolution of stride 2 with norm and ReLU in each stage."""

  stages: int = 3
  dtype: Any = jnp.float32

  @property
  def num_stages(self):
    return self.stages

  @nn.compact
  def stage(self, x, index, *, train):
    x = nn.Conv((4, 4, 8)[index], (3, 3), strides=2, use_bias=False, dtype=self.dtype, name=f'conv_{index}')(x)
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, name=f'norm_{index}')
    return nn.relu(norm(x))


BACKBONE = Tiny()
OF_NETS = ('separate', 'soft', 'cross_stitch', 'sluice', 'dense')  # Those with a net for each task.
OF_ONE = ('hard', 'multilinear')  # Those whose heads all read the same.


def shared(name: str, **options):
  return SHARING[name](BACKBONE, NAMES, **options)


def make_model(name: str, **options) -> Network:
  outputs = tuple((t.name, t.num_outputs) for t in TASKS)
  return Network(MultiTaskModel(shared(name, **options), outputs, head_features=8))


def make_batch(**missing) -> dict:
  random = np.random.default_rng(0)
  labels = {
    'attributes': random.integers(0, 2, (ROWS, 2)).astype(np.float32),
    'landmarks': random.uniform(0.2, 0.8, (ROWS, 2)).astype(np.float32),
  }
  return {
    'image': random.integers(0, 256, (ROWS, *SIZE, 3), dtype=np.uint8),
    'labels': {name: np.where(missing.get(name, False), np.nan, value) for name, value in labels.items()},
    'mask': {name: np.full(value.shape, not missing.get(name, False)) for name, value in labels.items()},
  }


@pytest.fixture(scope='module', params=SHARING)
def way(request):
  """Each way in turn: its first state, and its step, compiled once for all tests that take this."""
  model, tx, objective = make_model(request.param), optax.adam(1e-2), fixed([1.0, 1.0])
  batch = make_batch()
  stats = {t.name: t.stats(batch['labels'][t.name], mask=batch['mask'][t.name], standardize=True) for t in TASKS}
  common = {'model': model, 'tx': tx, 'objective': objective, 'ema_decay': 0.0}
  state = compiled(partial(init_state, 0, label_stats=stats, input_shape=(*SIZE, 3), **common))()
  step = compiled(partial(train_step, tasks=TASKS, augmentation=Augmentation(), seed=0, **common))
  return SimpleNamespace(name=request.param, model=model, state=state, step=step)


def test_it_learns_a_batch_by_heart(way):
  state, losses = way.state, []
  for _ in range(25):
    state, metrics = way.step(state, make_batch())
    losses.append([float(metrics[f'{name}/loss']) for name in NAMES])
  first, last = np.array(losses[0]), np.mean(losses[-3:], axis=0)
  assert (last < 0.7 * first).all(), (first, last)


def test_a_missing_task_moves_neither_its_head_nor_its_own_net(way):
  after, metrics = way.step(way.state, make_batch(landmarks=True))
  assert float(metrics['landmarks/loss']) == 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.variables))
  before, after = (flatten_dict(s.variables['params'], sep='/') for s in (way.state, after))
  moved = {name for name in before if not np.array_equal(before[name], after[name])}
  assert any(name.startswith('head_attributes') for name in moved)
  if way.name != 'multilinear':  # Its prior ties the heads.
    assert not any(name.startswith('head_landmarks') for name in moved)
  if way.name == 'separate':
    assert not any(name.startswith('shared/backbone_landmarks') for name in moved)
  if way.name in ('cross_stitch', 'soft'):  # What the other task learns comes through.
    assert any(name.startswith('shared/backbone_landmarks') for name in moved)


def test_every_parameter_can_learn(way):
  """None is cut off from the losses and the penalty, though some begin behind a weight of 0."""
  state = way.state
  for _ in range(3):
    state, _ = way.step(state, make_batch())
  before, after = (flatten_dict(s.variables['params'], sep='/') for s in (way.state, state))
  still = {name for name in before if np.array_equal(before[name], after[name])}
  assert still <= {'shared/choices_stage_1/logits'}  # Nodes with one parent, which is no choice.


# Properties.


@cache
def first_variables(module, key: int = 3):
  return compiled(lambda: module.init(jax.random.key(key), IMAGES, train=False))()


def init(name: str, **options):
  """A way and variables of its own, to be changed at will."""
  module = shared(name, **options)
  return module, jax.tree.map(lambda leaf: leaf, first_variables(module))


@partial(compiled, static_argnames=('module', 'train'))
def features(module, variables, *, train: bool = False):
  """What each task's head reads, by task."""
  rngs = {'sharing': jax.random.key(0)}
  read, _ = module.apply(variables, IMAGES, train=train, mutable=['batch_stats'], rngs=rngs)
  return {task: (read if hasattr(read, 'features') else read[task]).features for task in NAMES}


def assert_same(first, second):
  for task in NAMES:
    np.testing.assert_allclose(first[task], second[task], rtol=1e-5, atol=1e-5)


def only_nets(variables):
  """What of the variables belongs to backbones."""
  flat = flatten_dict(variables)
  return unflatten_dict({path: leaf for path, leaf in flat.items() if path[1].startswith('backbone')})


def as_one(variables, *copies: str):
  """Variables of hard sharing, from a trunk and parts of copies that complete it."""
  merged = {}
  for path, leaf in flatten_dict(variables).items():
    if path[1] in ('backbone', *copies):
      merged[(path[0], 'backbone', *path[2:])] = leaf
  return unflatten_dict(merged)


@pytest.fixture(scope='module')
def hard():
  return shared('hard')


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', ['cross_stitch', 'sluice', 'dense'])
def test_identity_units_make_separate_nets(name, train):
  module, variables = init(name, own=1.0)
  found = features(module, variables, train=train)
  assert_same(found, features(shared('separate'), only_nets(variables), train=train))
  assert not np.allclose(found['attributes'], found['landmarks'])


def test_stitches_mix_what_the_nets_give():
  """With one stage there is one unit, and it is a mixture of the separate nets' outputs."""
  stitched, apart = (SHARING[name](Tiny(stages=1), NAMES) for name in ('cross_stitch', 'separate'))
  variables = first_variables(stitched)
  unit = jnp.arange(16.0).reshape(2, 2, 4)
  variables['params']['stitch_0']['unit'] = unit
  found, own = features(stitched, variables), features(apart, only_nets(variables))
  for t, task in enumerate(NAMES):
    np.testing.assert_allclose(found[task], sum(unit[t, u] * own[other] for u, other in enumerate(NAMES)), rtol=1e-5)


def test_rows_of_a_first_unit_sum_to_one():
  np.testing.assert_allclose(own_and_others(4, 0.7), np.full((4, 4), 0.1) + 0.6 * np.eye(4), rtol=1e-6)


def test_masks_of_ones_make_mtan_hard_sharing(hard):
  module, variables = init('mtan')
  flat = flatten_dict(variables)
  masks = [path for path in flat if path[-2] == 'mask_norm' and path[0] == 'params']
  assert len(masks) == 2 * len(NAMES) * 2
  opened = {path: jnp.full_like(flat[path], {'scale': 0.0, 'bias': 100.0}[path[-1]]) for path in masks}
  assert_same(features(module, unflatten_dict(flat | opened)), features(hard, only_nets(variables)))


def test_masks_differ_between_tasks_and_lie_below_one(hard):
  module, variables = init('mtan')
  found, whole = features(module, variables), features(hard, only_nets(variables))
  assert not np.allclose(found['attributes'], found['landmarks'])
  for task in NAMES:
    assert (found[task] <= whole[task]).all()  # Features after a ReLU are at least 0.


@pytest.mark.parametrize('stages', [1, 3])
def test_mmoe_with_one_expert_is_hard_sharing(hard, stages):
  module, variables = init('mmoe', experts=1, expert_stages=stages)
  assert_same(features(module, variables), features(hard, as_one(variables, 'backbone_expert_0')))


def test_mmoe_with_equal_experts_is_hard_sharing_whatever_its_gates(hard):
  module, variables = init('mmoe', experts=3)
  for group in variables.values():
    group |= {f'backbone_expert_{i}': group['backbone_expert_0'] for i in range(3)}
  assert_same(features(module, variables), features(hard, as_one(variables, 'backbone_expert_0')))


def test_a_gate_follows_its_example():
  """Gates are functions of the image: the same expert weights for all of them would be another method."""
  module, variables = init('mmoe')
  parts = {f'backbone_expert_{i}': as_one(variables, f'backbone_expert_{i}') for i in range(4)}
  each = jnp.stack([features(shared('hard'), part)['attributes'] for part in parts.values()], axis=-1)
  found = features(module, variables)['attributes']
  weights = jnp.stack([jnp.linalg.lstsq(each[row], found[row])[0] for row in range(ROWS)])
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-3)
  assert (weights > 0).all()
  assert weights.std(0).max() > 1e-4


def test_a_saturated_selector_takes_one_expert(hard):
  module, variables = init('dselect_k', k=1)
  for task in NAMES:
    variables['params'][f'gate_{task}']['logits'] = jnp.array([[-1.0, 1.0]])  # Bits of 2.
  assert_same(features(module, variables), features(hard, as_one(variables, 'backbone_expert_2')))


def test_selectors_use_at_most_k_experts_and_their_entropy_ends_at_zero():
  codes = jnp.array([[0.7, -0.5, 0.5], [-0.6, -0.9, -0.5]])
  np.testing.assert_array_equal(dselect_k.selections(codes), np.eye(8)[[5, 0]])
  module = shared('dselect_k')
  gates = lambda codes: {'shared': {f'gate_{task}': {'logits': codes} for task in NAMES}}  # noqa: E731
  np.testing.assert_allclose(module.penalty(gates(codes[:, :2])), 0, atol=1e-6)
  np.testing.assert_allclose(module.penalty(gates(jnp.zeros((2, 2)))), 1e-2 * 4 * math.log(4), rtol=1e-4)


def test_the_smooth_step_joins_its_ends_smoothly():
  slope = jax.vmap(jax.grad(dselect_k.smooth_step))(jnp.array([-0.5, -0.499, 0.0, 0.499, 0.5]))
  np.testing.assert_allclose(slope, [0, 0.006, 1.5, 0.006, 0], atol=1e-3)
  np.testing.assert_allclose(dselect_k.smooth_step(jnp.array([-2, -0.5, 0, 0.5, 2.0])), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_cgc_without_a_choice_is_hard_sharing(hard):
  """All experts alike, gates have nothing to choose; likewise in two levels."""
  for name in ('cgc', 'ple'):
    module, variables = init(name, own_experts=2)
    copies = [copy for copy in variables['params'] if copy.startswith('backbone_')]
    assert len(copies) == 2 * len(NAMES) + 1
    for group in variables.values():
      group |= dict.fromkeys(copies, group[copies[0]])
    assert_same(features(module, variables), features(hard, as_one(variables, copies[0])))


def test_a_tasks_own_experts_serve_no_other_task():
  """Changing those of landmarks leaves attributes alone in one level; in two, the shared experts carry it over."""
  for name, carried in (('cgc', False), ('ple', True)):
    module, variables = init(name)
    changed = jax.tree.map(lambda leaf: leaf, variables)
    changed['params']['backbone_landmarks_0'] = jax.tree.map(
      lambda w: 2 * w, variables['params']['backbone_landmarks_0']
    )
    before, after = features(module, variables), features(module, changed)
    assert not np.allclose(before['landmarks'], after['landmarks'])
    assert np.array_equal(before['attributes'], after['attributes']) is not carried


def test_one_branch_is_hard_sharing(hard):
  module, variables = init('branch', branches=1)
  for train in (False, True):
    one = as_one(variables, 'backbone_branch_0')
    assert_same(features(module, variables, train=train), features(hard, one, train=train))


def test_in_evaluation_every_task_follows_one_path(hard):
  module, variables = init('branch')
  choices = {'choices_stage_2': [[1.0, 0], [1, 0]], 'choices_heads': [[0.0, 3], [2, 1]]}  # 1: net 0 then 1. 2: net 0.
  for name, logits in choices.items():
    variables['params'][name]['logits'] = jnp.array(logits)
  found = features(module, variables)
  one, other = (flatten_dict(as_one(variables, f'backbone_branch_{i}')) for i in (0, 1))
  crossing = unflatten_dict({path: (other if path[2].endswith('_2') else one)[path] for path in one})
  np.testing.assert_allclose(found['attributes'], features(hard, crossing)['attributes'], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found['landmarks'], features(hard, unflatten_dict(one))['landmarks'], rtol=1e-5, atol=1e-5)


def test_branches_are_drawn_anew_by_key_and_step():
  """The count of steps decides the temperature, and with it what the same key draws."""
  module, variables = init('branch', temperature=1.0, halving_steps=1)

  @compiled
  def run(key, steps):
    begun = variables | {'batch_stats': variables['batch_stats'] | {'steps': steps}}
    rngs = {'sharing': jax.random.key(key)}
    read, after = module.apply(begun, IMAGES, train=True, mutable=['batch_stats'], rngs=rngs)
    return read['landmarks'].features, after['batch_stats']['steps']

  (first, steps), (second, _), (later, _), (last, _) = run(0, 0.0), run(1, 0.0), run(0, 3.0), run(0, 30.0)
  assert float(steps) == 1
  assert not np.allclose(first, second)
  assert not np.allclose(first, later)
  assert np.isfinite(last).all()


@pytest.mark.parametrize('size', [2, 3])
def test_l2_ties_are_the_squared_distances_of_all_pairs(size):
  weights = np.random.default_rng(0).normal(size=(size, 7))
  expected = sum(((weights[i] - weights[j]) ** 2).sum() for i in range(size) for j in range(i))
  np.testing.assert_allclose(soft.squared_distances(jnp.array(weights, jnp.float32)), expected, rtol=1e-5)


def test_the_trace_norm_and_its_gradient_are_those_of_the_singular_values():
  weights = np.random.default_rng(0).normal(size=(3, 7))
  u, s, v = np.linalg.svd(weights, full_matrices=False)
  value, gradient = jax.value_and_grad(soft.trace_norm)(jnp.array(weights, jnp.float32))
  np.testing.assert_allclose(value, s.sum(), rtol=1e-5)
  np.testing.assert_allclose(gradient, u @ v, atol=1e-4)


@pytest.mark.parametrize('weights', [np.zeros((2, 5)), np.ones((2, 5)), np.eye(2, 5)])
def test_the_trace_norm_is_finite_where_singular_values_vanish_or_coincide(weights):
  value, gradient = jax.value_and_grad(soft.trace_norm)(jnp.array(weights, jnp.float32))
  np.testing.assert_allclose(value, np.linalg.norm(weights, 'nuc'), rtol=2e-3, atol=1e-6)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('tie', soft.TIES)
def test_ties_draw_nets_together_and_bind_nothing_else(tie):
  module, random = shared('soft', tie=tie, strength=1.0), np.random.default_rng(0)
  nets = {f'backbone_{task}': {'conv': jnp.array(random.normal(size=(3, 4)), jnp.float32)} for task in NAMES}
  params = {'shared': nets, 'head_landmarks': jnp.ones(3)}
  value, gradient = jax.value_and_grad(module.penalty)(params)
  assert not gradient['head_landmarks'].any()
  nearer = jax.tree.map(lambda p, g: p - 1e-2 * g, params, gradient)
  assert module.penalty(nearer) < value
  assert 2 * value == pytest.approx(float(shared('soft', tie=tie, strength=2.0).penalty(params)))


def test_equal_nets_are_tied_at_no_cost():
  net = {'conv': jnp.ones((3, 4))}
  assert shared('soft').penalty({'shared': {f'backbone_{task}': net for task in NAMES}}) == 0


def test_the_step_follows_the_penalty_too():
  """A prior alone moves the parameters: no label is there, and plain SGD takes its gradient."""
  model, objective = make_model('soft', strength=0.1), fixed([1.0, 1.0])
  batch = make_batch()
  stats = {t.name: t.stats(batch['labels'][t.name], mask=batch['mask'][t.name], standardize=True) for t in TASKS}
  common = {'model': model, 'tx': optax.sgd(1.0), 'objective': objective, 'ema_decay': 0.0}
  state = compiled(partial(init_state, 0, label_stats=stats, input_shape=(*SIZE, 3), **common))()
  step = compiled(partial(train_step, tasks=TASKS, augmentation=Augmentation(), seed=0, **common))
  after, metrics = step(state, make_batch(attributes=True, landmarks=True))
  params = state.variables['params']
  np.testing.assert_allclose(metrics['loss'], model.penalty(params), rtol=1e-5)
  expected = jax.tree.map(lambda p, g: p - g, params, compiled(jax.grad(model.penalty))(params))
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), after.variables['params'], expected)


def test_the_multilinear_prior_is_the_tensor_normals_quadratic_form():
  tensor = jnp.array(np.random.default_rng(0).normal(size=(4, 3, 2)), jnp.float32)
  inputs, outputs, tasks = (np.linalg.inv(p) for p in multilinear.precisions(tensor))
  flat = np.asarray(tensor).ravel()
  expected = flat @ np.linalg.solve(np.kron(np.kron(inputs, outputs), tasks), flat)
  np.testing.assert_allclose(multilinear.mahalanobis(tensor), expected, rtol=1e-3)
  for covariance in (inputs, outputs, tasks):
    np.testing.assert_allclose(np.trace(covariance) / len(covariance), 1 + multilinear.RIDGE, rtol=1e-4)


def test_the_multilinear_prior_finds_which_tasks_are_related():
  random = np.random.default_rng(0)
  base, other = random.normal(size=(2, 6, 5))
  tensor = np.stack([base, base + 0.3 * other, -base, random.normal(size=(6, 5))], axis=-1)
  covariance = np.linalg.inv(multilinear.precisions(jnp.array(tensor, jnp.float32))[2])
  assert covariance[0, 1] > 0.7
  assert covariance[0, 2] < -0.7
  assert abs(covariance[0, 3]) < 0.5


def test_the_multilinear_prior_needs_layers_in_common():
  module = shared('multilinear')
  heads = {f'head_{t}': {'output': {'kernel': jnp.ones((3, i + 1))}} for i, t in enumerate(NAMES)}
  with pytest.raises(ConfigError, match=r'config\.model\.sharing: multilinear needs heads'):
    module.penalty(heads)


def test_a_mixture_is_by_example_or_for_all():
  parts = [jnp.ones((2, 3)), 2 * jnp.ones((2, 3))]
  np.testing.assert_allclose(mixed(jnp.array([0.25, 0.75]), parts), np.full((2, 3), 1.75))
  np.testing.assert_allclose(mixed(jnp.array([[1.0, 0], [0, 1]]), parts), [[1.0] * 3, [2] * 3])


# Any backbone.


class Tokens(Backbone):
  """Patches of 4x4 as tokens, and one layer on each."""

  @property
  def num_stages(self):
    return 3

  @nn.compact
  def stage(self, x, index, *, train):
    if index == 0:
      x = x.reshape(len(x), 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(len(x), 16, 48)
    return nn.relu(nn.Dense(6, name=f'layer_{index}')(x))

  def pool(self, x):
    return x.mean(1)

  def maps(self, x):
    return x.reshape(len(x), 4, 4, -1)


class Odd(Backbone):
  """Maps of 16, 5 and 1 pixels a side: stages that round down."""

  @property
  def num_stages(self):
    return 3

  @nn.compact
  def stage(self, x, index, *, train):
    return nn.Conv(4, (3, 3), strides=(1, 3, 3)[index], padding='VALID' if index else 'SAME', name=f'conv_{index}')(x)


@pytest.mark.parametrize('backbone', [Tokens(), Odd()], ids=['tokens', 'odd'])
@pytest.mark.parametrize('name', SHARING)
def test_any_backbone_with_stages_will_do(name, backbone):
  module = SHARING[name](backbone, NAMES, spatial=True)
  read, _ = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), IMAGES, train=False))
  for task in NAMES:
    found = read if name in OF_ONE else read[task]
    assert found.features.shape == (ROWS, found.maps.shape[-1])
    assert found.maps.ndim == 4


@pytest.mark.parametrize('name', SHARING)
def test_one_task_alone_can_have_it_and_bfloat16_stays_there(name):
  module = SHARING[name](Tiny(dtype=jnp.bfloat16), ('attributes/Smiling',))
  read, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), IMAGES, train=False))
  found = read if name in OF_ONE else read['attributes/Smiling']
  assert found.features.shape == (ROWS, 8)
  assert found.features.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  assert not any('/' in key for key in variables['params'])


# Options.


def test_options_reach_their_way(tiny_config):
  config = tiny_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.sharing = 'mmoe'
    config.model.sharing_options.experts = 2
  assert multitask.from_config(config.model, TASKS).module.shared.experts == 2


@pytest.mark.parametrize(
  ('name', 'options', 'told'),
  [
    ('mmoe', {'expert': 2}, "config.model.sharing_options of 'mmoe': no choice 'expert'; did you mean 'experts'?"),
    ('mmoe', {'experts': 0}, 'config.model.sharing_options.experts must be '),
    ('mmoe', {'experts': 2.5}, 'config.model.sharing_options.experts must be '),
    ('soft', {'strength': -1.0}, 'config.model.sharing_options.strength must be '),
    ('soft', {'tie': 3}, 'config.model.sharing_options.tie must be '),
    ('hard', {'experts': 2}, 'config.model.sharing_options.experts: '),
  ],
)
def test_wrong_options_are_refused_by_their_field(name, options, told):
  with pytest.raises(ConfigError) as caught:
    check_options(SHARING[name], options, name=name)
  assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
  ('name', 'options', 'told'),
  [
    ('mmoe', {'expert_stages': 4}, r'expert_stages is 4, but the backbone has 3 stages'),
    ('ple', {'levels': 9}, r'levels is 9, but the backbone has 3 stages'),
    ('dselect_k', {'experts': 3}, r'experts must be a power of 2'),
  ],
)
def test_options_that_the_backbone_cannot_serve_are_refused(name, options, told):
  module = shared(name, **options)
  with pytest.raises(ConfigError, match=told):
    jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES, train=False))


def test_an_unknown_tie_is_refused():
  with pytest.raises(ConfigError, match=r"config\.model\.sharing_options\.tie: no choice 'l3'"):
    shared('soft', tie='l3').penalty({})
