"""The search space: values as they are written, points of the unit cube, grids, and what matters to a program."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax import config as configs
from mtl_jax.config import with_fields
from mtl_jax.configs import default
from mtl_jax.errors import ConfigError
from mtl_jax.studies import arms, space
from mtl_jax.studies.arms import RATE, Replica

WEIGHTS = ('objective.weights.a', 'objective.weights.b', 'objective.weights.c')


@pytest.mark.parametrize(
  ('field', 'text', 'values'),
  [
    (RATE, '1e-3,3e-3', [1e-3, 3e-3]),
    (RATE, 'log(1e-4, 1e-2, 3)', [1e-4, 1e-3, 1e-2]),
    ('optimizer.weight_decay', 'range(0,1,5)', [0, 0.25, 0.5, 0.75, 1]),
    ('train.batch_size', 'range(8, 64, 3)', [8, 36, 64]),
    ('model.trunk_features', '(64),(64,32)', [(64.0,), (64.0, 32.0)]),
    ('objective.name', 'fixed, uncertainty', ['fixed', 'uncertainty']),
    ('objective.options.c', '0.1,0.4', [0.1, 0.4]),
    ('objective.matching.relevance', 'true,false', [True, False]),
  ],
)
def test_a_grid_has_the_values_that_are_written(field, text, values):
  assert space.read_axis(field, text, where='config.study.grid').grid(where='config.study.grid') == values


@pytest.mark.parametrize(
  ('field', 'text', 'message'),
  [
    (RATE, 'log(0,1)', 'is no span'),
    (RATE, 'log(1e-2,1e-3)', 'is no span'),
    (RATE, 'range(a,b)', 'is no span'),
    (RATE, 'range(1e-3,1e-2', r'is no span; write range\(A, B\)'),
    ('tasks', 'landmarks,age', 'must be the same for all'),
    ('eval.patience', '1,2', 'changes no result'),
    (RATE, '-1', 'must be a finite number'),
    ('train.batch_size', 'range(0,8)', 'must be a whole number'),
    ('train.seed', '1,2', 'must be the same for all'),
    ('data.dir', 'a,b', 'must be the same for all'),
  ],
)
def test_values_that_cannot_be_name_the_field(field, text, message):
  with pytest.raises(ConfigError, match=rf'config\.study\.grid\.{field}.*{message}'):
    space.read_axis(field, text, where='config.study.grid')


def test_a_grid_of_a_span_needs_a_number_of_points():
  with pytest.raises(ConfigError, match=r'config\.study\.grid\.optimizer\.learning_rate: a grid needs'):
    space.of_fields({'optimizer': {'learning_rate': 'log(1e-4,1e-2)'}}, where='config.study.grid').grid()


@pytest.mark.parametrize(
  ('field', 'text', 'value', 'end'),
  [
    (RATE, '1e-3,1e-2,1e-1', 1e-1, True),
    (RATE, '1e-3,1e-2,1e-1', 1e-2, False),
    (RATE, '1e-2', 1e-2, False),
    (RATE, 'log(1e-4,1e-2)', 1.1e-4, True),
    (RATE, 'log(1e-4,1e-2)', 3e-4, False),
    ('optimizer.weight_decay', 'range(0,1)', 0.99, True),
    ('optimizer.weight_decay', '0,0.1', 0.0, False),  # There is none below.
    ('objective.name', 'fixed,cagrad', 'fixed', False),
  ],
)
def test_only_what_could_be_wider_has_an_end(field, text, value, end):
  found = space.of_fields({field: text}, where='config.sweep.space', weights_of=('a', 'b'))
  assert found.ends({field: value, **found.weights([0.0, 1.0])}) == [field] * end


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_a_few_points_cover_every_value(sizes):
  fields = ('optimizer.momentum', 'optimizer.weight_decay', RATE)
  texts = {field: ','.join(f'0.{i}' for i in range(1, size + 1)) for field, size in zip(fields, sizes, strict=False)}
  found = space.of_fields(texts | {'optimizer.clip_norm': 'range(1,2)'}, where='config.sweep.space')
  points = found.covering()
  assert len(points) == max(*sizes, 2)
  for axis in found.axes:
    assert {point[axis.field] for point in points} == set(axis.choices or (1.0, 2.0))


@given(point=st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_any_point_of_the_cube_has_values_within_and_weights_of_1_on_average(point):
  axis = space.read_axis(RATE, 'log(1e-4,1e-2)', where='config.sweep.space')
  found = space.Space((axis,), weights_of=('a', 'b', 'c')).at(point)
  assert 1e-4 <= found[RATE] <= 1e-2
  assert all(found[name] > 0 for name in WEIGHTS)
  assert sum(found[name] for name in WEIGHTS) == pytest.approx(3, rel=2e-3)


def test_a_grid_of_weights_is_a_lattice_of_the_simplex():
  found = space.Space((), weights_of=('a', 'b', 'c'), weight_steps=6).grid()
  assert len(found) == 10  # 5 over 2.
  assert {0.5: 1, 1.0: 1, 2.0: 1}.keys() == {value for one in found for value in one.values()} - {1.5}
  assert all(sum(one.values()) == pytest.approx(3) for one in found)


def config_of(*overrides):
  return configs.load('default', overrides)


def test_a_studys_grid_combines_with_its_learning_rates():
  config = config_of('study.learning_rates=1e-3,1e-2', 'study.grid.optimizer.weight_decay=0,0.1')
  assert len(arms.grid(config)) == 4
  assert arms.grid(config_of()) == [{RATE: config_of().optimizer.learning_rate}]


def test_a_program_is_tried_only_with_what_matters_to_it():
  fields = ('study.grid.objective.matching.distribution=0.1,1', 'study.grid.objective.options.c=0.1,0.4')
  assert len(arms.grid(config_of(*fields))) == 1
  assert len(arms.grid(config_of(*fields, 'objective.matching.distribution=1'))) == 2
  assert len(arms.grid(config_of(*fields, 'objective.matching.soft_co_annotation=1'))) == 1
  assert len(arms.grid(config_of(*fields, 'objective.name=cagrad'))) == 2
  weights = 'study.grid.objective.weights.landmarks=1,10'
  assert [len(arms.grid(config_of(weights, f'tasks={tasks}'))) for tasks in ('landmarks', 'age,landmarks')] == [1, 2]


def test_numbers_of_a_step_are_arguments_and_what_changes_it_is_not():
  values = {RATE: 1e-3, 'optimizer.weight_decay': 0.0, 'train.batch_size': 8, 'objective.weights.landmarks': 2.0}
  replica = Replica.of(3, values)
  config = config_of('objective.name=cagrad')
  assert set(space.arguments(dict(replica.values), config)) == {RATE, 'objective.weights.landmarks'}
  assert space.arguments({'objective.options.c': 0.1}, config) == ('objective.options.c',)
  assert space.arguments({'objective.options.groups': 1}, config_of('objective.name=go4align')) == ()
  assert replica.config(with_fields(default.get_config().lock(), train__steps=7)).train.batch_size == 8


def test_grids_read_back_from_json():
  config = config_of('study.grid.objective.matching.distribution=0.1,0.3')
  assert configs.from_json(configs.to_json(config)) == config
  with pytest.raises(ConfigError, match=r"config\.study\.grid\.objective has no field 'matchng'"):
    config_of('study.grid.objective.matchng.distribution=1')
