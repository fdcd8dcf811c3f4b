"""Nothing in a workdir is trusted: links, names, spoilt files, other sets; and nothing of the user's is lost."""

import json
import os
import shutil
import struct
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import small_runs
from hypothesis import HealthCheck, given, settings
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore

from mtl_jax import cli
from mtl_jax.affinities import affinity
from mtl_jax.data.prepare import prepare
from mtl_jax.errors import CheckpointError, ConfigError, DataError
from mtl_jax.evaluation.command import evaluate_workdir
from mtl_jax.platform import atomic_dir, atomic_write, file_lock
from mtl_jax.run import digests, trained_model
from mtl_jax.studies import study
from mtl_jax.training import loop


@pytest.fixture(scope='module')
def config(faces):
  return small_runs.make_config(faces, **{'train.steps': 4, 'eval.every_steps': 4, 'checkpoint.every_steps': 2})


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory) -> Path:
  """The workdir of a run that is evaluated; tests must not write into it."""
  directory = tmp_path_factory.mktemp('runs') / 'trained'
  loop.train(config, directory)
  evaluate_workdir(directory)
  return directory


@pytest.fixture
def copy(trained, tmp_path) -> Path:
  return Path(shutil.copytree(trained, tmp_path / 'copy'))


@pytest.fixture
def command(config, tmp_path):
  """`command('eval', workdir)`: the exit code of a verb in this process; `train` also takes overrides."""
  train = small_runs.command(tmp_path, config, tmp_path)[4:-2]

  def run(verb: str, directory: Path, *more: str) -> int:
    arguments = {
      'train': train,
      'predict': [str(next(Path(config.data.dir).rglob('*.jpg')))],
    }.get(verb, [])
    return cli.main([verb, '--workdir', str(directory), *arguments, *more])

  return run


