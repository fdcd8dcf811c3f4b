"""Parts of the user's own, each in a file: trained, resumed, evaluated, exported, and never run unasked."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from PIL import Image

import mtl_jax
from mtl_jax import cli, tasks
from mtl_jax.config import parts
from mtl_jax.errors import UserError
from mtl_jax.objectives import options
from mtl_jax.run import own_parts, recipe, workdir

PAGE = (Path(__file__).parents[1] / 'docs' / 'own_parts.md').read_text()
CODE = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
WRAPPED = CODE.pop(1)
FIELDS = ('model.backbone', 'model.head', 'model.sharing', 'objective.name', 'optimizer.name', 'plugins')
NAMES = ('Net', 'Head', 'Sharing', 'balance', 'rule', 'CountTask')
READER = """
import io

import jax.numpy as jnp
import numpy as np
from CountTask import CountTask
from PIL import Image

from mtl_jax.data.source import Record
from mtl_jax.tasks import BinaryTask


class Squares:
  name = 'squares'
  tasks = (CountTask('squares', ('squares',)), BinaryTask('any', ('Any',)))

  def records(self):
    for number in range(48):
      pixels, count, content = np.zeros((16, 16, 3), np.uint8), number % 4, io.BytesIO()
      for i in range(count):
        pixels[4 * i : 4 * i + 3, 4 : 8] = 255
      Image.fromarray(pixels).save(content, 'png')
      labels = {'squares': [count], 'any': [count > 0]}
      yield Record(f'{number}.png', ('train', 'val', 'test')[number % 3], content.getvalue, labels)


open_source = Squares
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def trained(faces, folder, fields=FIELDS) -> tuple[dict, mtl_jax.Run]:
  """A run of four steps whose parts are those of the page, in files of `folder`."""
  overrides: dict = {'train.steps': 4, 'model.width': 4, 'eval.every_steps': 4}
  for field, name, code in zip(FIELDS, NAMES, CODE, strict=True):
    if field in fields:
      (folder / f'{name}.py').write_text(code)
      overrides[field] = f'{folder / name}.py:{name}'
  if 'plugins' in overrides:
    overrides |= {'tasks': 'all', 'plugins': (str(folder / 'CountTask.py'),)}
  return overrides, mtl_jax.train(small_runs.make_config(faces), folder / 'run', overrides=overrides)


@pytest.fixture
def squares(tmp_path):
  """A prepared set that counts something; its reader imports the kind of task from beside it."""
  (tmp_path / 'CountTask.py').write_text(CODE[-1])
  (tmp_path / 'reader.py').write_text(READER)
  return mtl_jax.prepare(tmp_path / 'reader.py', out=tmp_path / 'squares', image_size=(16, 16))


def test_every_part_of_the_page_is_under_40_lines():
  assert len(CODE) == len(FIELDS)
  assert all(len(code.splitlines()) < 40 for code in CODE)


def test_parts_in_files_train_resume_evaluate_predict_and_export_without_the_files(squares, tmp_path):
  fields, run = trained(squares, tmp_path)
  assert run.step == 4
  found = run.evaluate(split='val')
  assert found['tasks']['squares']['count_mae'] < 5
  more = mtl_jax.train(
    small_runs.make_config(squares), run.workdir, overrides=fields | {'train.steps': 6}, allow_config_change=True
  )
  assert more.step == 6
  for file in tmp_path.glob('*.py'):
    file.unlink()
  assert mtl_jax.evaluate(run.workdir, split='val', step=4)['tasks'] == found['tasks']
  model = run.load()
  assert set(model.variables['params']['shared']['backbone']) == {'conv0', 'conv1'}
  assert model.predict(np.zeros((2, *model.image_size, 3), np.uint8))[0]['squares']['squares'] > 0
  assert (mtl_jax.export(run.workdir, tmp_path / 'out') / 'model.stablehlo').exists()
  run.evaluate()
  assert 'share of exact counts' in mtl_jax.report(run.workdir).read_text()


@pytest.mark.parametrize('name', ['equal_lengths', 'median'])
def test_the_other_objectives_of_the_page_leave_absent_losses_out(tmp_path, name):
  (tmp_path / 'own.py').write_text(CODE[FIELDS.index('objective.name')])
  config = mtl_jax.get_config(overrides={'objective.name': f'{tmp_path / "own.py"}:{name}'})
  objective = options.from_config(config.objective, ['a', 'b', 'c'])
  rows, present = jnp.float32([[3, 0], [0, 4], [jnp.nan] * 2]), [True, True, False]
  found, _ = objective.update(rows, objective.init(3, rows[0]), losses=jnp.ones(3), present=present)
  np.testing.assert_allclose(found, {'equal_lengths': [1, 1], 'median': [1.5, 2]}[name], rtol=1e-6)


