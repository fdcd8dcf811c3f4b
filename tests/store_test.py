"""A prepared set holds what its source said, whole or not at all, and is refused once it was touched."""

import dataclasses
import errno
import io
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from celeba_layout import write_celeba
from PIL import Image

from mtl_jax.data.source import Record
from mtl_jax.data.sources.celeba import open_celeba
from mtl_jax.data.sources.image_file import decode
from mtl_jax.data.store import reader as store
from mtl_jax.data.store.reader import open_store
from mtl_jax.data.store.writer import prepare
from mtl_jax.errors import DataError
from mtl_jax.tasks import BinaryTask, LandmarkTask, Task

SIZE = (12, 10)
FILES = (
  'images.npy',
  'source_size.npy',
  'identity.npy',
  'names.txt',
  'labels/attributes.npy',
  'labels/landmarks.npy',
  'mask/attributes.npy',
  'mask/landmarks.npy',
)


def refusal(action, *args, **kwargs) -> str:
  """The one line with which an action is refused."""
  with pytest.raises(DataError) as caught:
    action(*args, **kwargs)
  message = str(caught.value)
  assert '\n' not in message
  return message


def prepared(tmp_path, **layout):
  """A small set, what it was made of, and the lines that were logged."""
  faces = write_celeba(tmp_path / 'source', **layout)
  lines: list[str] = []
  prepare(open_celeba(tmp_path / 'source'), tmp_path / 'set', image_size=SIZE, workers=2, log=lines.append)
  return open_store(tmp_path / 'set'), faces, lines


class OneTask:
  """A source of any records; `during` is called before each."""

  name = 'one'
  tasks: tuple[Task, ...] = (BinaryTask('attributes', ('Smiling', 'Male')),)

  def __init__(self, records, during=lambda: None):
    self._records, self._during = records, during

  def records(self):
    for record in self._records:
      self._during()
      yield record


def one_record(directory: Path, name='a.png', labels=(1, 0), split='train') -> Record:
  directory.mkdir(exist_ok=True)
  Image.new('RGB', (8, 8), (10, 20, 30)).save(directory / name)
  return Record(name, split, directory / name, {'attributes': np.array(labels, np.float32)})


def test_a_store_holds_what_the_source_said(tmp_path):
  opened, faces, lines = prepared(tmp_path)
  order = np.argsort(faces.splits, kind='stable')
  assert opened.names == [faces.names[row] for row in order]
  assert opened.image_size == SIZE
  assert opened.tasks == open_celeba(tmp_path / 'source').tasks
  for row, name in enumerate(opened.names):
    np.testing.assert_array_equal(opened.images[row], decode(faces.images / name, SIZE)[0])
  np.testing.assert_array_equal(opened.labels['attributes'], faces.attributes[order])
  np.testing.assert_array_equal(
    opened.labels['landmarks'], (faces.landmarks[order] / ((20, 24) * 5)).astype(np.float32)
  )
  np.testing.assert_array_equal(opened.identity, faces.identity[order])
  np.testing.assert_array_equal(opened.source_size, np.tile((20, 24), (7, 1)))
  assert all(mask.all() for mask in opened.mask.values())
  assert [opened.images.dtype, opened.source_size.dtype, opened.identity.dtype] == [np.uint8, np.int32, np.int32]
  assert [opened.labels['landmarks'].dtype, opened.mask['landmarks'].dtype] == [np.float32, np.bool_]
  assert lines[0] == 'celeba: kept 7 images at 12x10: train 4, val 1, test 2; refused 0'


def test_rows_are_ordered_by_split(tmp_path):
  opened, faces, _ = prepared(tmp_path)
  assert opened.splits == {'train': range(4), 'val': range(4, 5), 'test': range(5, 7)}
  for number, split in enumerate(('train', 'val', 'test')):
    names = [name for name, other in zip(faces.names, faces.splits, strict=True) if other == number]
    assert [opened.names[row] for row in opened.split(split)] == names


def test_the_same_source_gives_the_same_checksum_whatever_the_number_of_threads(tmp_path):
  opened, _, _ = prepared(tmp_path)
  prepare(open_celeba(tmp_path / 'source'), tmp_path / 'again', image_size=SIZE, workers=1, log=print)
  assert open_store(tmp_path / 'again').checksum == opened.checksum


