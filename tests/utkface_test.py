"""UTKFace's file names are read as far as they can be, copies are found, and nothing is left out in silence."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mtl_jax import cli
from mtl_jax.data.sources.utkface import labels_of, open_utkface
from mtl_jax.data.store.reader import open_store
from mtl_jax.data.store.writer import prepare
from mtl_jax.errors import DataError

TIME = '20170109142408075'
END = f'{TIME}.jpg.chip.jpg'
NONE = np.nan


def write_image(path: Path, *, shade: int = 0) -> Path:
  """A face of its own for each shade: the same shade gives the same bytes."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (6, 8), (shade, 255 - shade, 128)).save(path, 'PNG')  # A loss might make two shades one.
  return path


def write_faces(directory: Path, *names: str) -> None:
  for shade, name in enumerate(names):
    write_image(directory / name, shade=shade)


def said(directory: Path) -> dict[str, list[float]]:
  """Age, gender and race of each record, by name."""
  return {
    record.name: [record.labels[task].item() for task in ('age', 'gender', 'race')]
    for record in open_utkface(directory).records()
  }


def refusal(directory: Path) -> str:
  """The one line with which a folder is refused."""
  with pytest.raises(DataError) as caught:
    open_utkface(directory)
  message = str(caught.value)
  assert '\n' not in message
  return message


def test_tasks_and_labels_are_what_the_names_say(tmp_path):
  write_faces(tmp_path, f'26_0_3_{END}', f'116_1_4_{TIME}.jpg', f'1_1_0_{TIME}.JPG')
  source = open_utkface(tmp_path)
  assert [(task.kind, task.name, task.labels) for task in source.tasks] == [
    ('regression', 'age', ('age',)),
    ('binary', 'gender', ('Male',)),
    ('categorical', 'race', ('race',)),
  ]
  assert source.tasks[2].to_json()['classes'] == ('white', 'black', 'asian', 'indian', 'other')
  assert (source.name, source.notes) == ('utkface', ())
  assert {record.identity for record in source.records()} == {-1}
  assert said(tmp_path) == {  # 1 is male here, and female in the names.
    f'116_1_4_{TIME}.jpg': [116, 0, 4],
    f'1_1_0_{TIME}.JPG': [1, 0, 0],
    f'26_0_3_{END}': [26, 1, 3],
  }


@pytest.mark.parametrize(
  ('name', 'labels'),
  [
    (f'61_1_{END}', [61, 0, NONE]),  # Real names go wrong in these four ways.
    (f'24_0_1_{TIME} .jpg.chip.jpg', [24, 1, 1]),
    (f'55_0_0_{TIME}jpg.chip.jpg', [55, 1, 0]),
    (f'53__0_{TIME}.jpg', [53, NONE, 0]),
    (f'0_1_2_{END}', [NONE, 0, 2]),
    (f'117_1_2_{END}', [NONE, 0, 2]),
    (f'-5_1_2_{END}', [NONE, 0, 2]),
    (f'30_2_2_{END}', [30, NONE, 2]),
    (f'30_1_5_{END}', [30, 0, NONE]),
    (f'30_1__{END}', [30, 0, NONE]),
    (f'\u0663\u0660_1_1_{END}', [NONE, 0, 1]),
    (f'part1/30_1_1_{END}', [30, 0, 1]),
    (f'30_1_1_1_{END}', None),
    (f'30_{END}', None),
    (f'200_7_9_{END}', None),
    (f'30_1_1_{TIME}', None),
    ('30_1_1_.jpg', None),
    ('30_1_1.jpg', [30, 0, NONE]),  # Cannot be told from a name that lacks the race.
    ('holiday.jpg', None),
    ('', None),
    (f'30_1_1_{TIME}\n.jpg', None),
    (f'30_1_1_{TIME}\udcff.jpg', None),
    (f'two\nlines/30_1_1_{END}', None),
  ],
)
def test_what_a_name_says_is_kept_and_the_rest_is_missing(name, labels):
  found = labels_of(name)
  assert (found is None) == (labels is None)
  if labels is not None:
    np.testing.assert_equal(found.tolist(), labels)


