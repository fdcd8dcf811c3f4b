"""Pictures of any shape are squashed, cropped or padded, labels move with them, and predictions come back to them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mtl_jax
from mtl_jax.data.input.mixture import open_mixture
from mtl_jax.data.source import Record
from mtl_jax.data.sources.image_file import FITS, decode, fit_box
from mtl_jax.data.store.reader import open_store
from mtl_jax.data.store.writer import prepare
from mtl_jax.errors import DataError
from mtl_jax.evaluation.align import aligned, similarity
from mtl_jax.evaluation.model import Model, view_of
from mtl_jax.evaluation.predict import predict_files
from mtl_jax.tasks import DenseTask, LandmarkTask

POINTS = LandmarkTask('landmarks', ('lefteye_x', 'lefteye_y', 'righteye_x', 'righteye_y'))
PARTS = DenseTask('parts', ('parts',), classes=('around', 'left', 'right'))
SIDE = st.integers(1, 60)
SPOTS = np.array([[14, 6], [45, 12]])  # Of a picture of 60 x 20: red and green, at the points and on the map.


@given(picture=st.tuples(SIDE, SIDE), size=st.tuples(SIDE, SIDE), fit=st.sampled_from(FITS))
def test_a_box_has_the_stored_images_shape_and_holds_or_lies_in_the_picture(picture, size, fit):
  left, top, right, bottom = fit_box(picture, size, fit)
  if fit == 'squash':
    assert (left, top, right, bottom) == (0, 0, *picture)
  elif fit == 'crop':
    assert 0 <= left < right <= picture[0]
    assert 0 <= top < bottom <= picture[1]
  else:
    assert left <= 0 < picture[0] <= right
    assert top <= 0 < picture[1] <= bottom
  if fit != 'squash':  # To the pixel.
    width, height = right - left, bottom - top
    assert abs(width * size[0] - height * size[1]) <= max(size)
    assert width == picture[0] or height == picture[1]


class Spots:
  """One picture of 60 x 20 with two coloured squares, whose middles are its points and whose map shows them."""

  name = 'spots'
  tasks = (POINTS, PARTS)

  def __init__(self, folder: Path, crop=None):
    pixels, self._map = np.full((20, 60, 3), 128, np.uint8), np.zeros((20, 60), np.float32)
    for number, (x, y) in enumerate(SPOTS):
      square = slice(y - 3, y + 3), slice(x - 3, x + 3)
      pixels[square] = (255, 0, 0) if number == 0 else (0, 255, 0)
      self._map[square] = number + 1
    self._file, self._crop = folder / 'spots.png', crop
    Image.fromarray(pixels).save(self._file)

  def records(self):
    labels = {'landmarks': SPOTS.astype(np.float32).ravel(), 'parts': self._map}
    yield Record('spots', 'train', self._file, labels, crop=self._crop)


def spots_of(pixels: np.ndarray) -> np.ndarray:
  """The middles of the red and the green square `[2, 2]`, NaN where one is not seen, as fractions."""
  height, width = pixels.shape[:2]
  red, green, _ = np.moveaxis(pixels.astype(float), -1, 0)
  found = []
  for seen in (red - green > 150, green - red > 150):
    rows, columns = np.nonzero(seen)
    found.append([(columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height] if len(rows) else [np.nan, np.nan])
  return np.array(found)


@pytest.mark.parametrize('fit', FITS)
def test_points_and_maps_move_with_the_picture(tmp_path, fit):
  prepare(Spots(tmp_path), tmp_path / 'set', image_size=(40, 40), fit=fit, log=print)
  opened = open_store(tmp_path / 'set')
  assert opened.fit == fit
  points = np.where(opened.mask['landmarks'][0], opened.labels['landmarks'][0], np.nan).reshape(2, 2)
  np.testing.assert_allclose(points, spots_of(opened.images[0]), atol=0.02)
  assert np.isnan(points).any() == (fit == 'crop')  # Both squares lie beyond the middle third.
  known, parts = opened.mask['parts'][0], opened.labels['parts'][0]
  assert known.all() == (fit != 'pad')
  assert (opened.images[0][~known] == 0).all()
  red = opened.images[0][..., 0].astype(int) - opened.images[0][..., 1] > 150
  assert (parts[red] == 1).all()
  assert tuple(opened.source_size[0]) == {'squash': (60, 20), 'crop': (20, 20), 'pad': (60, 60)}[fit]


def test_a_squashed_set_is_written_as_before_there_was_a_fit(tmp_path):
  schema = prepare(Spots(tmp_path), tmp_path / 'set', image_size=(8, 8), log=print)
  assert 'fit' not in schema
  assert open_store(tmp_path / 'set').fit == 'squash'


def test_sets_that_are_fitted_otherwise_do_not_mix(tmp_path):
  for fit in ('pad', 'crop'):
    prepare(Spots(tmp_path), tmp_path / fit, image_size=(8, 8), fit=fit, log=print)
  with pytest.raises(DataError, match='--fit pad'):
    open_mixture([tmp_path / 'pad', tmp_path / 'crop'], {})


@pytest.mark.parametrize('fit', FITS)
def test_what_is_predicted_lies_in_the_whole_picture(tmp_path, fit):
  """The labels of the stored image, taken for predictions, come back to where the source has them."""
  source = Spots(tmp_path)
  pixels, box, size = decode(source._file, (40, 40), fit=fit)
  view = view_of(box, size)
  points = POINTS.on_picture(spots_of(pixels).ravel(), view).reshape(2, 2) * size
  seen = ~np.isnan(points)
  np.testing.assert_allclose(points[seen], SPOTS[seen], atol=1)
  parts = DenseTask('parts', ('parts',), classes=PARTS.classes, size=(40, 40))
  stored = parts.from_source(
    PARTS.in_box(source._map, box, width=60, height=20), width=box[2] - box[0], height=box[3] - box[1]
  )
  back = parts.on_picture(np.nan_to_num(stored).astype(np.uint8), view)
  whole = parts.from_source(source._map, width=60, height=20)
  inside = slice(None) if fit != 'crop' else slice(14, 26)
  assert (back[:, inside] == whole[:, inside]).mean() > 0.95


@given(
  angle=st.floats(-3, 3),
  scale=st.floats(0.1, 10),
  shift=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
  points=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=6, unique=True),
)
def test_a_similarity_is_found_exactly(angle, scale, shift, points):
  known = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
  found = similarity(np.array(points, float), np.array(points) @ known.T + shift)
  assert found is not None
  np.testing.assert_allclose(found, np.column_stack([known, shift]), atol=1e-9)


def test_points_that_are_one_have_no_similarity():
  assert similarity(np.ones((5, 2)), np.zeros((5, 2))) is None
  assert similarity(np.full((5, 2), np.nan), np.zeros((5, 2))) is None


@pytest.mark.parametrize('angle', [0.0, 0.5, -2.0])
def test_an_aligned_photo_has_its_points_where_the_mean_ones_are(angle):
  """Discs on a large turned photo, framed by their true places, and squashed as the training images were."""
  mean = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.8]])
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  places = (mean - 0.5) * (160, 200) @ turn.T + (300, 260)  # Its aspect is 0.8.
  y, x = np.mgrid[:500, :600] + 0.5
  photo = np.zeros((500, 600, 3), np.uint8)
  for channel, (left, top) in enumerate(places):
    photo[..., channel] = 255 * (np.hypot(x - left, y - top) < 12)
  framed = aligned(Image.fromarray(photo), places / (600, 500), mean, size=(50, 50), aspect=0.8)
  assert framed is not None
  pixels, view = framed
  rows, columns = np.mgrid[:50, :50] + 0.5
  for channel, point in enumerate(mean):
    weights = pixels[..., channel].astype(float)
    middle = np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum() / 50
    np.testing.assert_allclose(middle, point, atol=0.004)
    np.testing.assert_allclose((view[:, :2] @ point + view[:, 2]) * (600, 500), places[channel], atol=1e-6)


def test_landmarks_of_no_face_frame_nothing():
  picture, mean = Image.new('RGB', (40, 40)), np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.8]])
  for points in (np.zeros((3, 2)), mean * 1e-3, mean * 100):
    assert aligned(picture, points, mean, size=(8, 8), aspect=1.0) is None


def fitted_by(model: Model, fit: str, **facts) -> Model:
  """The same network, said to have learned from a set that was prepared otherwise."""
  return Model(dataclasses.replace(model.trained, facts=dataclasses.replace(model.trained.facts, fit=fit, **facts)))


@pytest.fixture(scope='module')
def model(trained_dir) -> Model:
  return mtl_jax.load(trained_dir)


def test_predict_fits_pictures_as_the_training_set_was_prepared_and_says_so(model, tmp_path, capsys):
  wide = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
  by_hand = {'pad': np.pad(wide, ((10, 10), (0, 0), (0, 0))), 'crop': wide[:, 10:40]}
  corner = {'pad': (0, 10), 'crop': (-10, 0)}
  Image.fromarray(wide).save(tmp_path / 'wide.png')
  for fit, pixels in by_hand.items():
    assert predict_files(fitted_by(model, fit), [tmp_path / 'wide.png']) == 0
    line = json.loads(capsys.readouterr().out)
    (expected,) = model.predict([pixels])
    assert line['fit'] == fit
    assert line['attributes'] == pytest.approx(expected['attributes'], abs=1e-6)
    for name, point in expected['landmarks'].items():
      np.testing.assert_allclose(line['landmarks'][name], np.array(point) - corner[fit], atol=1e-4)
  assert predict_files(model, [tmp_path / 'wide.png']) == 0
  assert 'fit' not in json.loads(capsys.readouterr().out)


def test_the_run_keeps_how_its_pictures_were_fitted(model, trained_dir):
  kept = json.loads((trained_dir / 'dataset.json').read_text())
  assert (kept['fit'], round(kept['aspect'], 2)) == ('squash', 0.82)
  assert (model.fit, round(model.aspect, 2)) == ('squash', 0.82)  # Of synthetic faces, 178 x 218.


def test_aligning_says_so_and_gives_points_of_the_whole_photo(model, tmp_path, capsys):
  photo = Image.effect_noise((300, 200), 80).convert('RGB')
  photo.save(tmp_path / 'photo.png')
  assert predict_files(model, [tmp_path / 'photo.png'], align=True) == 0
  line = json.loads(capsys.readouterr().out)
  assert line['aligned'] is True
  assert line['landmarks'] != model.predict([np.asarray(photo)])[0]['landmarks']


def test_aligning_without_landmarks_is_refused(model, tmp_path):
  without = fitted_by(model, 'squash', tasks=tuple(task for task in model.tasks if task.name != 'landmarks'))
  Image.new('RGB', (30, 30)).save(tmp_path / 'photo.png')
  with pytest.raises(DataError, match='align: no task'):
    predict_files(without, [tmp_path / 'photo.png'], align=True)