def test_missing_labels_are_masked_zeros(tmp_path):
  records = [one_record(tmp_path / 'x', 'a.png', (1, np.nan)), one_record(tmp_path / 'x', 'b.png')]
  records.append(Record('c.png', 'train', records[0].image, {}))
  lines: list[str] = []
  prepare(OneTask(records), tmp_path / 'set', image_size=SIZE, log=lines.append)
  opened = open_store(tmp_path / 'set')
  assert opened.labels['attributes'].tolist() == [[1, 0], [1, 0], [0, 0]]
  assert opened.mask['attributes'].tolist() == [[True, False], [True, True], [False, False]]
  assert opened.identity.tolist() == [-1, -1, -1]
  assert 'attributes: 6 labels, of which 3 are masked' in lines


def test_a_landmark_outside_its_image_is_masked_and_reported(tmp_path):
  write_celeba(tmp_path / 'source')
  path = tmp_path / 'source' / 'list_landmarks_align_celeba.txt'
  rows = path.read_text().splitlines()
  rows[4] = '000003.jpg  25 3  4 -1  5 5  20 24  0 0'
  path.write_text('\n'.join(rows))
  lines: list[str] = []
  prepare(open_celeba(tmp_path / 'source'), tmp_path / 'set', image_size=SIZE, log=lines.append)
  opened = open_store(tmp_path / 'set')
  row = opened.names.index('000003.jpg')
  assert opened.mask['landmarks'][row].tolist() == [False] * 4 + [True] * 6
  assert opened.labels['landmarks'][row].tolist() == [0] * 4 + [0.25, np.float32(5 / 24), 1, 1, 0, 0]
  assert (~opened.mask['landmarks']).sum() == 4
  assert any('landmarks: 4 labels lie outside' in line and '000003.jpg' in line for line in lines)


@pytest.mark.parametrize(('points', 'warned'), [([0.3, 0.9], True), ([3, 0.9], False)])
def test_landmarks_as_fractions_are_warned_of(tmp_path, points, warned):
  source, lines = OneTask([dataclasses.replace(one_record(tmp_path / 'in'), labels={'centre': points})]), []
  source.tasks = (LandmarkTask('centre', ('middle_x', 'middle_y')),)
  prepare(source, tmp_path / 'set', image_size=SIZE, log=lines.append)
  assert any('warning: centre' in line and 'fractions' in line for line in lines) == warned


def test_a_split_without_rows_is_reported_and_refused_only_when_asked_for(tmp_path):
  opened, _, lines = prepared(tmp_path, splits=(0, 0, 2))
  assert 'warning: split val has no rows' in lines
  assert len(opened.split('train')) == 2
  assert refusal(opened.split, 'val') == (f"split 'val' of {tmp_path / 'set'} has no rows; it has train (2), test (1)")
  assert 'it has train (2), test (1)' in refusal(opened.split, 'validation')


def test_notes_of_a_source_are_logged(tmp_path):
  write_celeba(tmp_path)
  (tmp_path / 'list_landmarks_align_celeba.txt').unlink()
  lines: list[str] = []
  prepare(open_celeba(tmp_path), tmp_path / 'set', image_size=SIZE, log=lines.append)
  assert lines[0].startswith('warning: list_landmarks_align_celeba is missing')
  assert [task.name for task in open_store(tmp_path / 'set').tasks] == ['attributes']


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'CMYK', 'P', '1', 'LA', 'I;16'])
def test_images_of_any_mode_are_read_as_rgb(tmp_path, mode):
  path = tmp_path / ('image.tif' if mode == 'CMYK' else 'image.png')
  if mode == 'I;16':
    Image.fromarray(np.full((6, 5), 200 * 256, np.uint16)).save(path)
  else:
    Image.new('RGB', (5, 6), (200, 200, 200)).convert(mode).save(path)
  pixels, _, size = decode(path, SIZE)
  assert (pixels.shape, pixels.dtype, size) == ((*SIZE, 3), np.uint8, (5, 6))
  assert abs(pixels.mean() - 200) < {'1': 60, 'P': 5}.get(mode, 1)  # Few colours are dithered or rounded.


def test_a_photograph_taken_sideways_is_turned_upright():
  exif = Image.Exif()
  exif[0x0112] = 6  # The camera was turned by a quarter.
  file = io.BytesIO()
  Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 4, 1)).save(file, 'PNG', exif=exif)
  pixels, _, size = decode(file, (4, 2))
  assert size == (2, 4)
  assert pixels[:, :, 0].tolist() == [[255, 0]] * 4


