"""Configurations load, override, survive JSON, and every mistake names its field."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax import kinds
from mtl_jax.cli import main
from mtl_jax.config import FIELDS, describe
from mtl_jax.config.fields import Field
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
  for part in filter(None, name.split('.')):
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
    ('data.dirs=/a [1],/b(2)', ('/a [1]', '/b(2)')),
    ('data.dirs=[/a,/b]', ('/a', '/b')),
    ('data.dirs="/a, b","/c [1]"', ('/a, b', '/c [1]')),
    ('data.dirs=["/a, b", "/c [1]"]', ('/a, b', '/c [1]')),
    ("data.dirs=('/c (1)',)", ('/c (1)',)),
    ('data.dirs=[1]/a,/b[2]', ('[1]/a', '/b[2]')),
    ("data.dirs=('/a, b', '/c')", ('/a, b', '/c')),
    ("data.dirs=it's,/b", ("it's", '/b')),
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


@pytest.mark.parametrize(
  'overrides',
  [
    'model.heads.landmarks=linear',
    ['--config.model.heads.landmarks=linear'],
    {'config.model.heads.landmarks': 'linear'},
    {'model.heads': {'landmarks': 'linear'}},
    {'model': {'heads': {'landmarks': 'linear'}}},
    {'model': ConfigDict({'heads': {'landmarks': 'linear'}})},
  ],
)
def test_overrides_may_be_one_text_and_groups_and_written_as_on_the_command_line(overrides):
  assert configs.load(DEFAULT, overrides).to_dict() == overridden('model.heads.landmarks=linear').to_dict()


@pytest.mark.parametrize(
  ('overrides', 'field', 'hint'),
  [
    ({'train': {'stebs': 3}}, 'config.train ', "'steps'"),
    ({'train': {}}, 'config.train ', 'steps'),
    ({'train.steps': {'more': 3}}, 'config.train.steps ', "'more'"),
    ('train.steps', 'config.train.steps ', '--config.train.steps=VALUE'),
    ([('train.steps', 3)], 'overrides ', 'a.b=value'),
    (3, 'overrides ', 'a.b=value'),
  ],
)
def test_a_wrong_override_in_another_form_is_refused_alike(overrides, field, hint):
  told = refusal(configs.load, DEFAULT, overrides)
  assert told.startswith(field)
  assert hint in told


@pytest.mark.parametrize(
  ('name', 'value', 'kept'),
  [
    ('optimizer.learning_rate', np.float64(1e-3), 1e-3),
    ('optimizer.learning_rate', np.float32(0.5), 0.5),
    ('train.steps', np.int64(3), 3),
    ('study.learning_rates', np.array([0.5, 1.0]), (0.5, 1.0)),
    ('data.dir', Path('data/faces'), 'data/faces'),
    ('data.dirs', [Path('a'), 'b'], ('a', 'b')),
    ('data.augment.flip', np.bool_(False), False),
  ],
)
def test_numbers_of_numpy_and_paths_are_values_too(name, value, kept):
  config = configs.load(DEFAULT, {name: value})
  assert get(config, name) == kept
  assert type(get(config, name)) is type(kept)
  json.dumps(configs.to_json(config))


@pytest.mark.parametrize('source', [None, {'train.steps': 3}])
def test_what_is_no_configuration_is_refused(source):
  assert refusal(configs.load, source).startswith('--config ')


def test_the_last_override_counts():
  assert overridden('train.steps=3', 'train.steps=5').train.steps == 5


@pytest.mark.parametrize(
  ('override', 'field', 'hint'),
  [
    ('train.stepz=3', 'config.train ', "'steps'"),
    ('trian.steps=3', 'config ', "'train'"),
    ('train.steps.more=3', 'config.train.steps ', "'more'"),
    ('train=3', 'config.train ', 'steps, batch_size'),
    ('train.steps', 'config.train.steps ', '--config.train.steps=VALUE'),
    ('=3', 'config ', 'tasks'),
    ('train.steps=many', 'config.train.steps ', "'many'"),
    ('train.steps=1.5', 'config.train.steps ', "'1.5'"),
    ('train.steps=', 'config.train.steps ', "''"),
    ('train.batch_size=1' + 400 * '0', 'config.train.batch_size ', '2147483647'),
    ('optimizer.learning_rate=fast', 'config.optimizer.learning_rate ', "'fast'"),
    ('data.augment.flip=maybe', 'config.data.augment.flip ', 'true or false'),
    ('model.stem=smal', 'config.model.stem: ', "'small'"),
    ('optimizer.schedule=linear', 'config.optimizer.schedule: ', 'cosine'),
    ('objective.weights.landmarks=-1', 'config.objective.weights.landmarks ', 'at least 0'),
    ('objective.weights.landmarks=nan', 'config.objective.weights.landmarks ', 'nan'),
    ('objective.options.=1', 'config.objective.options ', "''"),
    ('objective.weights.=1', 'config.objective.weights ', "''"),
    ('objective.weights.age.more=1', 'config.objective.weights.age ', "'more'"),
    ('model.sharing_options=3', 'config.model.sharing_options ', 'model.sharing_options.NAME'),
    ('model.freeze=stage', 'config.model.freeze ', 'stage3'),
    ('model.trunk_features=64,0.5', 'config.model.trunk_features ', '0.5'),
    ('model.trunk_features=64,1.5', 'config.model.trunk_features ', '1.5'),
    ('study.learning_rates=0.1,0', 'config.study.learning_rates ', 'above 0'),
    ('data.weights=inf', 'config.data.weights ', 'inf'),
  ],
)
def test_a_wrong_override_is_refused_with_its_field_and_what_is_allowed(override, field, hint):
  told = refusal(overridden, override)
  assert told.startswith(field)
  assert hint in told


def numbers() -> list[str]:
  return [name for name, field in FIELDS.items() if type(field.default) in (int, float)]


@pytest.mark.parametrize('name', numbers())
def test_every_number_has_a_range_and_is_refused_out_of_it(name):
  least, most = FIELDS[name].kind.bounds
  assert least > -math.inf
  beyond = [least - 1, *([most + 1] if most < math.inf else []), 'nan', 'inf', '-inf']
  for value in beyond:
    assert refusal(overridden, f'{name}={value}').startswith(f'config.{name} must be ')
  for value in (least, *([most] if most < math.inf else [])):
    assert get(overridden(f'{name}={value}'), name) == value


@pytest.mark.parametrize('kind', [kinds.TEXT, kinds.FLAG, kinds.NAMES, kinds.choice('a', 'b')])
def test_a_number_cannot_be_declared_without_a_range(kind):
  with pytest.raises(ConfigError, match='config_test'):
    Field('config_test', 3, kind, 'A number.')


@pytest.mark.parametrize(
  'name', [name for name, field in FIELDS.items() if isinstance(field.kind, kinds.Kind) and field.kind.choices]
)
def test_every_choice_can_be_taken_and_nothing_else(name):
  for value in FIELDS[name].kind.choices:
    assert get(overridden(f'{name}={value}'), name) == value
  assert refusal(overridden, f'{name}=neither').startswith(f'config.{name}: ')


@pytest.mark.parametrize('name', FIELDS)
def test_no_field_may_be_none(name):
  spoilt = configs.to_json(default.get_config())
  *groups, leaf = name.split('.')
  get(spoilt, '.'.join(groups))[leaf] = None
  assert f'config.{name} ' in refusal(configs.from_json, spoilt)


def test_a_field_that_is_newer_than_the_file_takes_its_default():
  old = configs.to_json(default.get_config())
  del old['affinity'], old['train']['accumulate'], old['objective']['matching']
  assert configs.from_json(old).to_dict() == default.get_config().to_dict()


def test_the_page_of_all_fields_is_that_of_the_declaration():
  page = Path(__file__).parent.parent / 'docs' / 'config.md'
  assert page.read_text() == describe.markdown(), 'python -m mtl_jax.config.describe > docs/config.md'


def test_help_shows_every_field_with_its_default(capsys):
  with pytest.raises(SystemExit) as ended:
    main(['train', '--help'])
  assert ended.value.code == 0
  shown = capsys.readouterr().out
  for name, value in leaves(default.get_config()):
    if not name.startswith('objective.weights.'):
      text = ','.join(value) if isinstance(value, tuple) else value
      assert f'--config.{name}={text}  (' in shown


@pytest.mark.parametrize(
  ('body', 'told'),
  [
    ('config.train.stepz = 3', 'Did you mean "steps"'),
    ('config.model = None', 'config.model must be a group'),
    ('config.tasks = 3', 'config.tasks must be '),
    ('config.train.steps = 10**6000', 'config.train.steps must be '),
    ('config.tasks = (1,)', 'config.tasks must be '),
    ('config.data.attributes = (1, 2)', 'config.data.attributes must be '),
    ('config.unlock(); config.extra = 3', "config has no field 'extra'"),
    ('config.unlock(); del config.train.steps', 'config.train.steps is missing'),
    ('config.objective.options = ConfigDict({"c": None})', 'config.objective.options.c must be '),
    ('config.objective.weights = {"attributes": "x"}', 'config.objective.weights.attributes must be '),
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


def test_tasks_may_be_a_tuple_or_a_list_in_overrides():
  for tasks in (('attributes', 'landmarks'), ['attributes', 'landmarks']):
    assert configs.load('default', {'tasks': tasks}).tasks == 'attributes,landmarks'


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
  assert (
    list(configs.differences(configs.to_json(old), configs.to_json(new), ignore=('tasks', 'train.steps'))) == found[:1]
  )
  assert found == [
    'config.objective.weights.age: 1.0 -> 2.0',
    "config.tasks: 'attributes,landmarks' -> 'landmarks'",
    'config.train.steps: 10000 -> 5',
  ]
  assert not list(configs.differences(configs.to_json(old), configs.to_json(old)))


def test_any_field_of_a_group_that_may_differ_on_resuming_may_come_go_and_change():
  one, other = (
    overridden('sweep.space.optimizer.momentum=0,1'),
    overridden('study.grid.model.head=mlp', 'sweep.gains.a=2'),
  )
  for old, new in ((one, other), (other, one)):
    assert not list(configs.differences(configs.to_json(old), configs.to_json(new), ignore=configs.RESUMABLE))


@pytest.mark.parametrize('name', configs.presets())
def test_a_preset_is_loaded_by_its_name_and_is_what_its_file_gives(name):
  assert configs.load(name).to_dict() == configs.load(FILES[0].parent / f'{name}.py').to_dict()


def test_an_unknown_preset_is_told_with_the_nearest():
  assert "did you mean 'celeba_joint'" in refusal(configs.load, 'celeba_jont')


def test_values_from_python_are_checked_and_converted_as_overrides_are_and_the_source_stays():
  source = default.get_config()
  config = configs.load(
    source, {'train.steps': 7, 'data.dirs': ['a', 'b'], 'optimizer.learning_rate': 1, 'tasks': 'age'}
  )
  assert (config.train.steps, config.data.dirs, config.optimizer.learning_rate) == (7, ('a', 'b'), 1.0)
  assert source.train.steps == 10_000
  for name, value in {'train.steps': -4, 'optimizer.schedule': 'lyon', 'train': 1}.items():
    assert f'config.{name}' in refusal(configs.load, source, {name: value})


@pytest.mark.parametrize('value', ['9' * 6000, '-' + '9' * 6000, '1e999', '[' * 5000])
@pytest.mark.parametrize('field', ['train.steps', 'optimizer.learning_rate', 'data.weights', 'model.stem', 'nothing'])
def test_a_monstrous_value_is_refused_in_a_short_line_that_names_the_field(field, value):
  with pytest.raises(ConfigError, match=f'config.*{field.rpartition(".")[2]}') as caught:
    configs.apply_override(default.get_config(), f'{field}={value}')
  assert len(str(caught.value).splitlines()) == 1
  assert len(str(caught.value)) < 1000
