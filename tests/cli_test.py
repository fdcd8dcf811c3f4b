"""Every wrong use of the command line is told in one line that names what is wrong, with exit code 2."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtl_jax.cli import main
from mtl_jax.data.prepare import prepare
from mtl_jax.errors import printable

CONFIG = Path(__file__).parent.parent / 'configs' / 'default.py'
TINY = {
  'model.width': 4,
  'model.head_features': 8,
  'train.steps': 4,
  'train.batch_size': 8,
  'train.log_every_steps': 1,
  'eval.every_steps': 2,
  'eval.batch_size': 16,
  'checkpoint.every_steps': 2,
}


@pytest.fixture
def refused(capsys):
  """`refused(*arguments)` runs a command that must fail with exit code 2, and gives its one line on stderr."""

  def run(*arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith('mtl-jax: error: ')]
    assert len(told) == 1, err
    assert err.endswith(f'{told[0]}\n')
    assert 'Traceback' not in err
    assert out == ''
    return told[0].removeprefix('mtl-jax: error: ')

  return run


@pytest.fixture
def train(store_dir, tmp_path):
  """The arguments of a tiny training run in `tmp_path/run`, with some settings changed."""

  def arguments(*more, workdir: Path = tmp_path / 'run', config: Path = CONFIG, **overrides) -> list[str]:
    settings = {**TINY, 'data.dir': store_dir, **overrides}
    given = [f'--config.{name}={value}' for name, value in settings.items()]
    return ['train', '--config', str(config), '--workdir', str(workdir), *given, *more]

  return arguments


@pytest.fixture
def run_copy(trained_dir, tmp_path) -> Path:
  """A copy of the trained run, to be spoilt."""
  return Path(shutil.copytree(trained_dir, tmp_path / 'copy'))


@pytest.fixture(scope='session')
def faces(store_dir) -> list[Path]:
  return sorted((store_dir / 'source').rglob('*.jpg'))[:2]


# Usage.


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    ([], 'VERB'),
    (['trian'], "'trian'"),
    (['train', '--workdir', 'w'], '--config'),
    (['train', '--config', CONFIG], '--workdir'),
    (['train', '--config', CONFIG, '--workdir', 'w', '--batch_size', '8'], '--batch_size'),
    (['eval', '--workdir', 'w', '--split', 'dev'], '--split'),
    (['eval', '--workdir', 'w', '--step', 'last'], '--step'),
    (['eval', '--workdir', 'w', '--config.train.steps=3'], '--config.train.steps=3: eval takes no configuration'),
    (['predict', '--workdir', 'w'], 'IMAGE'),
    (['prepare', 'celeba'], '--out'),
    (['prepare', 'celeba', '--out', 'd', '--image_size', '64'], '--image_size'),
  ],
)
def test_wrong_usage_is_told_in_one_line(refused, arguments, told):
  assert told in refused(*arguments)


@pytest.mark.parametrize('flag', ['--help', '--version'])
def test_help_and_version_go_to_stdout(capsys, flag):
  with pytest.raises(SystemExit) as left:
    main([flag])
  assert left.value.code == 0
  assert 'mtl-jax' in capsys.readouterr().out


# Configuration.


def test_a_missing_config_file_is_named(refused, train, tmp_path):
  assert f'--config: no file {tmp_path / "no.py"}' in refused(*train(config=tmp_path / 'no.py'))


def test_a_config_file_that_raises_is_named_with_its_error(refused, train, tmp_path):
  (tmp_path / 'bad.py').write_text('def get_config():\n  raise ValueError("no such\\nthing")\n')
  assert refused(*train(config=tmp_path / 'bad.py')).endswith('bad.py failed: ValueError: no such thing (line 2)')


@pytest.mark.parametrize(
  ('field', 'value', 'told'),
  [
    ('train.stepz', 3, "config.train .*'stepz'.*'steps'"),
    ('data.mode', 'residnt', "config.data.mode: .*'resident'"),
    ('train.steps', 'many', 'config.train.steps '),
    ('data.dir', '', 'config.data.dir '),
    ('data.dir', '/no/such/set', '/no/such/set: '),
    ('data.dir', Path(__file__).parent, f'{Path(__file__).parent}.*schema.json'),
    ('tasks', 'atributes', "config.tasks: .*'atributes'"),
    ('tasks', 'attributes/Smilin', "config.tasks: .*'Smiling'"),
    ('data.attributes', 'Smilin', "config.data.attributes: .*'Smiling'"),
    ('data.attributes', 'Male,Male', "config.data.attributes: 'Male'"),
    ('model.backbone', 'resnet19', "config.model.backbone: .*'resnet18'"),
    ('objective.name', 'fixt', "config.objective.name: .*'fixed'"),
    ('objective.weights.landmark', 2, "config.objective.weights: .*'landmarks'"),
    ('train.batch_size', 12, 'config.train.batch_size is 12.* 8 '),
  ],
)
def test_a_wrong_setting_is_told_by_its_field(refused, train, field, value, told):
  assert re.search(told, refused(*train(**{field: value})))


def test_a_setting_without_a_value_does_not_swallow_the_next_flag(refused, train):
  told = 'config.train.steps has no value; write --config.train.steps=VALUE'
  assert refused('train', '--config', CONFIG, '--config.train.steps', '--workdir', 'w') == told
  assert refused(*train('--config.train.steps')) == told


def test_settings_may_be_written_with_a_space(refused, train):
  assert 'config.train.steps must be ' in refused(*train('--config.train.steps', '-1'))


def test_a_workdir_that_cannot_be_written_is_named(refused, train, tmp_path):
  (tmp_path / 'file').write_text('')
  for place in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    assert f'--workdir: cannot write into {place}' in refused(*train(workdir=place))


# Resuming.


def test_a_complete_run_is_left_alone(capsys, train, trained_dir):
  before = (trained_dir / 'metrics.jsonl').read_text()
  assert main(train(workdir=trained_dir)) == 0
  assert 'is complete at step 4' in capsys.readouterr().err
  assert (trained_dir / 'metrics.jsonl').read_text() == before


def test_resuming_with_another_configuration_is_refused_with_the_fields(refused, train, trained_dir):
  told = refused(*train(workdir=trained_dir, **{'train.steps': 8, 'optimizer.name': 'sgd'}))
  assert "config.optimizer.name: 'adamw' -> 'sgd'; config.train.steps: 4 -> 8" in told
  assert '--allow_config_change' in told
  assert json.loads((trained_dir / 'config.json').read_text())['train']['steps'] == 4


def test_a_run_that_was_refused_at_its_start_does_not_hold_its_workdir(refused, train, tmp_path):
  refused(*train(**{'train.batch_size': 12}))
  assert not (tmp_path / 'run' / 'config.json').exists()
  assert main(train()) == 0
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['train']['batch_size'] == 8


# Working directories that are none.


@pytest.mark.parametrize('verb', ['eval', 'predict', 'report'])
def test_a_workdir_without_a_run_is_named(refused, tmp_path, faces, verb):
  (tmp_path / 'file').write_text('')
  for place in (tmp_path / 'missing', tmp_path, tmp_path / 'file'):
    assert str(place) in refused(verb, '--workdir', place, *(faces[:1] if verb == 'predict' else []))


@pytest.mark.parametrize(
  ('file', 'content'),
  [
    ('config.json', '{'),
    ('config.json', '[]'),
    ('config.json', '{"tasks": "attributes"}'),
    ('dataset.json', '{}'),
    ('dataset.json', '{"image_size": 3, "tasks": 4, "checksum": 5}'),
    ('dataset.json', '{"image_size": [1, 1], "tasks": [{"kind": "voice"}], "checksum": ""}'),
  ],
)
def test_a_spoilt_file_of_a_run_is_named(refused, run_copy, file, content):
  (run_copy / file).write_text(content)
  told = refused('eval', '--workdir', run_copy)
  assert str(run_copy) in told
  assert file in told


def test_a_run_without_a_checkpoint_is_told_apart(refused, run_copy):
  shutil.rmtree(run_copy / 'checkpoints')
  assert str(run_copy) in refused('eval', '--workdir', run_copy)


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(refused, trained_dir):
  assert refused('eval', '--workdir', trained_dir, '--step', 3).endswith('has no checkpoint of step 3; it has 2, 4')


# Evaluating.


def test_eval_writes_json_and_prints_it_or_its_figures_in_a_table(capsys, run_copy, tmp_path):
  out = tmp_path / 'new' / 'all.npz'
  command = ['eval', '--workdir', str(run_copy), '--split', 'val']
  assert main([*command, '--predictions', str(out), '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found == json.loads((run_copy / 'eval' / 'val.json').read_text())
  with np.load(out) as arrays:
    assert len(arrays['example_id']) == found['num_examples']
  assert main(command) == 0
  table = capsys.readouterr().out
  for task, metric in (('attributes', 'accuracy'), ('landmarks', 'NME')):
    line = next(line for line in table.splitlines() if line.startswith(f'{metric} '))
    value = found['tasks'][task]['macro_accuracy' if task == 'attributes' else 'nme']
    assert line.split()[-1] == f'{100 * value:.2f}%'


def test_a_wrong_place_for_predictions_is_refused_before_the_work(refused, trained_dir, tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'folder.npz').mkdir()
  for place in (tmp_path / 'file' / 'x.npz', tmp_path / 'folder.npz', tmp_path / 'x.csv'):
    assert f'{place}' in refused('eval', '--workdir', trained_dir, '--predictions', place)
  assert not (tmp_path / 'x.csv.npz').exists()


def test_predictions_that_cannot_be_kept_are_said_and_what_was_found_is_printed(
  capsys, run_copy, tmp_path, said, monkeypatch
):
  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('mtl_jax.platform.npz.write', full)
  place = tmp_path / 'all.npz'
  assert main(['eval', '--json', '--workdir', str(run_copy), '--predictions', str(place)]) == 0
  assert set(json.loads(capsys.readouterr().out)['tasks']) == {'attributes', 'landmarks'}
  assert any(f'{place} could not be kept' in line for line in said)


def test_a_split_without_rows_is_refused(refused, trained_dir, tmp_path):
  prepare('synthetic', source=None, out=tmp_path / 'four', image_size=(32, 32), num=4, seed=0, log=lambda _: None)
  told = refused('eval', '--workdir', trained_dir, '--data', tmp_path / 'four', '--split', 'val')
  assert "split 'val'" in told


def test_a_set_of_another_image_size_is_refused_with_what_to_do(refused, trained_dir, tmp_path):
  prepare('synthetic', source=None, out=tmp_path / 'small', image_size=(16, 24), num=4, seed=0, log=lambda _: None)
  told = refused('eval', '--workdir', trained_dir, '--data', tmp_path / 'small', '--split', 'train')
  assert str(tmp_path / 'small') in told
  assert '--image_size 32 32' in told


def test_a_set_with_other_attributes_is_refused_by_name(refused, trained_dir, tmp_path):
  from celeba_layout import write_celeba

  write_celeba(tmp_path / 'source')
  prepare(
    'celeba', source=tmp_path / 'source', out=tmp_path / 'three', image_size=(32, 32), num=0, seed=0, log=lambda _: None
  )
  told = refused('eval', '--workdir', trained_dir, '--data', tmp_path / 'three')
  assert str(tmp_path / 'three') in told
  assert "'5_o_Clock_Shadow'" in told


def test_data_that_is_gone_is_named(refused, run_copy, tmp_path):
  config = json.loads((run_copy / 'config.json').read_text())
  config['data']['dir'] = str(tmp_path / 'gone')
  (run_copy / 'config.json').write_text(json.dumps(config))
  assert str(tmp_path / 'gone') in refused('eval', '--workdir', run_copy)


# Predicting.


def test_predict_prints_a_line_an_image_and_draws_it(capsys, trained_dir, faces, tmp_path):
  twin = tmp_path / 'elsewhere' / faces[0].name
  twin.parent.mkdir()
  Image.new('L', (50, 40)).save(twin)
  files = [*faces, twin]
  assert main(['predict', '--workdir', str(trained_dir), *map(str, files), '--out', str(tmp_path / 'drawn')]) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [line['file'] for line in lines] == [str(file) for file in files]
  for line in lines:
    assert len(line['attributes']) == 40
    assert set(line['landmarks']) == {'lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth'}
  stem = faces[0].stem
  assert {path.stem for path in (tmp_path / 'drawn').iterdir()} == {stem, f'{stem}_2', faces[1].stem}


def test_a_folder_gives_its_pictures_by_name_and_a_table_has_a_row_for_each(capsys, trained_dir, faces, tmp_path):
  (tmp_path / 'pictures').mkdir()
  for name in ('b.jpg', 'a.JPEG'):
    shutil.copy(faces[0], tmp_path / 'pictures' / name)
  (tmp_path / 'pictures' / 'notes.txt').write_text('no picture')
  Image.new('RGB', (90, 30)).save(tmp_path / 'wide.png')
  places = [str(tmp_path / 'pictures'), str(tmp_path / 'wide.png')]
  command = ['predict', '--workdir', str(trained_dir), *places, '--csv', str(tmp_path / 'all.csv'), '--step', '4']
  assert main(command) == 0
  printed, told = capsys.readouterr()
  lines = [json.loads(line) for line in printed.splitlines()]
  assert [Path(line['file']).name for line in lines] == ['a.JPEG', 'b.jpg', 'wide.png']
  assert told.count('squashed') == told.count(f'{tmp_path / "wide.png"}: 90 x 30') == 1
  with (tmp_path / 'all.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['file'] for row in rows] == [line['file'] for line in lines]
  assert float(rows[1]['landmarks/nose/y']) == lines[1]['landmarks']['nose'][1]
  assert float(rows[2]['attributes/Male']) == lines[2]['attributes']['Male']


def test_a_drawing_never_replaces_the_picture(trained_dir, tmp_path):
  Image.new('RGB', (30, 30), 'red').save(tmp_path / 'a.png')
  before = (tmp_path / 'a.png').read_bytes()
  assert main(['predict', '--workdir', str(trained_dir), str(tmp_path / 'a.png'), '--out', str(tmp_path)]) == 0
  assert (tmp_path / 'a.png').read_bytes() == before
  assert (tmp_path / 'a_2.png').exists()


def test_bad_images_are_named_and_the_good_ones_still_done(capsys, trained_dir, faces, tmp_path):
  (tmp_path / 'text.jpg').write_text('not an image')
  (tmp_path / 'cut.jpg').write_bytes(faces[0].read_bytes()[:500])
  (tmp_path / 'empty').mkdir()
  bad = [tmp_path / 'text.jpg', tmp_path / 'cut.jpg', tmp_path / 'missing.jpg', tmp_path / 'empty']
  mixed = [bad[0], faces[0], *bad[1:], faces[1]]
  assert main(['predict', '--workdir', str(trained_dir), *map(str, mixed)]) == 2
  out, err = capsys.readouterr()
  assert [json.loads(line)['file'] for line in out.splitlines()] == [str(face) for face in faces]
  told = err.splitlines()
  assert len(told) == len(bad)
  for path, line in zip(bad, told, strict=True):
    assert line.startswith(f'mtl-jax: error: {path}: ')


@pytest.mark.parametrize(
  'error', [MemoryError('Unable to allocate 7 TiB'), RuntimeError('INTERNAL: Out of memory allocating 9 bytes')]
)
def test_a_lack_of_memory_is_one_line_and_says_what_to_lower(refused, trained_dir, monkeypatch, error):
  def run(*arguments, **options):
    raise error

  monkeypatch.setattr('mtl_jax.evaluation.command.evaluate_workdir', run)
  assert refused('eval', '--workdir', trained_dir).startswith(f'out of memory: {error}; lower config.train.batch_size')


def test_a_place_for_drawings_that_is_a_file_is_refused(refused, trained_dir, faces, tmp_path):
  (tmp_path / 'file').write_text('')
  assert f'--out: cannot make the folder {tmp_path / "file"}' in refused(
    'predict', '--workdir', trained_dir, faces[0], '--out', tmp_path / 'file'
  )


# Foreign text and files.


def test_names_never_steer_the_terminal(capfd, trained_dir, tmp_path):
  place = tmp_path / 'a\x1b[31m\x9b2J\u202e\nmtl-jax: fine'
  for verb in ('eval', 'report'):
    assert main([verb, '--workdir', str(place)]) == 2
  place.mkdir()
  Image.new('RGB', (8, 8)).save(place / 'b.png')
  (place / 'c\x1b[31m.png').write_text('no image')
  arguments = ['predict', '--workdir', str(trained_dir), str(place / 'b.png'), str(place / 'c\x1b[31m.png')]
  assert main([*arguments, '--out', str(place / 'drawn')]) == 2
  assert main(['export', '--workdir', str(trained_dir), '--out', str(place / 'exported')]) == 0
  for text in capfd.readouterr():
    assert r'a\x1b[31m' in text or r'a\u001b[31m' in text  # JSON has an escape of its own.
    assert text.replace('\n', '').isprintable()
    assert not any(line.startswith('mtl-jax: fine') for line in text.splitlines())


@given(st.text())
def test_what_is_printed_of_any_text_is_printable_and_once_only(text):
  shown = printable(text)
  assert not any(unicodedata.category(c) in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp') for c in shown)
  assert printable(shown) == shown


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_tables_are_printed_on_a_terminal_of_any_encoding(monkeypatch, tmp_path, encoding):
  text = 'Straße — ≤ 1 off ↑\n  100%'
  content = io.BytesIO()
  monkeypatch.setattr('mtl_jax.demo.run', lambda workdir: text)
  monkeypatch.setattr('sys.stdout', io.TextIOWrapper(content, encoding=encoding, write_through=True))
  assert main(['demo', '--workdir', str(tmp_path)]) == 0
  shown = content.getvalue().decode(encoding)
  assert shown == {
    'ascii': 'Stra\\xdfe - <= 1 off ^\n  100%\n', 'latin-1': 'Straße - <= 1 off ^\n  100%\n', 'utf-8': f'{text}\n'
  }[encoding]  # fmt: skip


@pytest.mark.skipif(sys.version_info >= (3, 13), reason='paths are followed without an error there')
def test_links_that_lead_to_each_other_are_named(refused, trained_dir, faces, tmp_path):
  (tmp_path / 'a').symlink_to(tmp_path / 'b')
  (tmp_path / 'b').symlink_to(tmp_path / 'a')
  loop = tmp_path / 'a'
  for arguments in (
    ['predict', '--workdir', trained_dir, faces[0], '--out', loop],
    ['prepare', 'synthetic', '--num', 4, '--out', loop],
    ['export', '--workdir', trained_dir, '--out', loop / 'x'],
    ['eval', '--workdir', loop],
    ['eval', '--workdir', trained_dir, '--data', loop],
  ):
    assert str(loop) in refused(*arguments)


def test_an_eval_that_cannot_be_kept_is_printed(capsys, run_copy, said):
  (run_copy / 'eval').write_text('a file where the folder should be')
  assert main(['eval', '--workdir', str(run_copy), '--json']) == 0
  assert set(json.loads(capsys.readouterr().out)['tasks']) == {'attributes', 'landmarks'}
  assert [line for line in said if str(run_copy / 'eval' / 'test.json') in line]


# Preparing and the rest.


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    (['celebb'], "prepare: no choice 'celebb'; did you mean 'celeba'?"),
    (['celeba'], 'prepare celeba needs --source DIR'),
    (['celeba', '--source', '/no/such/folder'], '/no/such/folder: no such folder'),
    (['synthetic', '--source', '.'], 'leave out --source'),
    (['synthetic', '--num', '0'], '--num=0'),
    (['synthetic', '--num', '4', '--seed', '-1'], '--seed=-1'),
    (['synthetic', '--num', '4', '--image_size', '0', '8'], 'image_size'),
  ],
)
def test_what_cannot_be_prepared_is_told(refused, tmp_path, arguments, told):
  assert told in refused('prepare', *arguments, '--out', tmp_path / 'set')
  assert not (tmp_path / 'set').exists()


def test_a_prepared_set_is_not_overwritten(refused, store_dir):
  assert 'already holds a prepared set' in refused('prepare', 'synthetic', '--num', 4, '--out', store_dir)


def test_an_error_of_the_system_is_one_line(refused, trained_dir, monkeypatch):
  def full(*_, **__):
    raise OSError(28, 'No space left on device', 'somewhere')

  monkeypatch.setattr('mtl_jax.evaluation.command.evaluate_workdir', full)
  assert refused('eval', '--workdir', trained_dir) == "[Errno 28] No space left on device: 'somewhere'"


def test_doctor_says_what_is_here(capsys):
  assert main(['doctor']) == 0
  out = capsys.readouterr().out
  assert 'training runs on     8 cpu device(s)' in out
  assert 'flax' in out


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tmp_path, monkeypatch, store_dir):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a,b [1]').symlink_to(store_dir)
  (tmp_path / 'c.py').write_text('from mtl_jax.configs.default import get_config')
  assert main(['prepare', 'synthetic', '--num=40', '--out=~/set', '--image_size', '32', '32']) == 0
  tiny = ['model.backbone=convnet', 'model.width=2', 'model.head=linear', 'train.steps=1', 'train.batch_size=8']
  flags = [f'--config.{field}' for field in (*tiny, 'data.dirs="~/set","~/a,b [1]"', 'tasks=landmarks')]
  assert main(['train', '--config=~/c.py', '--workdir=~/run', *flags]) == 0
  assert main(['eval', '--workdir=~/run', '--data=~/set', '--predictions=~/all.npz']) == 0
  assert {'set', 'run', 'all.npz'} <= {path.name for path in tmp_path.iterdir()}
  assert not (tmp_path / '~').exists()
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert written['data']['dirs'] == [str(tmp_path / 'set'), str(store_dir)]


def test_devices_that_are_not_here_are_told_in_one_line_by_doctor_and_by_training(tmp_path, store_dir):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cuda'}
  run = partial(subprocess.run, capture_output=True, text=True, env=environment, check=False)
  doctor = run([sys.executable, '-m', 'mtl_jax', 'doctor'])
  assert doctor.returncode == 0
  assert 'JAX_PLATFORMS=cuda' in doctor.stdout.splitlines()[-1]
  flags = ['--config', 'default', '--workdir', str(tmp_path / 'run'), f'--config.data.dir={store_dir}']
  train = run([sys.executable, '-m', 'mtl_jax', 'train', *flags])
  assert train.returncode == 2, train.stderr
  said = [line for line in train.stderr.splitlines() if line.startswith('mtl-jax: error: ')]
  assert len(said) == 1
  assert 'JAX_PLATFORMS=cuda' in said[0]
  assert 'Traceback' not in train.stderr + doctor.stderr