def test_a_crop_is_read_from_the_upright_image_and_is_black_beyond_it(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  sideways = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
  upright = np.rot90(sideways, -1)  # [[4, 1], [5, 2], [6, 3]]
  Image.fromarray(sideways).save(tmp_path / 'a.png', exif=exif)
  record = Record('a.png', 'train', tmp_path / 'a.png', {}, crop=(1, -1, 4, 3))
  prepare(OneTask([record]), tmp_path / 'set', image_size=(4, 3), log=print)
  opened = open_store(tmp_path / 'set')
  assert opened.source_size.tolist() == [[3, 4]]
  expected = np.zeros((4, 3), np.uint8)
  expected[1:, 0] = upright[:, 1]
  assert opened.images[0][..., 0].tolist() == expected.tolist()


@pytest.mark.parametrize('crop', [(2, 0, 2, 4), (0, 4, 4, 2)])
def test_an_empty_crop_is_refused(tmp_path, crop):
  record = dataclasses.replace(one_record(tmp_path / 'x'), crop=crop)
  assert "'a.png': the crop" in refusal(prepare, OneTask([record]), tmp_path / 'set', image_size=SIZE, log=print)


@pytest.mark.parametrize('kept', [0, 40, 0.5, 0.95])
def test_a_truncated_or_garbled_image_is_named(tmp_path, kept):
  faces = write_celeba(tmp_path / 'source', width=60, height=60)
  path = faces.images / faces.names[2]
  path.write_bytes(path.read_bytes()[: kept if kept > 1 else int(kept * path.stat().st_size)])
  source = open_celeba(tmp_path / 'source')
  assert str(path) in refusal(prepare, source, tmp_path / 'set', image_size=SIZE, log=print)
  assert [entry.name for entry in tmp_path.iterdir()] == ['source']


def test_an_image_too_large_to_be_one_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
  record = one_record(tmp_path / 'x')
  assert str(record.image) in refusal(decode, record.image, SIZE)


def test_a_missing_image_is_named(tmp_path):
  assert refusal(decode, tmp_path / 'no.jpg', SIZE) == f'{tmp_path / "no.jpg"}: no such image; check the path'


@pytest.mark.parametrize('error', [KeyboardInterrupt, DataError, ZeroDivisionError])
def test_an_interrupted_prepare_leaves_nothing(tmp_path, error):
  records = [one_record(tmp_path / 'x')]

  def interrupt():
    raise error('stop')

  with pytest.raises(error):
    prepare(OneTask(records, interrupt), tmp_path / 'set', image_size=SIZE, log=print)
  assert [entry.name for entry in tmp_path.iterdir()] == ['x']
  prepare(OneTask(records), tmp_path / 'set', image_size=SIZE, log=print)
  assert len(open_store(tmp_path / 'set').names) == 1


def prepare_in_a_process(source: Path, out: Path) -> None:
  prepare(open_celeba(source), out, image_size=(64, 64), workers=1, log=print)


def test_a_killed_prepare_leaves_nothing_that_opens_and_the_next_one_cleans_up(tmp_path):
  write_celeba(tmp_path / 'source', splits=(0,) * 300, width=178, height=218)
  out, partial = tmp_path / 'set', tmp_path / '.set.partial'
  process = multiprocessing.get_context('spawn').Process(target=prepare_in_a_process, args=(tmp_path / 'source', out))
  process.start()
  while not partial.exists() and process.is_alive():
    time.sleep(0.001)
  time.sleep(np.random.default_rng().uniform(0, 0.15))
  assert process.pid
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  if out.exists():  # It was quicker than the signal.
    assert len(open_store(out).names) == 300
    return
  assert 'no such folder' in refusal(open_store, out)
  if not (partial / 'schema.json').exists():  # Only the renaming may be left to do.
    assert 'is no prepared set' in refusal(open_store, partial)
  prepare_in_a_process(tmp_path / 'source', out)
  assert len(open_store(out).names) == 300
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ['set', 'source']


def test_a_second_prepare_is_refused_while_one_runs(tmp_path):
  records = [one_record(tmp_path / 'x')]
  reading, go_on = threading.Event(), threading.Event()

  def wait():
    reading.set()
    assert go_on.wait(10)

  first = threading.Thread(
    target=prepare, args=(OneTask(records, wait), tmp_path / 'set'), kwargs={'image_size': SIZE, 'log': print}
  )
  first.start()
  assert reading.wait(10)
  message = refusal(prepare, OneTask(records), tmp_path / 'set', image_size=SIZE, log=print)
  go_on.set()
  first.join()
  assert 'another process is making it' in message
  assert open_store(tmp_path / 'set').names == ['a.png']


def test_a_taken_folder_is_refused_and_an_empty_one_is_not(tmp_path):
  source = OneTask([one_record(tmp_path / 'x')])
  (tmp_path / 'set').mkdir()
  prepare(source, tmp_path / 'set', image_size=SIZE, log=print)
  assert 'already holds a prepared set' in refusal(prepare, source, tmp_path / 'set', image_size=SIZE, log=print)
  assert 'no empty folder' in refusal(prepare, source, tmp_path / 'x', image_size=SIZE, log=print)
  assert 'no empty folder' in refusal(prepare, source, tmp_path / 'x' / 'a.png', image_size=SIZE, log=print)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  source = OneTask([one_record(tmp_path / 'x')])
  monkeypatch.setattr(os, 'pwrite', full)
  assert 'the disk is full' in refusal(prepare, source, tmp_path / 'set', image_size=SIZE, log=print)
  monkeypatch.setattr(os, 'pwrite', lambda *_: 3)
  assert 'the disk is full' in refusal(prepare, source, tmp_path / 'set', image_size=SIZE, log=print)
  assert [entry.name for entry in tmp_path.iterdir()] == ['x']


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'name': 'twice.png'}, 'named twice'),
    ({'split': 'training'}, "split 'training'"),
    ({'name': 'two\nlines.png'}, 'line break'),
    ({'name': 'carriage\rreturn.png'}, 'line break'),
    ({'name': 'escape\x1b[31m.png'}, 'control character'),
    ({'name': 'not_utf8\udcff.png'}, 'control character'),
    ({'name': 5}, 'must be text'),
    ({'labels': (1, 0, 1)}, '3 labels, not 2'),
    ({'labels': (1, 2)}, 'Male is 2'),
    ({'labels': 'x'}, 'dictionary'),
    ({'labels': {'attributes': None}}, 'attributes'),
    ({'labels': {'attributes': [1, None]}}, 'NaN where one is missing'),
    ({'labels': {'attributes': 1}}, 'an array of shape (), not 2 labels'),
    ({'labels': {'attributes': ['a', 'b']}}, 'must be numbers'),
    ({'labels': {'attributes': [1, 10**400]}}, 'attributes'),
    ({'labels': {'other': [1, 0]}}, "'other'"),
    ({'identity': 2**40}, 'identity'),
    ({'identity': 10**5000}, 'identity'),
    ({'identity': -2}, 'identity'),
    ({'identity': 'a'}, 'identity'),
    ({'identity': float('nan')}, 'identity'),
    ({'identity': None}, 'identity'),
    ({'crop': (0, 0, 4, 4, 4)}, 'crop'),
    ({'crop': (0, 0, 4.5, 4)}, 'crop'),
    ({'crop': (0, 0, None, 4)}, 'crop'),
    ({'crop': 7}, 'crop'),
    ({'image': 3}, 'image'),
    ({'image': lambda: 'text'}, 'must be bytes'),
  ],
)
def test_a_record_that_breaks_the_contract_is_named(tmp_path, change, said):
  record = dataclasses.replace(one_record(tmp_path / 'x', 'b.png'), **change)
  if isinstance(record.labels, tuple):
    record = dataclasses.replace(record, labels={'attributes': np.array(record.labels)})
  records = [one_record(tmp_path / 'x', 'twice.png'), record]
  message = refusal(prepare, OneTask(records), tmp_path / 'set', image_size=SIZE, log=print)
  assert said in message
  assert len(message) < 500
  assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize('size', [(0, 8), (8, -1), (10**9, 10**9), (8, 10**5000)])