def contents(folder: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


# Links.

LINKED = ['eval/test.partial', 'config.partial', 'metrics.partial', 'dataset.partial', 'report.html', 'metrics.jsonl']
LINKED += ['eval/test.json', 'goodput.json', 'goodput.partial', 'report.partial', 'plots/curve.png']


def test_no_link_in_a_foreign_workdir_leads_to_files_of_the_users(copy, command, tmp_path):
  mine = tmp_path / 'mine'
  mine.mkdir()
  for name in LINKED:
    (mine / name.replace('/', '_')).write_text('precious')
    link = copy / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(mine / name.replace('/', '_'))
  before = contents(mine)
  assert command('train', copy, '--config.train.steps=6', '--allow_config_change') == 0
  assert command('eval', copy) == 0
  assert command('report', copy) == 0
  assert contents(mine) == before
  assert json.loads((copy / 'eval' / 'test.json').read_text())['step'] >= 4


@pytest.mark.parametrize(
  ('name', 'verb'), [('.lock', 'train'), ('checkpoints', 'train'), ('checkpoints/4', 'train'), ('eval', 'eval')]
)
def test_a_linked_lock_or_folder_is_named_and_nothing_is_written_through_it(
  copy, command, tmp_path, capsys, name, verb
):
  mine = tmp_path / 'mine'
  if (copy / name).is_dir():
    shutil.move(copy / name, mine)
  else:
    mine.write_text('precious')
    (copy / name).unlink()
  (copy / name).symlink_to(mine)
  before = sorted(mine.rglob('*')), mine.read_bytes() if mine.is_file() else b''
  code = command(verb, copy, *(['--config.train.steps=6', '--allow_config_change'] if verb == 'train' else []))
  said = capsys.readouterr().err
  assert code == (0 if verb == 'eval' else 2)  # What is evaluated is printed, though it cannot be kept.
  assert name in said
  assert 'symbolic link' in said
  assert 'Traceback' not in said
  assert (sorted(mine.rglob('*')), mine.read_bytes() if mine.is_file() else b'') == before


def test_a_file_is_written_whole_and_replaces_a_link(tmp_path):
  (tmp_path / 'mine').write_text('precious')
  (tmp_path / 'report.html').symlink_to(tmp_path / 'mine')
  atomic_write.write(tmp_path / 'report.html', 'new')
  assert (tmp_path / 'mine').read_text() == 'precious'
  assert (tmp_path / 'report.html').read_text() == 'new'
  assert sorted(path.name for path in tmp_path.iterdir()) == ['mine', 'report.html']


def test_a_folder_that_has_vanished_is_not_made_anew(tmp_path):
  root = tmp_path / 'run'
  for path in (root / 'study.json', root / 'eval' / 'test.json', root / 'replicas' / 'joint' / 'lr1-seed0.npz'):
    with pytest.raises(CheckpointError, match='has vanished'):
      atomic_write.write(path, '', root=root)
  assert not root.exists()


# Names.


def test_resuming_deletes_only_what_a_save_has_named(copy, command, said):
  folder = copy / 'checkpoints'
  users = ['4_backup', 'best.keep', '\N{SUPERSCRIPT TWO}', '\N{ARABIC-INDIC DIGIT THREE}', '007', '4_000']
  for name in [*users, '6.orbax-checkpoint-tmp', '6.orbax-checkpoint-tmp-17', '2.damaged']:
    (folder / name).mkdir()
    (folder / name / 'file').write_text('precious')
  (folder / 'notes.txt').write_text('precious')
  assert command('train', copy) == 0
  left = {path.name for path in folder.iterdir()}
  assert left >= {*users, 'notes.txt', '2.damaged', '4'}
  assert not any('tmp' in name for name in left)
  for name in [*users, 'notes.txt']:
    assert f'warning: {folder / name} is no checkpoint; it is left alone' in said


# What a checkpoint is tied to.


def change(path: Path, act) -> None:
  value = json.loads(path.read_text())
  act(value)
  path.write_text(json.dumps(value))


def swap_labels(facts: dict) -> None:
  labels = facts['tasks'][0]['labels']
  labels[0], labels[1] = labels[1], labels[0]


@pytest.mark.parametrize(
  'act',
  [
    swap_labels,
    lambda facts: facts.update(image_size=[8, 8]),
    lambda facts: facts['tasks'][1].update(name='landmarks'),
  ],
)
def test_a_changed_dataset_json_changes_no_number(copy, said, act):
  before = json.loads((copy / 'eval' / 'test.json').read_text())
  original = (copy / 'dataset.json').read_text()
  change(copy / 'dataset.json', act)
  found = evaluate_workdir(copy)
  assert found['tasks'] == before['tasks']
  changed = json.loads((copy / 'dataset.json').read_text()) != json.loads(original)
  assert changed == any('dataset.json or config.json is not of step' in line for line in said)


@pytest.mark.parametrize('size', [[-1, 0], ['a', 'b'], [16], [16, 16.5], 16, None, [True, True]])
def test_wrong_sizes_in_dataset_json_are_named(copy, size):
  change(copy / 'dataset.json', lambda facts: facts.update(image_size=size))
  with pytest.raises(CheckpointError, match=r'dataset\.json.*image_size'):
    trained_model.restore(copy)


def test_a_checkpoint_without_digests_is_said(copy, said):
  (copy / 'checkpoints' / '4' / digests.FILE).unlink()
  trained_model.restore(copy)
  assert f'warning: {copy / "checkpoints" / "4"} has no digests.json: damage to it cannot be noticed' in said


CHANGED = {'optimizer.name': 'sgd', 'model.width': '4', 'tasks': 'attributes', 'model.backbone': 'resnet18'}


@pytest.mark.parametrize('field', CHANGED)
def test_a_configuration_that_makes_other_arrays_is_refused_by_its_field(copy, command, capsys, field):
  assert command('train', copy, f'--config.{field}={CHANGED[field]}', '--allow_config_change') == 2
  (told,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith('mtl-jax: error:'))
  assert f'config.{field}: ' in told
  assert not any(word in told.lower() for word in ('orbax', 'tensorstore', 'pytree', 'traceback'))


# Without the command line.


@pytest.mark.parametrize('run', [loop.train, study.run, affinity.run])
@pytest.mark.parametrize(('field', 'value'), [('optimizer.name', 'adamm'), ('train.steps', -4)])
def test_functions_check_their_configuration(config, tmp_path, run, field, value):
  wrong = config.copy_and_resolve_references()
  wrong.update_from_flattened_dict({field: value})
  with pytest.raises(ConfigError, match=f'config.{field}'):
    run(wrong, tmp_path / 'run')


def test_a_split_that_there_is_not_is_named(trained):
  with pytest.raises(DataError, match="'dev'"):
    evaluate_workdir(trained, split='dev')


# Other sets.

READER = """
from pathlib import Path
from mtl_jax.data.source import ListedImages, Record
from mtl_jax.tasks import BinaryTask, CategoricalTask, RegressionTask

class Shapes:
  name, tasks = 'shapes', ({task},)
  def __init__(self, folder): self.folder = folder
  def records(self):
    for row, path in enumerate(sorted(self.folder.glob('*.png'))):
      split = 'train' if row < 16 else 'val' if row < 20 else 'test'
      yield Record(name=path.name, split=split, image=path, labels={{'shape': [{label}]}})

def open_source(folder):
  return Shapes(folder)
"""
TRUTH = '"pqr"[row % 3]'


def shapes_set(folder: Path, images: Path, task: str, label: str) -> Path:
  (folder / 'shapes.py').write_text(READER.format(task=task, label=label))
  out = folder / f'set{len(list(folder.glob("set*")))}'
  prepare(str(folder / 'shapes.py'), source=images, out=out, image_size=(16, 16), num=0, seed=0, log=lambda _: None)
  return out


def test_classes_of_another_set_are_those_of_the_same_names(tmp_path):
  images = tmp_path / 'images'
  images.mkdir()
  random = np.random.default_rng(0)
  for row in range(40):
    Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(images / f'{row:02}.png')

  def made(classes: str) -> Path:
    names = tuple(classes)
    return shapes_set(
      tmp_path, images, f"CategoricalTask('shape', ('shape',), classes={names})", f'{classes!r}.index({TRUTH})'
    )

  own, permuted, more = made('pqr'), made('rpq'), made('pqrs')
  others = [
    shapes_set(tmp_path, images, "BinaryTask('shape', ('shape',))", 'row % 2'),
    shapes_set(tmp_path, images, "RegressionTask('shape', ('shape',))", 'row'),
  ]
  config = small_runs.make_config(own, **{'tasks': 'shape', 'train.steps': 6})
  loop.train(config, tmp_path / 'run')
  expected = evaluate_workdir(tmp_path / 'run')['tasks']['shape']
  assert evaluate_workdir(tmp_path / 'run', data=permuted)['tasks']['shape'] == expected
  for other in (more, *others):
    with pytest.raises(DataError, match="another 'shape'"):
      evaluate_workdir(tmp_path / 'run', data=other)


# Curves.


def events(directory: Path) -> list[list]:
  """The events of each file, in the order of the files' names."""
  files = []
  for path in sorted(directory.glob('events*'), key=lambda path: path.stat().st_mtime_ns):
    content, found = path.read_bytes(), []
    while content:
      (length,) = struct.unpack('<Q', content[:8])
      found.append(Event.FromString(content[12 : 12 + length]))
      content = content[16 + length :]
    files.append(found)
  return files


def test_tensorboard_drops_the_curve_of_a_start_that_came_to_no_checkpoint(config, tmp_path, monkeypatch):
  class Crash(Exception):
    pass

  def crash() -> bool:
    raise Crash

  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 2, crash)
    with pytest.raises(Crash):
      loop.train(config, tmp_path)
  loop.train(config, tmp_path)
  first, second = events(tmp_path)
  assert [event.step for event in first if event.summary.value]
  starts = [event.step for event in second if event.session_log.status == SessionLog.START]
  assert starts == [1]  # From step 1 on, what was there before is dropped.