def test_a_study_tests_a_kind_of_task_of_its_own_by_its_main_metric(squares, tmp_path):
  overrides = {
    'tasks': 'all', 'plugins': (str(tmp_path / 'CountTask.py'),), 'train.steps': 2, 'optimizer.warmup_steps': 1,
    'eval.every_steps': 2, 'study.num_seeds': 1, 'study.learning_rates': (),
  }  # fmt: skip
  found = mtl_jax.study(small_runs.make_config(squares), tmp_path / 'study', overrides=overrides)
  assert found['tasks']['squares']['count_mae']['main']
  assert 'mean absolute error of counts' in (tmp_path / 'study' / 'report.html').read_text()


def test_a_set_of_a_kind_of_its_own_is_learned_only_with_the_plugin_also_where_it_was_not_prepared(
  squares, tmp_path, monkeypatch
):
  without = small_runs.make_config(squares, tasks='any')
  with_it = small_runs.make_config(squares, tasks='any', plugins=(str(tmp_path / 'CountTask.py'),))
  with pytest.raises(UserError, match=r"'squares' is of kind 'tally'.*--config\.plugins=FILE"):
    workdir.opened(without)
  monkeypatch.delitem(tasks.KINDS, 'tally')  # As in another process.
  with pytest.raises(UserError, match=r"schema\.json: unknown kind of task 'tally'.*--config\.plugins=FILE"):
    workdir.opened(without)
  assert [task.name for task in workdir.opened(with_it)[1].tasks] == ['squares', 'any']


def test_code_from_elsewhere_runs_only_when_it_is_allowed_and_is_then_known(faces, tmp_path, monkeypatch, capsys):
  _, run = trained(faces, tmp_path, ['model.head'])
  Image.new('RGB', (16, 16)).save(tmp_path / 'face.png')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'another'))
  monkeypatch.setattr(own_parts, '_NOTED', set())
  command = ['predict', '--workdir', str(run.workdir), str(tmp_path / 'face.png')]
  assert cli.main(command) == 2
  assert '--allow_code' in capsys.readouterr().err
  assert cli.main([*command, '--allow_code']) == 0
  assert cli.main(command) == 0


def test_a_kept_file_that_was_changed_or_lost_is_refused(faces, tmp_path):
  _, run = trained(faces, tmp_path, ['model.head'])
  (kept,) = (run.workdir / 'parts').iterdir()
  kept.write_text(kept.read_text() + '# more\n')
  with pytest.raises(UserError, match=kept.name):
    run.load()
  kept.unlink()
  with pytest.raises(UserError, match=kept.name):
    mtl_jax.load(run.workdir, allow_code=True)


def test_a_workdir_cannot_name_files_outside_of_it(faces, tmp_path):
  _, run = trained(faces, tmp_path, ['model.head'])
  outside = tmp_path / 'outside.py'
  outside.write_text('raise SystemExit("ran")')
  listed = run.workdir / 'parts.json'
  (kept,) = (run.workdir / 'parts').iterdir()
  listed.write_text(listed.read_text().replace(kept.name, '../../outside.py'))
  with pytest.raises(UserError, match=r'outside\.py'):
    mtl_jax.load(run.workdir, allow_code=True)


def test_a_run_is_not_resumed_with_another_file_under_the_same_name(faces, tmp_path):
  fields, run = trained(faces, tmp_path, ['model.head'])
  (tmp_path / 'Head.py').write_text(CODE[1].replace('tanh', 'relu'))
  with pytest.raises(UserError, match=r'config\.model\.head: .*Head\.py'):
    mtl_jax.train(small_runs.make_config(faces), run.workdir, overrides=fields)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model.backbone', 'builtins:dict'),
    ('model.backbone', 'missing.py:Net'),
    ('model.head', 'builtins:dict'),
    ('model.sharing', 'builtins:dict'),
    ('objective.name', 'os.path:join'),
    ('model.head', 'no.such.module:Net'),
    ('model.heads.landmarks', 'missing.py:Net'),
    ('plugins', ('missing.py',)),
    ('plugins', ('builtins:dict',)),
    ('plugins', ('mtl_jax.errors',)),
    ('plugins', ('mtl_jax.tasks.task:Task',)),
  ],
)
def test_what_is_no_such_part_is_refused_with_its_field(faces, tmp_path, field, value):
  with pytest.raises(UserError, match=f'config.{field}'):
    mtl_jax.train(small_runs.make_config(faces), tmp_path / 'run', overrides={field: value})


