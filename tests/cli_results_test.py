"""Evaluating and predicting from the command line: what is printed and kept, and what is refused in one line."""

import csv
import io
import json
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtl_jax.cli import main
from mtl_jax.data.prepare import prepare
from mtl_jax.errors import printable

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


def test_predict_prints_a_line_an_image_and_draws_it(capsys, trained_dir, pictures, tmp_path):
  twin = tmp_path / 'elsewhere' / pictures[0].name
  twin.parent.mkdir()
  Image.new('L', (50, 40)).save(twin)
  files = [*pictures, twin]
  assert main(['predict', '--workdir', str(trained_dir), *map(str, files), '--out', str(tmp_path / 'drawn')]) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [line['file'] for line in lines] == [str(file) for file in files]
  for line in lines:
    assert len(line['attributes']) == 40
    assert set(line['landmarks']) == {'lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth'}
  stem = pictures[0].stem
  assert {path.stem for path in (tmp_path / 'drawn').iterdir()} == {stem, f'{stem}_2', pictures[1].stem}


def test_a_folder_gives_its_pictures_by_name_and_a_table_has_a_row_for_each(capsys, trained_dir, pictures, tmp_path):
  (tmp_path / 'pictures').mkdir()
  for name in ('b.jpg', 'a.JPEG'):
    shutil.copy(pictures[0], tmp_path / 'pictures' / name)
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


def test_bad_images_are_named_and_the_good_ones_still_done(capsys, trained_dir, pictures, tmp_path):
  (tmp_path / 'text.jpg').write_text('not an image')
  (tmp_path / 'cut.jpg').write_bytes(pictures[0].read_bytes()[:500])
  (tmp_path / 'empty').mkdir()
  bad = [tmp_path / 'text.jpg', tmp_path / 'cut.jpg', tmp_path / 'missing.jpg', tmp_path / 'empty']
  mixed = [bad[0], pictures[0], *bad[1:], pictures[1]]
  assert main(['predict', '--workdir', str(trained_dir), *map(str, mixed)]) == 2
  out, err = capsys.readouterr()
  assert [json.loads(line)['file'] for line in out.splitlines()] == [str(face) for face in pictures]
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


def test_a_place_for_drawings_that_is_a_file_is_refused(refused, trained_dir, pictures, tmp_path):
  (tmp_path / 'file').write_text('')
  assert f'--out: cannot make the folder {tmp_path / "file"}' in refused(
    'predict', '--workdir', trained_dir, pictures[0], '--out', tmp_path / 'file'
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
def test_links_that_lead_to_each_other_are_named(refused, trained_dir, pictures, tmp_path):
  (tmp_path / 'a').symlink_to(tmp_path / 'b')
  (tmp_path / 'b').symlink_to(tmp_path / 'a')
  loop = tmp_path / 'a'
  for arguments in (
    ['predict', '--workdir', trained_dir, pictures[0], '--out', loop],
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
