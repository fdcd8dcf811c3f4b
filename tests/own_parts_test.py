"""Parts of the user's own, each in a file: trained, resumed, evaluated, exported, and never run unasked."""

import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from own_parts_page import CODE
from PIL import Image

import mtl_jax
from mtl_jax import cli, tasks
from mtl_jax.errors import UserError
from mtl_jax.objectives import options
from mtl_jax.run import own_parts, workdir

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