def test_a_function_that_cannot_take_the_precision_is_refused_with_its_field(faces, tmp_path):
  (tmp_path / 'net.py').write_text(CODE[0] + '\n\ndef small():\n  return Net(width=4)\n')
  fields = {'model.backbone': f'{tmp_path / "net.py"}:small', 'model.width': 0}
  with pytest.raises(UserError, match=r'config\.model\.backbone: .*small failed: TypeError.*dtype'):
    mtl_jax.train(small_runs.make_config(faces), tmp_path / 'run', overrides=fields)


# Shapes, which are checked before anything is computed.

BINARY = (tasks.BinaryTask('look', ('red', 'round')), tasks.LandmarkTask('centre', ('middle_x', 'middle_y')))
PARTS = """
import flax.linen as nn

from mtl_jax.models import heads
from mtl_jax.models.backbone import Backbone
from mtl_jax.models.sharing.hard import Hard


def conv(index):
  return nn.Conv(4, (3, 3), strides=2, name=f'conv{index}')


class Net(Backbone):
  num_stages = 2

  @nn.compact
  def stage(self, x, index, *, train):
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(conv(index)(x)))
    return nn.BatchNorm(use_running_average=not train, name=f'norm{index}')(x)


def small(dtype):
  return Net(dtype=dtype)


class Flat(Net):
  num_stages = 1

  @nn.compact
  def stage(self, x, index, *, train):
    return nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))


class SharedNorm(Net):
  @nn.compact
  def stage(self, x, index, *, train):
    return nn.BatchNorm(use_running_average=not train)(conv(index)(x))


class Unnamed(Net):
  @nn.compact
  def stage(self, x, index, *, train):
    return nn.Conv(4 + index, (3, 3))(x)


class NoTrain(Net):
  @nn.compact
  def stage(self, x, index):
    return x


class NoPool(Net):
  def pool(self, x):
    return x


class Call(Backbone):
  num_stages = 1

  def __call__(self, x, *, train):
    return x


class Uncounted(Backbone):
  pass


class Three(heads.Head):
  @nn.compact
  def __call__(self, representation):
    return nn.Dense(3)(representation.features)


class Squeezed(heads.Head):
  @nn.compact
  def __call__(self, representation):
    return nn.Dense(1)(representation.features)[:, 0]


class OfArray(heads.Head):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.outputs)(x)


class Dropping(heads.Head):
  @nn.compact
  def __call__(self, representation):
    return nn.Dense(self.outputs)(nn.Dropout(0.5, deterministic=False)(representation.features))


class AlwaysDropping(Net):
  @nn.compact
  def stage(self, x, index, *, train):
    return nn.Dropout(0.5, deterministic=False)(x)


class Several(Hard):
  names: tuple = ()


class Bare(Hard):
  flag: bool = True

  def __call__(self, images, *, train):
    return self.backbone(images, train=train)
"""


@pytest.fixture
def state_maker(tmp_path):
  """`state_maker({'model.head': 'Three'})`: the state of a network with parts of `parts.py`, by field."""
  (tmp_path / 'parts.py').write_text(PARTS)
  (tmp_path / 'cnn.py').write_text(WRAPPED)

  def make(names, chosen=BINARY):
    own = {
      field: f'{tmp_path}/{"cnn" if name == "Wrapped" else "parts"}.py:{name}' if name[0].isupper() else name
      for field, name in names.items()
    }
    config = mtl_jax.get_config(small_runs.make_config(tmp_path, **{'model.width': 0}), own)
    made = recipe.from_config(config, chosen)
    stats = {task.name: task.empty_stats() for task in chosen}
    return made.model, recipe.state_maker(made, config, chosen, label_stats=stats, image_size=(16, 16))

  return make


