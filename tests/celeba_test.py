"""CelebA's layouts read alike, and bad annotation files are refused in one line that says where."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from celeba_layout import ATTRIBUTES, LANDMARKS, write_celeba

from mtl_jax.data.sources.celeba import open_celeba
from mtl_jax.errors import DataError

SPLITS = ('train', 'val', 'test')


def refusal(directory: Path) -> str:
  """The one line with which a folder is refused."""
  with pytest.raises(DataError) as caught:
    open_celeba(directory)
  message = str(caught.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('layout', ['official', 'root', 'kaggle'])
def test_all_layouts_read_alike(tmp_path, layout):
  faces = write_celeba(tmp_path, layout=layout)
  source = open_celeba(tmp_path)
  assert [(task.kind, task.name, task.labels) for task in source.tasks] == [
    ('binary', 'attributes', ATTRIBUTES),
    ('landmarks', 'landmarks', LANDMARKS),
  ]
  records = list(source.records())
  assert source.name == 'celeba'
  assert source.notes == ()
  assert [record.name for record in records] == faces.names
  assert [record.image for record in records] == [faces.images / name for name in faces.names]
  assert [record.split for record in records] == [SPLITS[number] for number in faces.splits]
  assert [record.identity for record in records] == ([-1] * 7 if layout == 'kaggle' else faces.identity.tolist())
  np.testing.assert_array_equal([record.labels['attributes'] for record in records], faces.attributes)
  np.testing.assert_array_equal([record.labels['landmarks'] for record in records], faces.landmarks)
  assert records[0].labels['attributes'].dtype == np.float32


@pytest.mark.parametrize('layout', ['root', 'kaggle'])
def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path, layout):
  faces = write_celeba(tmp_path, layout=layout)
  for path in [*tmp_path.glob('*.txt'), *tmp_path.glob('*.csv')]:
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\r\n') + b'\r\n')
  np.testing.assert_array_equal(open_celeba(tmp_path).labels['attributes'], faces.attributes)
  assert open_celeba(tmp_path).tasks[0].labels == ATTRIBUTES


def test_columns_are_read_by_name_in_any_order(tmp_path):
  faces = write_celeba(tmp_path)
  order = [3, 2, 9, 8, 4, 5, 0, 1, 6, 7]
  rows = [f'{name} ' + ' '.join(map(str, row[order])) for name, row in zip(faces.names, faces.landmarks, strict=True)]
  header = ' '.join(LANDMARKS[column] for column in order)
  (tmp_path / 'list_landmarks_align_celeba.txt').write_text('\n'.join(['7', header, *rows]))
  rows = [f'{name} {2 * row[1] - 1} 1' for name, row in zip(faces.names, faces.attributes, strict=True)]
  (tmp_path / 'list_attr_celeba.txt').write_text('\n'.join(['7', 'Male Never_Heard_Of', *rows]))
  source = open_celeba(tmp_path)
  assert source.tasks[0].labels == ('Male', 'Never_Heard_Of')
  np.testing.assert_array_equal(source.labels['attributes'][:, 0], faces.attributes[:, 1])
  labels = source.tasks[1].labels
  assert labels[:4] == ('righteye_x', 'righteye_y', 'rightmouth_x', 'rightmouth_y')
  columns = [LANDMARKS.index(label) for label in labels]
  np.testing.assert_array_equal(source.labels['landmarks'], faces.landmarks[:, columns])


def test_files_may_list_the_images_in_different_orders(tmp_path):
  faces = write_celeba(tmp_path)
  path = tmp_path / 'list_attr_celeba.txt'
  count, header, *rows = path.read_text().splitlines()
  path.write_text('\n'.join([count, header, *reversed(rows)]))
  np.testing.assert_array_equal(open_celeba(tmp_path).labels['attributes'], faces.attributes)


@pytest.mark.parametrize(
  ('stem', 'lost', 'kept'),
  [('list_attr_celeba', 'attributes', 'landmarks'), ('list_landmarks_align_celeba', 'landmarks', 'attributes')],
)
def test_one_label_file_may_be_missing_and_is_reported(tmp_path, stem, lost, kept):
  write_celeba(tmp_path)
  (tmp_path / f'{stem}.txt').unlink()
  source = open_celeba(tmp_path)
  assert [task.name for task in source.tasks] == [kept]
  assert source.notes == (f'warning: {stem} is missing, so there is no task {lost}',)


@pytest.mark.parametrize('folder', ['img_align_celeba', 'img_align_celeba_png', 'Img/img_align_celeba_png'])
def test_png_images_beside_annotations_that_say_jpg_are_read(tmp_path, folder):
  faces = write_celeba(tmp_path)
  (tmp_path / folder).parent.mkdir(exist_ok=True)
  faces.images.rename(tmp_path / folder)
  for path in (tmp_path / folder).iterdir():
    path.rename(path.with_suffix('.png'))
  source = open_celeba(tmp_path)
  assert [record.name for record in source.records()] == faces.names
  assert [record.image for record in source.records()] == [
    (tmp_path / folder / name).with_suffix('.png') for name in faces.names
  ]
  assert source.notes == ()


def test_images_that_no_file_names_are_left_out_and_reported(tmp_path):
  faces = write_celeba(tmp_path)
  (faces.images / 'extra.jpg').write_bytes(b'')
  source = open_celeba(tmp_path)
  assert len(list(source.records())) == 7
  assert source.notes[0].startswith('warning: 1 images')


def test_a_folder_that_is_not_celeba_is_told_what_was_looked_for(tmp_path):
  assert 'no such folder' in refusal(tmp_path / 'nowhere')
  message = refusal(tmp_path)
  assert 'list_attr_celeba' in message
  assert 'Anno' in message


def test_missing_partition_is_named(tmp_path):
  write_celeba(tmp_path)
  (tmp_path / 'list_eval_partition.txt').unlink()
  assert 'list_eval_partition.txt' in refusal(tmp_path)


def test_missing_image_folder_is_named(tmp_path):
  write_celeba(tmp_path).images.rename(tmp_path / 'elsewhere')
  assert 'img_align_celeba' in refusal(tmp_path)


def test_missing_image_names_the_row(tmp_path):
  faces = write_celeba(tmp_path)
  (faces.images / faces.names[3]).unlink()
  message = refusal(tmp_path)
  assert f'list_eval_partition.txt: line 4: {faces.names[3]!r}' in message


ATTR, MARKS, SPLIT, PERSON = (
  'list_attr_celeba.txt',
  'list_landmarks_align_celeba.txt',
  'list_eval_partition.txt',
  'identity_CelebA.txt',
)


@pytest.mark.parametrize(
  ('file', 'pattern', 'replacement', 'line', 'said'),
  [
    (ATTR, r'^(000002.jpg.*) \S+$', r'\1', 4, 'too few columns: 3, not 4'),
    (ATTR, r'^(000002.jpg.*)$', r'\1 1', 4, 'too many columns: 5, not 4'),
    (ATTR, r'^(000002.jpg.*) \S+$', r'\1 0', 4, "'Young' of '000002.jpg' is '0', not 1 or -1"),
    (ATTR, r'^(000002.jpg.*) \S+$', r'\1 nan', 4, 'not 1 or -1'),
    (ATTR, r'\A7$', '8', 1, 'says 8 rows, but 7 follow'),
    (ATTR, r'\A7\n', '', 1, 'must be the number of rows'),
    (ATTR, r'\A(7\n.*\n)(.|\n)*', r'\1', None, 'holds no row'),
    (ATTR, r'\A7\n(.|\n)*', '7\n', 2, 'must name the columns'),
    (ATTR, r'Male', 'Smiling', 2, "names the column 'Smiling' twice"),
    (ATTR, r'^000003.jpg', '000002.jpg', 5, "'000002.jpg' was already named in line 4"),
    (ATTR, r'(.|\n)*', '', None, 'is empty'),
    (MARKS, r'^(000002.jpg.*) \S+$', r'\1 12px', 4, "'rightmouth_y' of '000002.jpg' is '12px', not a number of pixels"),
    (MARKS, r'^(000002.jpg.*) \S+$', r'\1 inf', 4, 'not a number of pixels'),
    (MARKS, r'^(000002.jpg.*) \S+$', r'\1 1_0', 4, 'not a number of pixels'),
    (MARKS, r'nose_y', 'nose', 2, 'in pairs'),
    (MARKS, r'righteye_x righteye_y', 'mideye_x mideye_y', 2, "'lefteye' needs its right partner"),
    (SPLIT, r'^(000002.jpg) .*$', r'\1 3', 2, "'partition' of '000002.jpg' is '3', not 0 (train), 1 (val) or 2 (test)"),
    (SPLIT, r'(.|\n)*', '\xa0', None, 'holds no row'),
    (PERSON, r'^(000002.jpg) .*$', r'\1 -5', 2, "not a person's number"),
  ],
)
def test_bad_text_names_file_and_line(tmp_path, file, pattern, replacement, line, said):
  write_celeba(tmp_path)
  path = tmp_path / file
  text = re.sub(pattern, replacement, path.read_text(), count=1, flags=re.MULTILINE)
  path.write_text(text, 'utf-8')
  message = refusal(tmp_path)
  assert message.startswith(f'{path}: ' + (f'line {line}: ' if line else ''))
  assert said in message


@pytest.mark.parametrize(
  ('pattern', 'replacement', 'line', 'said'),
  [
    (r'^image_id', 'id', 1, "must begin with 'image_id'"),
    (r'Male', 'Smiling', 1, "names the column 'Smiling' twice"),
    (r'Male', '', 1, 'must name the columns'),
    (r'^(000002.jpg.*),\S+$', r'\1', 3, 'too few columns'),
    (r'^(000002.jpg.*),\S+$', r'\1,yes', 3, "is 'yes', not 1 or -1"),
    (r'^000002.jpg', '"000002.jpg"x', 3, 'is no CSV'),
    (r'^000003.jpg', '000002.jpg', 4, "'000002.jpg' was already named in line 3"),
  ],
)
def test_bad_csv_names_file_and_line(tmp_path, pattern, replacement, line, said):
  write_celeba(tmp_path, layout='kaggle')
  path = tmp_path / 'list_attr_celeba.csv'
  path.write_text(re.sub(pattern, replacement, path.read_text(), count=1, flags=re.MULTILINE))
  message = refusal(tmp_path)
  assert message.startswith(f'{path}: line {line}: ')
  assert said in message


def test_bytes_that_are_no_text_name_the_line(tmp_path):
  write_celeba(tmp_path)
  path = tmp_path / ATTR
  path.write_bytes(path.read_bytes().replace(b'000003', b'\xff\xfe0003'))
  assert f'{path}: line 5: is no UTF-8' in refusal(tmp_path)


@pytest.mark.parametrize('file', [ATTR, MARKS, SPLIT, PERSON])
def test_a_name_in_one_file_only_names_both_files(tmp_path, file):
  write_celeba(tmp_path)
  path = tmp_path / file
  path.write_text(path.read_text().replace('000003.jpg', 'other.jpg').replace('000004.jpg', 'another.jpg'))
  if file == SPLIT:
    for name in ('other.jpg', 'another.jpg'):
      (tmp_path / 'img_align_celeba' / name).write_bytes(b'')
  message = refusal(tmp_path)
  assert file in message
  assert SPLIT in message
  assert '(2 such names)' in message


def test_real_faces_are_read_whole():
  if 'MTL_JAX_REAL_DATA' not in os.environ:
    pytest.skip('MTL_JAX_REAL_DATA names no folder of real faces')
  source = open_celeba(Path(os.environ['MTL_JAX_REAL_DATA']) / 'celeba_hq_aligned')
  assert [source.splits.count(split) for split in SPLITS] == [7365, 1237, 1456]
  assert [len(task.labels) for task in source.tasks] == [40, 10]
  people = [set(source.identity[np.array(source.splits) == split]) for split in SPLITS]
  assert not people[0] & people[1] | people[0] & people[2] | people[1] & people[2]