def test_malformed_names_are_counted_and_the_first_ones_shown(tmp_path):
  write_faces(tmp_path, f'30_1_1_{END}', f'61_1_{END}', f'61_0_{END}', *(f'bad{i}.jpg' for i in range(5)))
  assert open_utkface(tmp_path).notes == (
    "warning: 5 images are left out, since their names are not AGE_GENDER_RACE_TIME.jpg: 'bad0.jpg', 'bad1.jpg', "
    "'bad2.jpg', ...",
    f"warning: 2 names have no readable race: '61_0_{END}', '61_1_{END}'",
  )
  prepare(open_utkface(tmp_path), tmp_path / 'set', image_size=(4, 4), log=print)
  opened = open_store(tmp_path / 'set')
  assert len(opened.names) == 3
  assert (~opened.mask['race']).sum() == 2
  assert opened.mask['age'].all()
  assert opened.mask['gender'].all()


def test_folders_are_searched_and_other_and_hidden_files_are_not_images(tmp_path):
  write_faces(
    tmp_path, f'part1/30_1_1_{END}', f'part2/deep/31_1_1_{TIME}.png', f'.trash/32_1_1_{END}', f'._33_1_1_{END}'
  )
  (tmp_path / 'landmark_list_part1.txt').write_text('nothing')
  assert list(said(tmp_path)) == [f'part1/30_1_1_{END}', f'part2/deep/31_1_1_{TIME}.png']
  assert open_utkface(tmp_path).notes == ()


def test_of_identical_files_the_first_by_name_is_kept(tmp_path):
  for name in (f'b/30_1_1_{END}', f'a/30_1_1_{END}', f'c/30_1_1_{END}'):
    write_image(tmp_path / name)
  assert said(tmp_path) == {f'a/30_1_1_{END}': [30, 0, 1]}
  (note,) = open_utkface(tmp_path).notes
  assert note.startswith("warning: 2 images are left out as byte-identical copies of others: 'b/30_1_1_")


def test_contradicting_names_of_identical_files_mask_only_what_they_contradict(tmp_path):
  for name in (f'a/30_1_1_{END}', f'b/31_1_1_{END}', f'c/30_1_1_{END}', f'd/32_1_{END}'):
    write_image(tmp_path / name)
  np.testing.assert_equal(said(tmp_path), {f'a/30_1_1_{END}': [NONE, 0, 1]})
  assert open_utkface(tmp_path).notes[2] == (
    f"warning: 1 images have copies whose names contradict each other in age, which is masked: 'a/30_1_1_{END}'"
  )


def test_a_label_that_one_name_lacks_is_taken_from_its_copy(tmp_path):
  for name in (f'a/61_1_{END}', f'b/61_1_3_{END}'):
    write_image(tmp_path / name)
  assert said(tmp_path) == {f'a/61_1_{END}': [61, 0, 3]}


@given(names=st.permutations([f'30_1_1_{END}', f'31_1_1_{END}', f'30_0_1_{END}', f'30_1_{END}', f'117_1_1_{END}']))
@settings(max_examples=20, deadline=None)
def test_the_order_of_copies_does_not_matter_to_the_labels(names):
  with tempfile.TemporaryDirectory() as directory:
    for folder, name in zip('abcde', names, strict=True):
      write_image(Path(directory, folder, name))
    ((_, labels),) = said(Path(directory)).items()
  np.testing.assert_equal(labels, [NONE, NONE, 1])


def test_the_split_depends_on_the_bytes_alone(tmp_path):
  for shade in range(256):
    write_image(tmp_path / 'one' / f'{shade % 100 + 1}_1_1_{shade}.jpg', shade=shade)
    write_image(tmp_path / 'other' / 'part3' / f'7_0_2_{1000 - shade}.jpg', shade=shade)
  splits = [
    {record.image.read_bytes(): record.split for record in open_utkface(tmp_path / folder).records()}
    for folder in ('one', 'other')
  ]
  assert splits[0] == splits[1]
  counts = [list(splits[0].values()).count(split) for split in ('train', 'val', 'test')]
  assert sum(counts) == 256
  assert 180 < counts[0] < 230
  assert min(counts[1:]) > 10