def test_an_image_size_that_is_none_is_named(tmp_path, size):
  source = OneTask([one_record(tmp_path / 'x')])
  message = refusal(prepare, source, tmp_path / 'set', image_size=size, log=print)
  assert '--image_size' in message
  assert len(message) < 300


def test_whole_numbers_of_numpy_serve_as_identity_and_crop(tmp_path):
  record = dataclasses.replace(one_record(tmp_path / 'x'), identity=np.int64(7), crop=np.array([0, 0, 4, 4]))
  prepare(OneTask([record]), tmp_path / 'set', image_size=SIZE, log=print)
  opened = open_store(tmp_path / 'set')
  assert opened.identity.tolist() == [7]
  assert opened.source_size.tolist() == [[4, 4]]


def test_a_source_without_rows_and_a_size_of_zero_are_refused(tmp_path):
  assert 'has no rows' in refusal(prepare, OneTask([]), tmp_path / 'set', image_size=SIZE, log=print)
  assert 'image_size' in refusal(prepare, OneTask([]), tmp_path / 'set', image_size=(0, 8), log=print)


def test_a_source_may_be_made_inside_the_new_folder(tmp_path):
  prepare(lambda folder: OneTask([one_record(folder / 'source')]), tmp_path / 'set', image_size=SIZE, log=print)
  assert (tmp_path / 'set' / 'source' / 'a.png').is_file()
  assert open_store(tmp_path / 'set').names == ['a.png']


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('damage', ['flip', 'cut', 'missing'])
def test_a_damaged_file_is_named(tmp_path, file, damage):
  opened, _, _ = prepared(tmp_path)
  path = opened.directory / file
  content = bytearray(path.read_bytes())
  if damage == 'missing':
    path.unlink()
  else:
    content[-1] ^= 1
    path.write_bytes(content if damage == 'flip' else content[:-1])
  said = {'flip': 'was changed', 'cut': f'holds {len(content) - 1} bytes', 'missing': 'is missing'}[damage]
  message = refusal(open_store, opened.directory)
  assert message.startswith(str(path))
  assert said in message


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda text: text.replace('"version": 2', '"version": 3'), 'is of version 3, but this program reads 1 and 2'),
    (lambda text: text.replace('Smiling', 'Smirking'), 'was changed'),
    (lambda text: text[:-9], ' is not as it was written'),
    (lambda _: '[]', ' is not as it was written'),
    (lambda _: '{"version": 1}', ': was changed'),
    (lambda _: '\udcff', ' is not as it was written'),
    (lambda text: json.dumps({**json.loads(text), 'extra': 1}), 'was changed'),
  ],
)
def test_a_changed_schema_is_refused(tmp_path, change, said):
  opened, _, _ = prepared(tmp_path)
  path = opened.directory / 'schema.json'
  path.write_bytes(change(path.read_text()).encode('utf-8', 'surrogateescape'))
  message = refusal(open_store, opened.directory)
  assert message.startswith(str(path))
  assert said in message


