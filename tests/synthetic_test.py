"""Facts about the synthetic faces: what they depend on, how their labels and landmarks hang together, what shows."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.synthetic import canvas, drawing, expressions, people, sets
from mtl_jax.data.synthetic import source as synthetic
from mtl_jax.errors import DataError

ATTRIBUTES = people.ATTRIBUTES
COLUMN = {name: column for column, name in enumerate(ATTRIBUTES)}
BEARDS = ('5_o_Clock_Shadow', 'Goatee', 'Mustache', 'Sideburns')


@pytest.fixture(scope='module')
def draws():
  """Labels `[4000, 40]`, landmarks `[4000, 5, 2]`, identities and splits, without the pictures."""
  subjects = [people.subject_of(index, seed=7) for index in range(4000)]
  labels = np.array([people.labels_of(subject, index, seed=7) for index, subject in enumerate(subjects)])
  landmarks = np.array([canvas.landmarks(subject) for subject in subjects])
  identities = [people.identity_of(index, seed=7) for index in range(4000)]
  return labels, landmarks, identities


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Fifty faces as a source, and their folder."""
  out = tmp_path_factory.mktemp('synthetic') / 'faces'
  return sets.draw(sets.FACES, out, num=50, seed=3), out


def correlation(draws, first, second):
  labels = draws[0].astype(float)
  return np.corrcoef(labels[:, COLUMN[first]], labels[:, COLUMN[second]])[0, 1]


def same(first, second):
  parts = ([face.image, *face.labels.values(), face.identity, face.split] for face in (first, second))
  return all(map(np.array_equal, *parts))


def test_a_face_depends_on_seed_and_index_alone():
  forward = [synthetic.face(index, seed=5) for index in (0, 41, 7)]
  backward = [synthetic.face(index, seed=5) for index in (7, 41, 0)][::-1]
  assert all(map(same, forward, backward))


def test_another_seed_or_index_is_another_face():
  first = synthetic.face(0, seed=5)
  assert not np.array_equal(first.image, synthetic.face(1, seed=5).image)
  assert not np.array_equal(first.labels['landmarks'], synthetic.face(0, seed=6).labels['landmarks'])


def test_a_face_has_celebas_shapes():
  face = synthetic.face(2, seed=0)
  assert (face.image.shape, face.image.dtype) == ((218, 178, 3), np.uint8)
  assert (face.labels['attributes'].shape, face.labels['attributes'].dtype) == ((40,), np.int8)
  assert (face.labels['landmarks'].shape, face.labels['landmarks'].dtype) == ((5, 2), np.float32)
  assert set(np.unique(face.labels['attributes'])) <= {0, 1}


def test_the_source_agrees_with_the_faces(written):
  source, _ = written
  assert [task.name for task in source.tasks] == ['attributes', 'landmarks']
  assert list(source.images) == [f'{index + 1:06d}.jpg' for index in range(50)]
  for record, index in zip(source.records(), range(50), strict=True):
    face = synthetic.face(index, seed=3)
    np.testing.assert_array_equal(record.labels['attributes'], face.labels['attributes'])
    points = record.labels['landmarks'].reshape(5, 2)
    np.testing.assert_allclose(points, face.labels['landmarks'], rtol=0, atol=0.0051)  # In hundredths.
    assert (record.identity, record.split) == (face.identity, face.split)
    with Image.open(record.image) as image:
      assert image.size == (178, 218)
      assert np.abs(np.asarray(image, float) - face.image).mean() < 10  # JPEG loses some of the grain.


def test_attributes_are_celebas():
  assert len(ATTRIBUTES) == 40
  assert ATTRIBUTES[0] == '5_o_Clock_Shadow'
  assert list(ATTRIBUTES[1:]) == sorted(ATTRIBUTES[1:])


def test_fifty_faces_fill_every_split(written):
  assert set(written[0].splits) == {'train', 'val', 'test'}


def test_more_processes_and_more_faces_write_the_same_files(written, tmp_path, monkeypatch):
  monkeypatch.setattr(synthetic, '_POOL_FROM', 1)
  fewer, folder = written
  more = sets.draw(sets.FACES, tmp_path / 'more', num=70, seed=3, workers=2)
  for path in sorted(folder.rglob('*.jpg')):
    assert (tmp_path / 'more' / path.relative_to(folder)).read_bytes() == path.read_bytes()
  for name, values in fewer.labels.items():
    np.testing.assert_array_equal(more.labels[name][:50], values)


