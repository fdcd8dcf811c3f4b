"""Parts of the user's own, each in a file: trained, resumed, evaluated, exported, and never run unasked."""

import numpy as np
import pytest
import small_runs
from PIL import Image

import mtl_jax
from mtl_jax import cli
from mtl_jax.errors import UserError

PARTS = {
  'model.backbone': """
import flax.linen as nn
from mtl_jax.models.backbone import Backbone

class Net(Backbone):
  dtype: object = None
  num_stages = 1

  @nn.compact
  def stage(self, x, index, *, train):
    return nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
""",
  'model.head': """
import flax.linen as nn
from mtl_jax.models.heads import Head

class Net(Head):
  @nn.compact
  def __call__(self, representation):
    return nn.Dense(self.outputs, name='mine')(nn.tanh(representation.features))
""",
  'model.sharing': """
from mtl_jax.models.sharing.hard import Hard

class Net(Hard):
  pass
""",
  'objective.name': """
from mtl_jax.objectives.objective import of_losses

def Net(power=1.0):
  return of_losses(lambda losses, present: (losses * present).sum() * power)
""",
  'optimizer.name': """
import optax

def Net(learning_rate, scale=2.0):
  return optax.chain(optax.scale(scale), optax.sgd(learning_rate))
""",
}


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
  return small_runs.make_faces(tmp_path_factory.mktemp('parts') / 'faces')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def trained(faces, folder, names=PARTS, **overrides) -> tuple[dict, mtl_jax.Run]:
  """A run of four steps whose parts are the files of `folder`."""
  fields = {}
  for field in names:
    path = folder / f'{field.replace(".", "_")}.py'
    path.write_text(PARTS[field])
    fields[field] = f'{path}:Net'
  fields |= {'train.steps': 4, 'model.width': 0, 'eval.every_steps': 4, **overrides}
  return fields, mtl_jax.train(small_runs.make_config(faces), folder / 'run', overrides=fields)


def test_parts_in_files_train_resume_evaluate_predict_and_export_without_the_files(faces, tmp_path):
  fields, run = trained(faces, tmp_path)
  assert run.step == 4
  found = run.evaluate(split='val')
  more = mtl_jax.train(
    small_runs.make_config(faces), run.workdir, overrides=fields | {'train.steps': 6}, allow_config_change=True
  )
  assert more.step == 6
  for file in tmp_path.glob('*.py'):
    file.unlink()
  assert mtl_jax.evaluate(run.workdir, split='val', step=4)['tasks'] == found['tasks']
  model = run.load()
  assert 'mine' in model.variables['params']['head_landmarks']
  assert len(model.predict(np.zeros((2, *model.image_size, 3), np.uint8))) == 2
  assert (mtl_jax.export(run.workdir, tmp_path / 'out') / 'model.stablehlo').exists()


def test_code_from_elsewhere_runs_only_when_it_is_allowed_and_is_then_known(faces, tmp_path, monkeypatch, capsys):
  _, run = trained(faces, tmp_path, ['model.head'])
  Image.new('RGB', (16, 16)).save(tmp_path / 'face.png')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'another'))
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
  (tmp_path / 'model_head.py').write_text(PARTS['model.head'].replace('tanh', 'relu'))
  with pytest.raises(UserError, match=r'config\.model\.head: .*model_head\.py'):
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
  ],
)
def test_what_is_no_such_part_is_refused_with_its_field(faces, tmp_path, field, value):
  with pytest.raises(UserError, match=f'config.{field}'):
    mtl_jax.train(small_runs.make_config(faces), tmp_path / 'run', overrides={field: value})
