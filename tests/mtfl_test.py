"""MTFL is read whole, its test faces are never cropped, and bad rows are refused in one line that says where."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtl_jax import cli
from mtl_jax.data.sources.mtfl import open_mtfl, square_around
from mtl_jax.data.store.reader import open_store
from mtl_jax.data.store.writer import prepare
from mtl_jax.errors import DataError

FILES = ('training.txt', 'testing.txt')
LABELS = tuple(f'{p}_{a}' for p in ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth') for a in 'xy')
# x of the five points, then y; gender, smile, glasses, pose.
ROW = '10.5 30.25 20 12 28 15 16 25 35 36'
MARKS = ('1 1 2 3', '2 2 1 1', '1 2 2 5', '2 1 2 2')


def write_mtfl(directory: Path, *, train: int = 12, test: int = 3, size: tuple[int, int] = (40, 50)) -> None:
  """Writes random images, and text as MTFL has it: `\\` or `/`, blanks before, CRLF and an empty line after."""
  rng = np.random.default_rng(0)
  names = {FILES[0]: [f'{("lfw_5590", "net_7876")[i % 2]}\\face_{i}.jpg' for i in range(train)]}
  names[FILES[1]] = [f'AFLW/{i:04d}-image.jpg' for i in range(test)]
  for file, listed in names.items():
    for row, name in enumerate(listed):
      path = directory / name.replace('\\', '/')
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
      (pixels.convert('L') if file == FILES[1] and row == 0 else pixels).save(path)
    rows = [f' {name} {ROW} {MARKS[row % 4]}\r\n' for row, name in enumerate(listed)]
    (directory / file).write_text(''.join([*rows, ' \r\n'])[1:], newline='')


def refusal(directory: Path, **options) -> str:
  """The one line with which a folder is refused."""
  with pytest.raises(DataError) as caught:
    open_mtfl(directory, **options)
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_tasks_and_labels_are_what_the_rows_say(tmp_path):
  write_mtfl(tmp_path)
  source = open_mtfl(tmp_path)
  assert [(task.kind, task.name, task.labels) for task in source.tasks] == [
    ('landmarks', 'landmarks', LABELS),
    ('binary', 'gender', ('Male',)),
    ('binary', 'smile', ('Smiling',)),
    ('binary', 'glasses', ('Eyeglasses',)),
    ('categorical', 'pose', ('pose',)),
  ]
  records = list(source.records())
  assert (source.name, source.notes, len(records)) == ('mtfl', (), 15)
  first = records[0]
  assert (first.name, first.image) == ('lfw_5590/face_0.jpg', tmp_path / 'lfw_5590' / 'face_0.jpg')
  assert first.labels['landmarks'].tolist() == [10.5, 15, 30.25, 16, 20, 25, 12, 35, 28, 36]
  said = [[record.labels[task][0] for task in ('gender', 'smile', 'glasses', 'pose')] for record in records[:4]]
  assert said == [[1, 1, 0, 2], [0, 0, 1, 0], [1, 0, 0, 4], [0, 1, 0, 1]]
  assert {record.identity for record in records} == {-1}
  assert all(values.dtype == np.float32 for values in first.labels.values())


def test_a_mirrored_pose_looks_the_other_way(tmp_path):
  write_mtfl(tmp_path)
  pose = open_mtfl(tmp_path).tasks[-1].to_json()
  assert pose['classes'] == ('left_profile', 'left', 'frontal', 'right', 'right_profile')
  assert pose['mirrored'] == (4, 3, 2, 1, 0)


def test_a_fixed_tenth_of_the_training_images_is_for_validation(tmp_path):
  write_mtfl(tmp_path, train=200, size=(2, 2))
  for row in range(200):
    (tmp_path / ('lfw_5590', 'net_7876')[row % 2] / f'face_{row}.jpg').write_text(f'face {row}')
  splits = {record.name: record.split for record in open_mtfl(tmp_path).records()}
  val = {name for name, split in splits.items() if split == 'val'}
  assert 10 <= len(val) <= 30
  assert 'lfw_5590/face_4.jpg' in val  # The digest of its bytes begins with 162ef2dc, that is 372175580.
  assert {name for name, split in splits.items() if split == 'test'} == {f'AFLW/{i:04d}-image.jpg' for i in range(3)}
  rows = (tmp_path / FILES[0]).read_text().split('\n')
  (tmp_path / FILES[0]).write_text('\n'.join(row.replace('\\', '/') for row in rows[50:]))
  assert {r.name for r in open_mtfl(tmp_path).records() if r.split == 'val'} <= val


def test_copies_of_an_image_are_in_one_split(tmp_path):
  write_mtfl(tmp_path, train=40, size=(2, 2))
  for content in ('face 0', 'face 1', 'face 2', 'another'):
    for path in (tmp_path / 'lfw_5590').iterdir():
      path.write_text(content)
    assert len({record.split for record in open_mtfl(tmp_path).records() if record.name.startswith('lfw_5590')}) == 1


def test_an_image_that_cannot_be_read_is_named(tmp_path):
  write_mtfl(tmp_path)
  path = tmp_path / 'lfw_5590' / 'face_2.jpg'
  path.unlink()
  path.mkdir()
  assert refusal(tmp_path) == f'{path}: cannot be read: Is a directory'


def test_grey_images_and_mixed_sizes_are_prepared(tmp_path):
  write_mtfl(tmp_path / 'source')
  Image.new('RGB', (80, 100)).save(tmp_path / 'source' / 'AFLW' / '0001-image.jpg')
  prepare(open_mtfl(tmp_path / 'source'), tmp_path / 'set', image_size=(8, 8), log=print)
  opened = open_store(tmp_path / 'set')
  assert all(mask.all() for mask in opened.mask.values())
  rows = [opened.names.index(f'AFLW/000{i}-image.jpg') for i in (0, 1)]
  assert opened.source_size[rows].tolist() == [[40, 50], [80, 100]]
  np.testing.assert_allclose(opened.labels['landmarks'][rows, 0], [10.5 / 40, 10.5 / 80])
  grey = opened.images[rows[0]]
  assert (grey == grey[..., :1]).all()


@pytest.mark.parametrize(
  ('file', 'split', 'kept'), [(FILES[0], 'train', {'test'}), (FILES[1], 'test', {'train', 'val'})]
)
def test_one_file_alone_can_be_prepared_and_the_other_is_reported_missing(tmp_path, file, split, kept):
  write_mtfl(tmp_path, train=40)
  (tmp_path / file).unlink()
  source = open_mtfl(tmp_path, crop_margin=0.5 if split == 'train' else None)
  assert source.notes == (f'warning: {file} is missing, so there are no {split} images',)
  assert set(source.splits) == kept


def test_a_folder_that_is_not_mtfl_is_told_what_was_looked_for(tmp_path):
  assert 'no such folder' in refusal(tmp_path / 'nowhere')
  assert 'neither training.txt nor testing.txt' in refusal(tmp_path)


def test_only_train_images_are_cropped(tmp_path):
  write_mtfl(tmp_path, train=40)
  whole, cropped = (list(open_mtfl(tmp_path, crop_margin=margin).records()) for margin in (None, 0.5))
  assert {record.split for record in cropped} == {'train', 'val', 'test'}
  assert all(record.crop is None for record in whole)
  for one, other in zip(whole, cropped, strict=True):
    assert (one.name, one.split) == (other.name, other.split)
    assert (other.crop is not None) == (other.split == 'train')
    corner = np.tile(other.crop[:2] if other.crop else (0, 0), 5)
    np.testing.assert_array_equal(other.labels['landmarks'] + corner, one.labels['landmarks'])
  assert open_mtfl(tmp_path, crop_margin=0.5).notes[0].endswith('a margin of 0.5; others stay whole')


def test_landmarks_stay_on_the_same_pixels_of_a_cropped_face(tmp_path):
  write_mtfl(tmp_path / 'source', train=40, test=0)
  (tmp_path / 'source' / FILES[1]).unlink()
  picture = np.zeros((50, 40, 3), np.uint8)
  points = np.array([[10, 15], [30, 16], [20, 25], [12, 35], [28, 36]])
  picture[points[:, 1], points[:, 0]] = 255
  for path in (tmp_path / 'source').rglob('*.jpg'):
    Image.fromarray(picture).save(path, 'PNG')
  text = (tmp_path / 'source' / FILES[0]).read_text()
  centres = ' '.join(f'{value + 0.5}' for value in points.T.ravel())
  (tmp_path / 'source' / FILES[0]).write_text(text.replace(ROW, centres))
  for margin in (0.0, 0.2, 2.0):
    out = tmp_path / f'set{margin}'
    source = open_mtfl(tmp_path / 'source', crop_margin=margin)
    side = next(record.crop[2] - record.crop[0] for record in source.records() if record.crop)
    prepare(source, out, image_size=(side, side), log=print)
    opened = open_store(out)
    row = opened.split('train')[0]
    assert opened.source_size[row].tolist() == [side, side]
    assert opened.mask['landmarks'][row].all()
    x, y = (opened.labels['landmarks'][row].reshape(5, 2) * side).astype(int).T
    assert (opened.images[row][y, x] == 255).all()
    assert np.count_nonzero(opened.images[row][..., 0]) == 5  # Black where the crop reaches past the image.


@given(
  points=st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 2), min_size=5, max_size=5).map(np.array),
  margin=st.floats(0, 10),
)
def test_a_crop_is_a_square_that_holds_every_landmark(points, margin):
  left, top, right, bottom = square_around(points, margin)
  assert right - left == bottom - top > 0
  room = margin * np.ptp(points, axis=0).max() - 1e-6
  assert (points.min(0) - room >= (left, top)).all()
  assert (points.max(0) + room <= (right, bottom)).all()


@pytest.mark.parametrize('margin', [-0.1, float('nan'), float('inf'), 11])
def test_a_margin_that_is_none_is_refused(tmp_path, margin):
  assert 'crop_margin must be from 0 to 10' in refusal(tmp_path, crop_margin=margin)


def test_landmarks_on_one_point_cannot_be_cropped_to(tmp_path):
  write_mtfl(tmp_path)
  path = tmp_path / FILES[0]
  path.write_text(path.read_text().replace(f'face_7.jpg {ROW}', 'face_7.jpg ' + ' '.join(['5'] * 10)))
  assert len(open_mtfl(tmp_path).images) == 15
  assert f'{path}: line 8: the landmarks of ' in refusal(tmp_path, crop_margin=1.0)


def test_a_crop_too_large_to_be_one_names_the_image(tmp_path):
  write_mtfl(tmp_path / 'source')
  path = tmp_path / 'source' / FILES[0]
  path.write_text(path.read_text().replace(ROW, ROW.replace('10.5', '999999')))
  with pytest.raises(DataError, match=r'face_\d+\.jpg: is no readable image'):
    prepare(open_mtfl(tmp_path / 'source', crop_margin=10), tmp_path / 'set', image_size=(8, 8), log=print)


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize(
  ('pattern', 'replacement', 'line', 'said'),
  [
    (r'^( \S+ .*) \S+$', r'\1', 2, 'too few columns: 14, not 15'),
    (r'^( \S+ .*)$', r'\1 1', 2, 'too many columns: 16, not 15'),
    (r'^( \S+ .*) \S+$', r'\1 6', 2, "is '6', not 1 (left profile) to 5 (right profile)"),
    (r'^( \S+ .*) \S+$', r'\1 0', 2, "'pose' of"),
    (r'^( \S+ .*) \S+( \S+ \S+ \S+)$', r'\1 3\2', 2, "is '3', not 1 (male) or 2 (female)"),
    (r'^( \S+ .*) \S+( \S+ \S+)$', r'\1 0\2', 2, "'Smiling' of"),
    (r'^( \S+ .*) \S+( \S+)$', r'\1 1.5\2', 2, "'Eyeglasses' of"),
    (r'^( \S+) \S+', r'\1 12px', 2, "is '12px', not a number of pixels"),
    (r'^( \S+) \S+', r'\1 nan', 2, "'lefteye_x' of"),
    (r'^( \S+ \S+) \S+', r'\1 1e7', 2, "'righteye_x' of"),
    (r'^( \S+( \S+){5}) \S+', r'\1 x', 2, "'lefteye_y' of"),
    (r'^ (\S*)1(\S*) ', r' \g<1>0\2 ', 2, 'was already named in line 1'),
    (r'^ \S+ ', r' nowhere/face.jpg ', 2, "'nowhere/face.jpg' is not in"),
    (r'^ \S+ ', r' ../../face.jpg ', 2, "'../../face.jpg' is not in"),
    (r'^ \S+ ', r' \\etc\\passwd ', 2, "'/etc/passwd' is not in"),
    (r'\A(.|\n)*', '', None, 'is empty'),
    (r'\A(.|\n)*', '\xa0', None, 'holds no row'),
  ],
)
def test_bad_text_names_file_and_line(tmp_path, file, pattern, replacement, line, said):
  write_mtfl(tmp_path, train=4)
  path = tmp_path / file
  text = path.read_text().replace('net_7876', 'lfw_5590')
  (tmp_path / 'net_7876').rename(tmp_path / 'other')
  for image in (tmp_path / 'other').iterdir():
    image.rename(tmp_path / 'lfw_5590' / image.name)
  if file == FILES[1]:
    (tmp_path / FILES[0]).unlink()
  path.write_text(re.sub(pattern, replacement, text, count=1, flags=re.MULTILINE), 'utf-8')
  message = refusal(tmp_path)
  assert message.startswith(f'{path}: ' + (f'line {line}: ' if line else ''))
  assert said in message


@pytest.mark.parametrize(('file', 'image'), [(FILES[0], 'net_7876/face_3.jpg'), (FILES[1], 'AFLW/0002-image.jpg')])
def test_a_missing_image_names_file_and_line(tmp_path, file, image):
  write_mtfl(tmp_path)
  (tmp_path / image).unlink()
  line = {FILES[0]: 4, FILES[1]: 3}[file]
  assert f'{tmp_path / file}: line {line}: {image!r} is not in {tmp_path} (1 such' in refusal(tmp_path)


def test_a_test_image_must_not_be_trained_on(tmp_path):
  write_mtfl(tmp_path)
  path = tmp_path / FILES[1]
  path.write_text(path.read_text().replace('AFLW/0001-image.jpg', 'net_7876/face_1.jpg'))
  assert f'{path}: line 2' in refusal(tmp_path)
  assert 'already named by training.txt in line 2' in refusal(tmp_path)


def test_the_command_line_crops_mtfl_and_refuses_to_crop_other_sets(tmp_path, capsys):
  write_mtfl(tmp_path / 'source')
  arguments = ['--source', str(tmp_path / 'source'), '--out', str(tmp_path / 'set'), '--crop_margin', '0.5']
  arguments += ['--image_size', '8', '8']
  for name in ('celeba', 'utkface', 'synthetic'):
    assert cli.main(['prepare', name, *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f'mtl-jax: error: prepare {name}: --crop_margin is for mtfl only; leave it out']
  assert cli.main(['prepare', 'mtfl', *arguments]) == 0
  opened = open_store(tmp_path / 'set')
  assert len({tuple(opened.source_size[row]) for row in opened.split('train')} & {(40, 50)}) == 0
  assert opened.schema['options'] == {'crop_margin': 0.5}


def real_mtfl() -> Path:
  if 'MTL_JAX_REAL_DATA' not in os.environ:
    pytest.skip('MTL_JAX_REAL_DATA names no folder of real faces')
  return Path(os.environ['MTL_JAX_REAL_DATA']) / 'mtfl'


def test_real_faces_are_read_whole():
  source = open_mtfl(real_mtfl())
  assert [source.splits.count(split) for split in ('train', 'val', 'test')] == [7120, 860, 2995]
  points = source.labels['landmarks'].reshape(-1, 5, 2)
  upright = points[:, 0, 1] < points[:, 3, 1]
  assert upright.mean() > 0.998  # A few faces of the test rows are upside down.
  assert (points[upright, 0, 0] < points[upright, 1, 0]).all()  # The left eye is the viewer's.
  assert source.labels['gender'].sum() == 4632 + 1173  # Men.
  # A face that looks to the viewer's left has its nose left of the middle between the eyes.
  turned = points[:, 2, 0] - points[:, :2, 0].mean(1)
  medians = [np.median(turned[source.labels['pose'][:, 0] == pose]) for pose in range(5)]
  assert medians[1] < medians[2] < medians[3]
  assert medians[0] < medians[2] < medians[4]


def test_real_training_faces_can_be_framed_as_the_test_faces_are(tmp_path):
  source = open_mtfl(real_mtfl(), crop_margin=0.9)
  keep = {'train': 200, 'test': 200}
  rows = [row for split, number in keep.items() for row in np.flatnonzero(np.array(source.splits) == split)[:number]]
  source.splits = [source.splits[row] for row in rows]
  source.images = dict(list(source.images.items())[row] for row in rows)
  source.labels = {task: values[rows] for task, values in source.labels.items()}
  prepare(source, tmp_path / 'set', image_size=(16, 16), log=print)
  opened = open_store(tmp_path / 'set')
  assert opened.mask['landmarks'].all()
  extents = np.ptp(opened.labels['landmarks'].reshape(-1, 5, 2), axis=1).max(-1)
  train, test = (np.median(extents[list(opened.split(split))]) for split in ('train', 'test'))
  assert abs(train - test) < 0.03
