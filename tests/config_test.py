"""Configurations load, override, survive JSON, and every mistake names its field."""

import json
from pathlib import Path

import pytest

from mtl_jax import config as configs
from mtl_jax.configs import default
from mtl_jax.errors import ConfigError

FILES = sorted((Path(__file__).parent.parent / 'configs').glob('*.py'))
DEFAULT = next(path for path in FILES if path.stem == 'default')


def refusal(action, *args) -> str:
  """The one line with which an action is refused."""
  with pytest.raises(ConfigError) as caught:
    action(*args)
  message = str(caught.value)
  assert '\n' not in message
  return message


def overridden(*overrides: str):
  return configs.load(DEFAULT, overrides)


def written(tmp_path, body: str) -> Path:
  """A file whose get_config() changes the default `config` by some lines."""
  lines = [
    'from ml_collections import ConfigDict',
    'from mtl_jax.configs import default',
    'def get_config():',
    '  config = default.get_config()',
    *(f'  {line}' for line in body.splitlines()),
    '  return config',
  ]
  path = tmp_path / 'variant.py'
  path.write_text('\n'.join(lines) + '\n')
  return path


def leaves(group, path: str = ''):
  for key, value in group.items():
    if hasattr(value, 'items'):
      yield from leaves(value, f'{path}{key}.')
    else:
      yield f'{path}{key}', value


def get(config, name: str):
  for part in name.split('.'):
    config = config[part]
  return config


@pytest.mark.parametrize('path', [path for path in FILES if path.stem != 'seed_frozen3'], ids=lambda path: path.stem)
def test_every_variant_loads_and_survives_json(path):
  config = configs.load(path)
  assert config.is_locked
  back = configs.from_json(json.loads(json.dumps(configs.to_json(config))))
  assert back.to_dict() == config.to_dict()
  assert [type(value) for _, value in leaves(back)] == [type(value) for _, value in leaves(config)]


@pytest.mark.parametrize(
  ('override', 'value'),
  [
    ('train.steps=12', 12),
    ('optimizer.learning_rate=3', 3.0),
    ('optimizer.learning_rate=1e-4', 1e-4),
    ('data.augment.flip=false', False),
    ('data.augment.flip=1', True),
    ('data.dir=/some/where=else', '/some/where=else'),
    ('data.dir=', ''),
    ('data.attributes=Smiling, Male', ('Smiling', 'Male')),
    ("data.attributes=('Smiling',)", ('Smiling',)),
    ('data.attributes=', ()),
    ('model.trunk_features=64,32', (64.0, 32.0)),
    ('objective.weights.landmarks=0.25', 0.25),
    ('objective.weights.age=2', 2.0),
    ('objective.weights.attributes/Smiling=0', 0.0),
    ('model.heads.landmarks=soft_argmax', 'soft_argmax'),
    ('model.sharing_options.experts=8', 8),
    ('model.sharing_options.strength=1e-3', 1e-3),
    ('model.sharing_options.tie=trace_norm', 'trace_norm'),
    ('objective.options.c=0.5', 0.5),
    ('objective.options.solver_steps=3', 3),
    ('objective.options.normalization=loss+', 'loss+'),
    ('objective.options.leak=0.1, 0.2', (0.1, 0.2)),
    ('objective.options.exact=true', True),
    ('tasks=landmarks', 'landmarks'),
    ("tasks=('attributes', 'landmarks')", 'attributes,landmarks'),
  ],
)
def test_an_override_is_read_as_the_type_of_its_field(override, value):
  found = get(overridden(override), override.split('=')[0])
  assert found == value
  assert type(found) is type(value)


def test_every_field_can_be_overridden_with_its_own_value():
  for name, value in leaves(default.get_config()):
    text = ','.join(value) if isinstance(value, tuple) else str(value)
    assert get(overridden(f'{name}={text}'), name) == value


def test_the_last_override_counts():
  assert overridden('train.steps=3', 'train.steps=5').train.steps == 5


@pytest.mark.parametrize(
  ('override', 'told'),
  [
    ('train.stepz=3', "config.train has no field 'stepz'; did you mean 'steps'?"),
    ('trian.steps=3', "config has no field 'trian'; did you mean 'train'?"),
    ('train.steps.more=3', "config.train.steps is a value and has no field 'more'"),
    ('train=3', 'config.train is a group'),
    ('train.steps', 'config.train.steps has no value; write --config.train.steps=VALUE'),
    ('=3', "config has no field ''"),
    ('train.steps=many', "config.train.steps must be a whole number, not 'many'"),
    ('train.steps=1.5', "config.train.steps must be a whole number, not '1.5'"),
    ('train.steps=', "config.train.steps must be a whole number, not ''"),
    ('optimizer.learning_rate=fast', "config.optimizer.learning_rate must be a number, not 'fast'"),
    ('data.augment.flip=maybe', "config.data.augment.flip must be true or false, not 'maybe'"),
    ('model.stem=smal', "config.model.stem: no choice 'smal'; did you mean 'small'?"),
    ('optimizer.name=rmsprop', "config.optimizer.name: no choice 'rmsprop'; choose from adam, adamw, sgd"),
    ('objective.weights.landmarks=-1', 'config.objective.weights.landmarks must be a finite number'),
    ('objective.weights.landmarks=nan', 'config.objective.weights.landmarks must be a finite number'),
    ('model.sharing_options=3', 'config.model.sharing_options is a group'),
    ('objective.grain=output', "config.objective.grain: no choice 'output'; did you mean 'outputs'?"),
    ('objective.options.=1', "config.objective.options has no field ''"),
    ('objective.weights.=1', "config.objective.weights has no field ''"),
    ('model.norm=layer', "config.model.norm: no choice 'layer'; choose from auto, batch, group, none"),
    ('model.freeze=stage', "config.model.freeze must be empty, backbone, or stageN, such as stage3, not 'stage'"),
    ('model.frozen_statistics=move', "config.model.frozen_statistics: no choice 'move'; choose from fixed, drift"),
    ('model.trunk_features=64,0.5', 'config.model.trunk_features must be whole numbers of at least 1, not 0.5'),
  ],
)
def test_a_wrong_override_is_refused_with_its_field(override, told):
  assert told in refusal(overridden, override)