def test_faces_look_as_they_did_when_sets_of_today_were_drawn():
  """Twelve of them, a quarter as large: a change of the drawing shows, rounding of another processor does not."""
  golden = Image.open(Path(__file__).parent / 'golden' / 'faces.png')
  sheet = Image.new('RGB', golden.size)
  faces = [synthetic.face(index, seed=1).image for index in range(8)]
  faces += [expressions.face(index, seed=1).image for index in range(4)]
  for number, pixels in enumerate(faces):
    small = Image.fromarray(pixels).reduce(4)
    sheet.paste(small, (number % 6 * small.width, number // 6 * small.height))
  assert np.abs(np.asarray(sheet, int) - np.asarray(golden)).max() <= 1


@pytest.mark.parametrize(
  ('flag', 'wrong'), [('--num', {'num': 0}), ('--seed', {'seed': -1}), ('workers', {'workers': 0})]
)
def test_a_number_out_of_range_is_refused_by_its_flag(tmp_path, flag, wrong):
  with pytest.raises(DataError, match=flag):
    sets.draw(sets.FACES, tmp_path / 'none', **({'num': 1, 'seed': 0} | wrong))
  assert not (tmp_path / 'none').exists()


def test_drawing_does_not_load_jax():
  code = "import sys, mtl_jax.data.synthetic.source; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


def test_smiling_goes_with_cheekbones_and_an_open_mouth(draws):
  assert 0.52 < correlation(draws, 'Smiling', 'High_Cheekbones') < 0.68
  assert 0.38 < correlation(draws, 'Smiling', 'Mouth_Slightly_Open') < 0.54


def test_smiling_goes_with_the_mouth_corners(draws):
  labels, landmarks, _ = draws
  smiling = labels[:, COLUMN['Smiling']]
  left, right = landmarks[:, 3, 0], landmarks[:, 4, 0]
  assert -0.78 < np.corrcoef(smiling, left)[0, 1] < -0.55
  assert 0.55 < np.corrcoef(smiling, right)[0, 1] < 0.78
  assert 0.65 < np.corrcoef(smiling, right - left)[0, 1] < 0.85


def test_women_have_no_beards_and_many_men_do(draws):
  labels = draws[0]
  male = labels[:, COLUMN['Male']] == 1
  assert not labels[~male][:, [COLUMN[name] for name in (*BEARDS, 'Bald')]].any()
  assert labels[~male][:, COLUMN['No_Beard']].all()
  assert 0.35 < labels[male][:, COLUMN['No_Beard']].mean() < 0.65


def test_no_beard_means_none_of_the_beards(draws):
  labels = draws[0]
  beards = labels[:, [COLUMN[name] for name in BEARDS]].any(axis=1)
  np.testing.assert_array_equal(labels[:, COLUMN['No_Beard']], ~beards)


@pytest.mark.parametrize(
  ('name', 'sign'),
  [('Heavy_Makeup', -1), ('Wearing_Lipstick', -1), ('Arched_Eyebrows', -1), ('Wearing_Necktie', 1), ('Goatee', 1)],
)
def test_sex_goes_with_what_it_goes_with_in_celeba(draws, name, sign):
  assert sign * correlation(draws, 'Male', name) > 0.2


@pytest.mark.parametrize('name', ['Gray_Hair', 'Bald', 'Receding_Hairline', 'Double_Chin'])
def test_youth_goes_against_the_signs_of_age(draws, name):
  assert correlation(draws, 'Young', name) < -0.1


def test_hair_has_mostly_one_colour(draws):
  colours = draws[0][:, [COLUMN[name] for name in ('Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair')]].sum(axis=1)
  assert (colours > 1).mean() < 0.05
  assert (colours == 1).mean() > 0.5


def test_rates_leave_room_above_the_majority(draws):
  rates = draws[0].mean(axis=0)
  assert 0.78 < np.maximum(rates, 1 - rates).mean() < 0.84
  assert rates.min() > 0.01


def test_the_mean_face_is_a_poor_guess(draws):
  landmarks = draws[1]
  distances = np.linalg.norm(landmarks - landmarks.mean(axis=0), axis=2).mean(axis=1)
  nme = (distances / np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)).mean()
  assert 0.12 < nme < 0.25


def test_left_is_left_and_the_eyes_are_above_the_mouth(draws):
  left_eye, right_eye, nose, left_corner, right_corner = np.moveaxis(draws[1], 1, 0)
  assert (left_eye[:, 0] < right_eye[:, 0]).all()
  assert (left_corner[:, 0] < right_corner[:, 0]).all()
  assert (np.maximum(left_eye, right_eye)[:, 1] < nose[:, 1]).all()
  assert (nose[:, 1] < np.maximum(left_corner, right_corner)[:, 1]).all()


def test_landmarks_lie_in_the_picture(draws):
  inside = (draws[1] >= 0) & (draws[1] <= (177, 217))
  assert inside.all(axis=(1, 2)).mean() > 0.99


def test_people_have_one_split_and_several_pictures(draws):
  splits = {}
  for identity, split in draws[2]:
    splits.setdefault(identity, []).append(split)
  assert all(len(set(own)) == 1 for own in splits.values())
  assert len(splits) == 1000
  shares = {name: np.mean([split == name for _, split in draws[2]]) for name in ('train', 'val', 'test')}
  assert 0.76 < shares['train'] < 0.84
  assert min(shares['val'], shares['test']) > 0.08


def test_a_persons_pictures_agree_on_sex(draws):
  male = {}
  for (identity, _), row in zip(draws[2], draws[0], strict=True):
    male.setdefault(identity, set()).add(int(row[COLUMN['Male']]))
  assert all(len(values) == 1 for values in male.values())


@pytest.fixture(scope='module')
def plain():
  """A short-haired subject in front view of whom no attribute is strong but that he has hair and no beard."""
  subject = people.subject_of(0, seed=0)
  strength = dict.fromkeys(ATTRIBUTES, -2.0) | {'No_Beard': 2.0, 'Young': 2.0, 'Brown_Hair': 2.0}
  return dataclasses.replace(
    subject, strength=strength, hair_length=0.0, yaw=0.0, pitch=0.0, roll=0.0, scale=24.0, centre=(89.0, 130.0)
  )


def drawn(subject, **strength):
  subject = dataclasses.replace(subject, strength=dict(subject.strength) | strength)
  return drawing.draw(subject, np.random.default_rng(0))[0].astype(int)


@pytest.mark.parametrize('name', people.VISIBLE)
def test_a_visible_attribute_changes_the_picture(plain, name):
  changed = np.abs(drawn(plain) - drawn(plain, **{name: -plain.strength[name]})).max(axis=2) > 12
  assert changed.sum() >= 20


def test_what_is_not_visible_changes_nothing(plain):
  assert len(people.VISIBLE) >= 25
  for name in set(ATTRIBUTES) - set(people.VISIBLE):
    np.testing.assert_array_equal(drawn(plain), drawn(plain, **{name: 2.0}))


def test_the_pupils_are_drawn_at_the_eyes(plain):
  turned = dataclasses.replace(plain, yaw=0.2, roll=0.15, pitch=-0.1, centre=(95.0, 120.0))
  picture, points = drawn(turned).sum(axis=2), canvas.landmarks(turned)
  for x, y in points[:2]:
    rows, columns = np.mgrid[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5]
    dark = np.maximum(0, 250 - picture[rows, columns])
    centre = np.array([(dark * columns).sum(), (dark * rows).sum()]) / dark.sum()
    np.testing.assert_allclose(centre, (x, y), rtol=0, atol=1.0)


def test_the_lips_end_at_the_mouth_corners(plain):
  closed = drawn(plain, Wearing_Lipstick=2.0) - drawn(plain)
  left, right = canvas.landmarks(plain)[3:]
  columns = np.flatnonzero((np.abs(closed).max(axis=2) > 12).any(axis=0))
  np.testing.assert_allclose((columns[0], columns[-1]), (left[0], right[0]), rtol=0, atol=2.5)