@pytest.mark.parametrize(
  ('field', 'name', 'said'),
  [
    ('backbone', 'SharedNorm', 'stages 0 and 1 .*BatchNorm_0'),
    ('backbone', 'Unnamed', 'stages 0 and 1 .*Conv_0'),
    ('backbone', 'NoTrain', "TypeError: .*'train'"),
    ('backbone', 'NoPool', r'\(b, 4, 4, 4\), not \(b, f\)'),
    ('backbone', 'Call', r'no method stage\(self, x, index, \*, train\)'),
    ('backbone', 'Uncounted', 'num_stages'),
    ('head', 'Three', r'\(b, 3\), not \(b, 2\)'),
    ('heads.centre', 'Squeezed', r'\(b,\), not \(b, 2\)'),
    ('backbone', 'AlwaysDropping', 'InvalidRngError'),
    ('head', 'Dropping', 'InvalidRngError'),
    ('sharing', 'Several', 'names needs a default'),
    ('sharing', 'Bare', r'\(b, \d+\), not a Representation'),
    ('head', 'OfArray', r'; a head reads representation\.features'),
  ],
)
def test_a_part_of_the_wrong_shape_is_one_line_before_the_first_step(state_maker, field, name, said):
  with pytest.raises(UserError, match=rf'^config\.model\.{field}: .*parts\.py:{name}.*{said}') as caught:
    state_maker({f'model.{field}': name})
  assert '\n' not in str(caught.value)


def test_a_head_of_maps_on_a_backbone_of_features_blames_the_backbone(state_maker):
  with pytest.raises(UserError, match=r'^config\.model\.backbone: .*parts\.py:Flat failed'):
    state_maker({'model.backbone': 'Flat', 'model.heads.centre': 'soft_argmax'})


@pytest.mark.parametrize('fields', [{}, {'model.freeze': 'stage0'}, {'model.sharing': 'cross_stitch'}], ids=str)
@pytest.mark.parametrize('name', ['Net', 'Wrapped', 'Flat'])
def test_backbones_of_maps_and_of_features_are_frozen_and_shared_as_others(state_maker, name, fields):
  model, make = state_maker({'model.backbone': name, **fields})
  shapes = jax.eval_shape(model.outputs, jax.eval_shape(make).variables, jax.ShapeDtypeStruct((3, 16, 16, 3), 'f4'))
  assert {task: found.shape for task, found in shapes.items()} == {'look': (3, 2), 'centre': (3, 2)}


def test_dropout_of_a_backbone_drops_in_training_by_the_steps_key_and_not_in_evaluation(state_maker):
  model, make = state_maker({'model.backbone': 'Flat'})
  variables, images = make().variables, jax.numpy.ones((2, 16, 16, 3))
  features = lambda **mode: np.asarray(model.encode(variables, images, **mode)[0].features)  # noqa: E731
  first, again, other = (features(train=True, key=jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  np.testing.assert_array_equal(features(train=False), features(train=False, key=jax.random.key(1)))


@pytest.mark.parametrize(
  ('before', 'after', 'said'),
  [
    ('return jnp.exp(outputs) - targets * outputs', 'return (outputs - targets).mean(1)', r'\(b,\), not \(b, 1\)'),
    ('return jnp.exp(outputs)\n', 'return outputs.mean()\n', r'\(\), not \(b, 1\)'),
    ('return jnp.exp(outputs) - targets * outputs', 'return 1 / 0', r'ZeroDivisionError: .*\(line \d+\)'),
  ],
)
def test_a_kind_of_task_whose_loss_or_predictions_have_another_shape_is_named(
  state_maker, tmp_path, monkeypatch, before, after, said
):
  monkeypatch.setattr(tasks, 'KINDS', dict(tasks.KINDS))
  assert before in CODE[-1]
  (tmp_path / 'count.py').write_text(CODE[-1].replace(before, after))
  (kind,) = parts.classes(f'{tmp_path}/count.py', tasks.Task, field='config.plugins')
  with pytest.raises(UserError, match=rf'^config\.plugins: .*count\.py:CountTask.*{said}'):
    state_maker({}, (kind('squares', ('squares',)),))


@pytest.mark.parametrize(
  ('before', 'after', 'said'),
  [
    ("baseline_name = 'mean'", 'none = 0', 'count.py: CountTask: .*baseline_name'),
    ("{'count_mae': draws", "{'count_error': draws", 'count.py:CountTask gives no count_mae'),
    ('mask, names, draws=None', 'mask, names', "count.py:CountTask failed: TypeError: .*'draws'"),
  ],
)
def test_a_kind_of_task_that_cannot_be_evaluated_is_refused_before_it_is_trained(
  squares, tmp_path, monkeypatch, before, after, said
):
  monkeypatch.setattr(tasks, 'KINDS', dict(tasks.KINDS))
  assert before in CODE[-1]
  (tmp_path / 'count.py').write_text(CODE[-1].replace(before, after))
  config = small_runs.make_config(squares, tasks='squares', plugins=(str(tmp_path / 'count.py'),))
  with pytest.raises(UserError, match=rf'^config\.plugins: .*{said}'):
    mtl_jax.train(config, tmp_path / 'run')