def test_a_folder_without_a_prepared_set_says_how_to_make_one(tmp_path):
  assert 'mtl-jax prepare' in refusal(open_store, tmp_path / 'nowhere')
  assert 'mtl-jax prepare' in refusal(open_store, tmp_path)


def test_a_very_large_file_is_compared_at_its_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(store, 'WHOLE_DIGEST_BYTES', 2000)
  monkeypatch.setattr(store, 'END_BYTES', 500)
  opened, _, _ = prepared(tmp_path)
  path = opened.directory / 'images.npy'
  assert path.stat().st_size > 2000
  for where, noticed in ((100, True), (1000, False), (-100, True)):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    if noticed:
      assert 'images.npy: was changed' in refusal(open_store, opened.directory)
      content[where] ^= 1
      path.write_bytes(content)
    else:
      open_store(opened.directory)


@pytest.mark.skipif('MTL_JAX_REAL_DATA' not in os.environ, reason='MTL_JAX_REAL_DATA names no folder of real faces')
def test_real_faces_are_prepared_whole(tmp_path):
  source = open_celeba(Path(os.environ['MTL_JAX_REAL_DATA']) / 'celeba_hq_aligned')
  prepare(source, tmp_path / 'set', image_size=(64, 64), log=print)
  opened = open_store(tmp_path / 'set')
  assert {name: len(rows) for name, rows in opened.splits.items()} == {'train': 7365, 'val': 1237, 'test': 1456}
  assert opened.mask['attributes'].all()
  mean_face = opened.labels['landmarks'].mean(0).reshape(5, 2)
  assert mean_face[0, 0] < mean_face[2, 0] < mean_face[1, 0]  # The left eye is the viewer's.
  assert (mean_face[:2, 1] < mean_face[2, 1]).all()