def test_folders_without_faces_are_refused(tmp_path):
  assert 'no such folder' in refusal(tmp_path / 'nowhere')
  assert 'no image is named AGE_GENDER_RACE_TIME.jpg' in refusal(tmp_path)
  write_faces(tmp_path, 'holiday.jpg')
  assert "'holiday.jpg' is not" in refusal(tmp_path)


def test_an_image_that_cannot_be_opened_is_named(tmp_path):
  (tmp_path / f'30_1_1_{END}').symlink_to(tmp_path / 'gone')
  assert f'30_1_1_{END}: cannot be read' in refusal(tmp_path)
  (tmp_path / f'30_1_1_{END}').unlink()
  (tmp_path / f'30_1_1_{END}').write_bytes(b'')
  with pytest.raises(DataError, match='is no readable image'):
    prepare(open_utkface(tmp_path), tmp_path / 'set', image_size=(4, 4), log=print)


PART = st.sampled_from(['', '0', '1', '2', '30', '116', '117', '-1', '1.5', TIME]) | st.text(max_size=3)
NEARLY_A_NAME = st.tuples(st.lists(PART, max_size=5).map('_'.join), st.sampled_from(['.jpg', '.jpg.chip.jpg', '']))


@settings(max_examples=500, deadline=None)
@given(name=st.text() | NEARLY_A_NAME.map(''.join))
@example(name='__1.jpg')
@example(name='0_0_0_0.jpg')
def test_any_name_is_read_or_left_out(name):
  labels = labels_of(name)
  if labels is not None:
    assert len(labels) == 3
    age, _, race = labels.tolist()
    assert not np.isnan(labels).all()
    assert np.isnan(age) or 1 <= age <= 116
    assert np.isnan(race) or race in range(5)
    assert '\n' not in name


FILE_NAME = (
  NEARLY_A_NAME.map(''.join)
  .filter(lambda name: 0 < len(name.encode()) < 200)
  .filter(lambda name: '/' not in name and '\0' not in name and name not in ('.', '..'))
)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(FILE_NAME, max_size=6, unique=True), contents=st.lists(st.sampled_from([b'a', b'b']), min_size=6))
def test_any_folder_is_read_or_refused_in_one_line(names, contents):
  with tempfile.TemporaryDirectory() as directory:
    for name, content in zip(names, contents, strict=False):
      Path(directory, name).write_bytes(content)
    lines: tuple[str, ...]
    try:
      source = open_utkface(Path(directory))
      assert len(list(source.records())) <= 2
      lines = source.notes
    except DataError as error:
      lines = (str(error),)
  assert all(len(line.splitlines()) == 1 for line in lines)


def test_the_command_line_prepares_a_folder(tmp_path):
  write_faces(tmp_path / 'source', *(f'{age}_{age % 2}_{age % 5}_{END}' for age in range(1, 30)))
  arguments = ['--source', str(tmp_path / 'source'), '--out', str(tmp_path / 'set'), '--image_size', '4', '4']
  assert cli.main(['prepare', 'utkface', *arguments]) == 0
  opened = open_store(tmp_path / 'set')
  assert len(opened.names) == 29
  ages = [int(name.split('_')[0]) for name in opened.names]
  assert opened.labels['age'][:, 0].tolist() == ages
  assert opened.labels['gender'][:, 0].tolist() == [1 - age % 2 for age in ages]


def test_real_faces_are_read_whole():
  if 'MTL_JAX_REAL_DATA' not in os.environ:
    pytest.skip('MTL_JAX_REAL_DATA names no folder of real faces')
  source = open_utkface(Path(os.environ['MTL_JAX_REAL_DATA']) / 'utkface')
  assert [source.splits.count(split) for split in ('train', 'val', 'test')] == [3283, 408, 407]
  assert source.notes == ()
  assert source.labels['gender'].sum() == 2118  # Men.
  assert np.bincount(source.labels['race'][:, 0].astype(int)).tolist() == [1767, 759, 623, 690, 259]
  assert (source.labels['age'].min(), source.labels['age'].max()) == (1, 115)
