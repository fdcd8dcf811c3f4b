"""Labels move with the image, and a row's augmentation depends on the key and the row alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtl_jax.data.input.augment import MEAN, STD, Augmentation, augment, augmentation_warnings, normalize
from mtl_jax.data.sources import clothing, fairface, mtfl, utkface
from mtl_jax.data.synthetic import expressions
from mtl_jax.tasks import BinaryTask, CategoricalTask, DenseTask, LandmarkTask, RegressionTask

EYES = LandmarkTask('landmarks', ('lefteye_x', 'lefteye_y', 'righteye_x', 'righteye_y'))
SMILE = BinaryTask('attributes', ('Smiling',))
EVERYTHING = Augmentation(flip=True, shift=0.2, zoom=0.3, rotate=20, brightness=0.5, contrast=0.5)


def random_batch(rows: int, *, size=(12, 10), seed=0):
  rng = np.random.default_rng(seed)
  images = jnp.array(rng.normal(size=(rows, *size, 3)), jnp.float32)
  labels = {'landmarks': jnp.array(rng.random((rows, 4)), jnp.float32), 'attributes': jnp.ones((rows, 1))}
  return images, labels, {name: jnp.ones(values.shape, bool) for name, values in labels.items()}


@partial(jax.jit, static_argnames='settings')
def run(images, labels, mask, *, seed=0, settings):
  return augment(images, labels, mask, key=jax.random.key(seed), tasks=(EYES, SMILE), settings=settings)


def same(left, right) -> None:
  jax.tree.map(np.testing.assert_array_equal, left, right)


def test_normalize_is_its_formula():
  pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
  found = normalize(jnp.array(pixels))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, (pixels / 255.0 - np.array(MEAN)) / np.array(STD), rtol=1e-5, atol=1e-6)


def test_all_zero_settings_change_nothing():
  batch = random_batch(6)
  same(run(*batch, settings=Augmentation()), batch)


def test_the_same_key_gives_the_same_batch_and_another_key_another():
  batch = random_batch(6)
  same(run(*batch, settings=EVERYTHING), run(*batch, settings=EVERYTHING))
  assert not np.allclose(run(*batch, settings=EVERYTHING)[0], run(*batch, seed=1, settings=EVERYTHING)[0])


@pytest.mark.parametrize('row', [0, 3])
def test_a_row_does_not_depend_on_the_others(row):
  images, labels, mask = random_batch(6)
  others = random_batch(6, seed=1)
  mixed = jax.tree.map(lambda ours, theirs: theirs.at[row].set(ours[row]), (images, labels, mask), others)
  pick = lambda result: jax.tree.map(lambda leaf: leaf[row], result)  # noqa: E731
  same(pick(run(images, labels, mask, settings=EVERYTHING)), pick(run(*mixed, settings=EVERYTHING)))


def test_a_row_does_not_depend_on_how_many_follow():
  batch = random_batch(6)
  first = jax.tree.map(lambda leaf: leaf[:2], batch)
  whole, part = run(*batch, settings=EVERYTHING), run(*first, settings=EVERYTHING)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:2], b, rtol=1e-6, atol=1e-6), whole, part)


def test_rows_are_drawn_apart():
  images, labels, mask = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 8, axis=0), random_batch(1))
  moved = np.asarray(run(images, labels, mask, settings=EVERYTHING)[1]['landmarks'])
  assert len(np.unique(moved, axis=0)) == 8


def blobs(points: np.ndarray, size: tuple[int, int], *, spread: float) -> np.ndarray:
  """One image channel with a bright spot at each point, `[n, 2]` fractions of width and height, one image each."""
  rows, columns = np.mgrid[: size[0], : size[1]] + 0.5  # Pixel i covers [i, i + 1].
  x, y = (points[:, None, None, axis] * size[1 - axis] for axis in (0, 1))
  return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))


def centres(images: np.ndarray) -> np.ndarray:
  """The centre of mass of each image, x and y in pixels."""
  rows, columns = np.mgrid[: images.shape[1], : images.shape[2]] + 0.5
  mass = images.sum((1, 2))
  return np.stack([(images * columns).sum((1, 2)) / mass, (images * rows).sum((1, 2)) / mass], axis=1)


@given(
  seed=st.integers(0, 2**31 - 1), size=st.sampled_from([(48, 48), (48, 32), (40, 56)]), rotate=st.sampled_from([0, 40])
)
@example(seed=0, size=(48, 32), rotate=40)
@settings(deadline=None, max_examples=20)
def test_a_spot_in_the_image_is_where_its_label_says_after_any_transform(seed, size, rotate):
  rng = np.random.default_rng(seed)
  margin = 0.4 if rotate else 0.3  # No spot may be cut at an edge, where turns bring the far rows of a narrow image.
  left, right = rng.uniform(margin, 1 - margin, (2, 6, 2))
  pair = np.stack([blobs(left, size, spread=1.5), blobs(right, size, spread=1.5), np.zeros((6, *size))], axis=-1)
  labels = {'landmarks': jnp.array(np.concatenate([left, right], 1), jnp.float32), 'attributes': jnp.ones((6, 1))}
  mask = {name: jnp.ones(values.shape, bool) for name, values in labels.items()}
  everywhere = Augmentation(flip=True, shift=0.1, zoom=0.1 if rotate else 0.3, rotate=rotate)
  images, labels, mask = run(jnp.array(pair, jnp.float32), labels, mask, seed=seed, settings=everywhere)
  assert mask['landmarks'].all()  # From there nothing can leave.
  moved = np.asarray(labels['landmarks']).reshape(6, 2, 2) * (size[1], size[0])
  found = np.stack([centres(np.asarray(images[..., channel])) for channel in (0, 1)], axis=1)
  # A mirrored face has its left eye's spot, channel 0, labelled as the right eye.
  straight = np.abs(found - moved).max((1, 2))
  swapped = np.abs(found[:, ::-1] - moved).max((1, 2))
  assert np.minimum(straight, swapped).max() < 0.1


def test_half_of_the_images_are_mirrored():
  images, labels, mask = random_batch(64)
  flipped, *_ = run(images, labels, mask, settings=Augmentation(flip=True))
  mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)])
  kept = np.array([np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)])
  assert (mirrored ^ kept).all()
  assert 16 <= mirrored.sum() <= 48


@given(seed=st.integers(0, 1000), shift=st.sampled_from([0.0, 0.2]), zoom=st.sampled_from([0.0, 0.5]))
@settings(deadline=None, max_examples=15)
def test_shift_and_zoom_stay_within_their_limits(seed, shift, zoom):
  images, _, mask = random_batch(16, size=(4, 4))
  corners = {'landmarks': jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), (16, 1)), 'attributes': jnp.ones((16, 1))}
  moved = run(images, corners, mask, seed=seed, settings=Augmentation(shift=shift, zoom=zoom))[1]['landmarks']
  low, high = np.asarray(moved)[:, :2], np.asarray(moved)[:, 2:]
  factors, centre = high - low, (low + high) / 2
  assert (factors >= 1 / (1 + zoom) - 1e-5).all()
  assert (factors <= 1 + zoom + 1e-5).all()
  np.testing.assert_allclose(factors[:, 0], factors[:, 1], atol=1e-5)  # A face keeps its shape.
  assert (np.abs(centre - 0.5) <= shift + 1e-5).all()


@given(seed=st.integers(0, 1000), size=st.sampled_from([(4, 4), (4, 8), (9, 3)]))
@settings(deadline=None, max_examples=15)
def test_a_turn_keeps_distances_in_pixels_and_stays_within_its_limit(seed, size):
  images, _, mask = random_batch(16, size=size)
  ends = {'landmarks': jnp.tile(jnp.array([0.5, 0.5, 0.6, 0.5]), (16, 1)), 'attributes': jnp.ones((16, 1))}
  turned = run(images, ends, mask, seed=seed, settings=Augmentation(rotate=30))[1]['landmarks']
  x, y = ((turned[:, 2:] - turned[:, :2]) * jnp.array([size[1], size[0]])).T
  np.testing.assert_allclose(np.hypot(x, y), 0.1 * size[1], rtol=1e-5)
  degrees = np.rad2deg(np.arctan2(y, x))
  assert np.abs(degrees).max() <= 30 + 1e-3
  assert degrees.min() < -5
  assert degrees.max() > 5


def test_what_comes_from_outside_is_the_mean_colour():
  images, labels, mask = random_batch(32)
  shifted, *_ = run(images + 10, labels, mask, settings=Augmentation(shift=0.5))
  assert (np.asarray(shifted) == 0).any(axis=(1, 2, 3)).sum() > 24


def test_brightness_and_contrast_are_one_gain_and_one_bias_an_image():
  images, labels, mask = random_batch(8)
  changed, *_ = run(images, labels, mask, settings=Augmentation(brightness=0.5, contrast=0.3))
  for before, after in zip(np.asarray(images, np.float64), np.asarray(changed, np.float64), strict=True):
    gain, bias = np.polyfit(before.ravel(), after.ravel(), 1)
    np.testing.assert_allclose(after, gain * before + bias, atol=1e-5)
    assert abs(gain - 1) <= 0.3
    assert abs(bias) <= 0.5


@pytest.mark.parametrize(
  ('task', 'field'),
  [
    (CategoricalTask('gaze', ('gaze',), classes=('left', 'ahead', 'right')), 'flip'),
    (DenseTask('parts', ('parts',), classes=('around', 'left_eye', 'right_eye')), 'flip'),
    (BinaryTask('attributes', ('Smiling', 'Looks_Left')), 'flip'),
    (RegressionTask('pose', ('yaw',)), 'flip'),
    (LandmarkTask('points', ('eye_left_x', 'eye_left_y', 'eye_right_x', 'eye_right_y')), 'flip'),
    (LandmarkTask('points', ('a_x', 'a_y', 'b_x', 'b_y')), 'flip'),
    (RegressionTask('face', ('distance',)), 'zoom'),
    (RegressionTask('face', ('orientation',)), 'rotate'),
  ],
)
def test_labels_that_a_change_makes_wrong_are_named_where_it_is_on(task, field):
  (line,) = augmentation_warnings([task], EVERYTHING)
  assert f'augment.{field}' in line
  assert repr(task.name) in line
  assert augmentation_warnings([task], EVERYTHING._replace(**{field: 0})) == []


def test_labels_that_follow_the_image_raise_no_doubt():
  gaze = CategoricalTask('gaze', ('gaze',), classes=('left', 'ahead', 'right'), mirrored=(2, 1, 0))
  for tasks in (clothing.TASKS, fairface.TASKS, mtfl.TASKS, utkface.TASKS, expressions.TASKS, (EYES, SMILE, gaze)):
    assert augmentation_warnings(tasks, EVERYTHING) == []