@pytest.mark.parametrize('name', configs.RANGES)
def test_numbers_out_of_range_are_refused(name):
  least, largest = configs.RANGES[name]
  bad = [least - 1] + ([] if largest is None else [largest + 1])
  if isinstance(get(default.get_config(), name), float):
    bad += ['nan', 'inf', '-inf']
  for value in bad:
    assert refusal(overridden, f'{name}={value}').startswith(f'config.{name} must be ')
  for value in (least, *([] if largest is None else [largest])):
    assert get(overridden(f'{name}={value}'), name) == value


@pytest.mark.parametrize(
  ('body', 'told'),
  [
    ('config.train.stepz = 3', 'Did you mean "steps"'),
    ('config.model = None', 'config.model must be ConfigDict, not NoneType'),
    ('config.tasks = 3', 'config.tasks must be str, not int'),
    ('config.tasks = (1,)', 'config.tasks must hold names in quotes, not (1,)'),
    ('config.data.attributes = (1, 2)', 'config.data.attributes must hold names in quotes, not (1, 2)'),
    ('config.unlock(); config.extra = 3', "config has no field 'extra'"),
    ('config.unlock(); del config.train.steps', 'config.train.steps is missing'),
    ('config.objective.options = ConfigDict({"c": None})', 'config.objective.options.c must be'),
    ('config.objective.weights = {"attributes": "x"}', 'config.objective.weights.attributes must be float, not str'),
    ('raise RuntimeError("one\\ntwo")', 'variant.py failed: RuntimeError: one two'),
    ('raise SystemExit(3)', 'variant.py failed: SystemExit: 3'),
    ('return {}', 'gave dict, not a ConfigDict'),
    ('x = (', 'variant.py failed: SyntaxError'),
  ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, body, told):
  assert told in refusal(configs.load, written(tmp_path, body))


def test_files_that_are_no_configuration_are_refused(tmp_path):
  assert 'no file' in refusal(configs.load, tmp_path / 'missing.py')
  assert 'no file' in refusal(configs.load, tmp_path)
  (tmp_path / 'notes.txt').write_text('config')
  assert 'is no Python file' in refusal(configs.load, tmp_path / 'notes.txt')
  (tmp_path / 'empty.py').write_text('')
  assert 'get_config' in refusal(configs.load, tmp_path / 'empty.py')


def test_tasks_may_be_a_tuple_and_are_the_same_run_as_the_string(tmp_path):
  config = configs.load(written(tmp_path, "config.tasks = ('attributes', 'landmarks')"))
  assert configs.to_json(config) == configs.to_json(configs.load(DEFAULT))


def test_weights_need_not_list_every_task(tmp_path):
  config = configs.load(written(tmp_path, 'config.objective.weights = ConfigDict({"age": 2})'))
  assert config.objective.weights.to_dict() == {'age': 2}


def test_a_whole_number_serves_as_a_float(tmp_path):
  assert configs.load(written(tmp_path, 'config.optimizer.learning_rate = 1')).optimizer.learning_rate == 1.0


def test_loading_leaves_no_trace_in_the_search_path(tmp_path):
  import sys

  before = list(sys.path)
  refusal(configs.load, written(tmp_path, 'raise RuntimeError'))
  configs.load(DEFAULT)
  assert sys.path == before


@pytest.mark.parametrize('spoil', [{'extra': 1}, {'train': {}}, {'tasks': 3}])
def test_spoilt_json_is_refused(spoil):
  refusal(configs.from_json, configs.to_json(default.get_config()) | spoil)


def test_differences_name_each_field_that_changed():
  old, new = default.get_config(), overridden('train.steps=5', 'tasks=landmarks', 'objective.weights.age=2')
  found = list(configs.differences(configs.to_json(old), configs.to_json(new)))
  assert found == [
    'config.objective.weights.age: 1.0 -> 2.0',
    "config.tasks: 'attributes,landmarks' -> 'landmarks'",
    'config.train.steps: 10000 -> 5',
  ]
  assert not list(configs.differences(configs.to_json(old), configs.to_json(old)))