# File systems.


def test_folders_and_locks_work_without_flock_and_a_line_says_so(tmp_path, monkeypatch, said):
  """Everything that locks does it through `file_lock`: prepare, train, features and copies of sets."""

  def flock(*_) -> None:
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr('fcntl.flock', flock)
  with atomic_dir.new_folder(tmp_path / 'set') as folder:
    (folder / 'file').touch()
  with file_lock.hold(tmp_path / 'features' / '.lock'):
    pass
  assert (tmp_path / 'set' / 'file').exists()
  assert sum('has no locks' in line for line in said) == 2
  package = Path(file_lock.__file__).parents[1]
  assert [path.name for path in package.rglob('*.py') if 'fcntl.flock' in path.read_text()] == ['file_lock.py']


# Every JSON file, spoilt in any way.

FILES = ['config.json', 'dataset.json', 'goodput.json', 'metrics.jsonl', 'eval/test.json', 'checkpoints/4/digests.json']
FILES += ['checkpoints/4/clock/metadata', 'checkpoints/4/_CHECKPOINT_METADATA', 'checkpoints/4/state/_METADATA']
HOSTILE = [b'null', b'true', b'-1', b'0', b'1e308', b'9' * 6000, b'"\\u001b[2J"', b'"x"', b'[]', b'{}', b'NaN']
HOSTILE += [b'[' * 50_000, b'[' * 20 + b']' * 20, b'{"a": 1}', b'["attributes", 5]', b'"\xff"', b'1.5']


def spoil(content: bytes, where: float, how: int, value: bytes) -> bytes:
  """One place of a JSON text replaced, cut or filled."""
  at = int(where * (len(content) - 1))
  if how == 0:  # A value.
    starts = [i + 2 for i in range(len(content) - 2) if content[i : i + 2] in (b': ', b', ')] or [0]
    start = starts[int(where * (len(starts) - 1))]
    end = next((i for i in range(start, len(content)) if content[i : i + 1] in b',}]\n'), len(content))
    return content[:start] + value + content[end:]
  return [b'', content[:at], content[:at] + content[at + 1 :], content[:at] + value + content[at:], value][how]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
  name=st.sampled_from(FILES),
  where=st.floats(0, 1),
  how=st.integers(0, 4),
  value=st.sampled_from(HOSTILE),
  verb=st.sampled_from(['eval', 'report', 'train', 'predict']),
)
def test_a_spoilt_file_is_harmless_or_told_in_one_line(
  trained, command, tmp_path, capsys, name, where, how, value, verb
):
  directory = tmp_path / 'spoilt'
  shutil.rmtree(directory, ignore_errors=True)
  shutil.copytree(trained, directory)
  (directory / name).write_bytes(spoil((directory / name).read_bytes(), where, how, value))
  capsys.readouterr()
  code = command(verb, directory)
  said = capsys.readouterr().err
  told = [line for line in said.splitlines() if line.startswith('mtl-jax: error:')]
  assert code in (0, 2)
  assert len(told) == (code == 2), said
  assert 'Traceback' not in said
  assert all(os.fsencode(line).isascii() or '\x1b' not in line for line in told)
