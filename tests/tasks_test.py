"""Tasks are chosen by name, move their labels with the image, and tell what the train split says of them."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mtl_jax import tasks
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.tasks import (
  KINDS,
  BinaryTask,
  CategoricalTask,
  DenseTask,
  Geometry,
  LandmarkTask,
  OrdinalTask,
  RegressionTask,
  from_json,
  select,
)

POINTS = ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth')
ATTRIBUTES = BinaryTask('attributes', ('Smiling', 'Male', 'Young'))
LANDMARKS = LandmarkTask('landmarks', tuple(f'{point}_{axis}' for point in POINTS for axis in 'xy'))
AGE = RegressionTask('age', ('years',))
POSE = CategoricalTask('pose', ('pose',), classes=('left', 'front', 'right'), mirrored=(2, 1, 0))
ALL = (ATTRIBUTES, LANDMARKS, AGE, POSE)


def geometry(rows: int, *, flip=False, offset=(0.0, 0.0), scale=(1.0, 1.0)) -> Geometry:
  """The same transform for each of some rows."""
  return Geometry(jnp.full(rows, flip), jnp.tile(jnp.array(offset), (rows, 1)), jnp.tile(jnp.array(scale), (rows, 1)))


def names(chosen) -> list[str]:
  return [task.name for task in chosen]


# Choosing.


@pytest.mark.parametrize('asked', ['landmarks, attributes', ('landmarks', 'attributes'), ' landmarks,,attributes,'])
def test_tasks_come_in_the_order_in_which_they_are_named(asked):
  assert select(ALL, asked) == (LANDMARKS, ATTRIBUTES)


def test_a_star_makes_each_label_a_task_of_its_own():
  chosen = select(ALL, 'attributes/*,landmarks')
  assert names(chosen) == ['attributes/Smiling', 'attributes/Male', 'attributes/Young', 'landmarks']
  assert [task.labels for task in chosen[:3]] == [('Smiling',), ('Male',), ('Young',)]
  assert {task.group for task in chosen[:3]} == {'attributes'}


@pytest.mark.parametrize('asked', ['all', '', ()])
def test_all_and_none_named_are_all_tasks(asked):
  assert select(ALL, asked) == ALL


def test_one_label_can_be_a_task():
  assert select(ALL, 'attributes/Male') == (BinaryTask('attributes/Male', ('Male',)),)


def test_a_subset_of_attributes_keeps_the_order_asked_for():
  assert select(ALL, 'attributes', attributes=('Young', 'Smiling'))[0].labels == ('Young', 'Smiling')
  assert names(select(ALL, 'attributes/*', attributes=('Young',))) == ['attributes/Young']


@pytest.mark.parametrize(
  ('asked', 'named'),
  [
    ('atributes', 'atributes'),
    ('attributes/Smilin', 'Smilin'),
    ('attributes,landmarks,attributes', 'attributes'),
    ('attributes/*,attributes/Male', 'attributes/Male'),
    ('landmarks/*', 'landmarks'),
    ('landmarks/nose_x', 'landmarks'),
  ],
)
def test_unknown_and_repeated_names_are_refused(asked, named):
  with pytest.raises(ConfigError, match=rf"^config\.tasks: .*'{named}'"):
    select(ALL, asked)


@pytest.mark.parametrize(('attributes', 'named'), [(('Male', 'Young', 'Male'), 'Male'), (('male',), 'male')])
def test_an_attribute_that_is_unknown_or_named_twice_is_refused(attributes, named):
  with pytest.raises(ConfigError, match=rf"^config\.data\.attributes: .*'{named}'"):
    select(ALL, 'attributes', attributes=attributes)


DECADE = OrdinalTask('decade', ('decade',), classes=('young', 'old'), edges=(40.0,))
PARSING = DenseTask('parsing', ('parsing',), classes=('around', 'left', 'right'), mirrored=(0, 2, 1), size=(8, 12))


@pytest.mark.parametrize('task', [*ALL, DECADE, PARSING], ids=lambda task: task.name)
def test_a_task_survives_json(task):
  assert tasks.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_an_unknown_kind_of_task_is_refused():
  with pytest.raises(DataError, match="'voice'"):
    tasks.from_json({'kind': 'voice', 'name': 'x', 'labels': ['x']})


# Moving.

coordinates = hnp.arrays(np.float32, (4, 10), elements=st.floats(0, 1, width=32))
masks = hnp.arrays(np.bool_, (4, 10))


@given(labels=coordinates, mask=masks)
@settings(deadline=None, max_examples=30)
def test_flipping_twice_is_the_identity(labels, mask):
  once = LANDMARKS.move(jnp.array(labels), jnp.array(mask), geometry(4, flip=True))
  twice, twice_mask = LANDMARKS.move(*once, geometry(4, flip=True))
  np.testing.assert_allclose(twice, labels, atol=1e-7)
  np.testing.assert_array_equal(twice_mask, mask)


def test_a_flip_swaps_left_and_right_and_their_masks():
  labels = jnp.array([[0.3, 0.4, 0.6, 0.41, 0.5, 0.55, 0.35, 0.7, 0.65, 0.72]])
  mask = jnp.array([[False, False] + [True] * 8])  # Only the left eye is missing.
  moved, moved_mask = LANDMARKS.move(labels, mask, geometry(1, flip=True))
  np.testing.assert_allclose(moved[0], [0.4, 0.41, 0.7, 0.4, 0.5, 0.55, 0.35, 0.72, 0.65, 0.7], atol=1e-7)
  np.testing.assert_array_equal(moved_mask[0], [True] * 2 + [False] * 2 + [True] * 6)  # Now it is the right one.


@given(
  labels=coordinates,
  offset=st.tuples(*[st.floats(-0.5, 0.5)] * 2),
  scale=st.tuples(*[st.floats(0.5, 2)] * 2),
)
@settings(deadline=None, max_examples=30)
def test_a_crop_moves_points_and_masks_those_that_leave_the_image(labels, offset, scale):
  moved, mask = LANDMARKS.move(jnp.array(labels), jnp.ones((4, 10), bool), geometry(4, offset=offset, scale=scale))
  expected = (labels.reshape(4, 5, 2) - np.float32(offset)) / np.float32(scale)
  np.testing.assert_allclose(moved, expected.reshape(4, 10), atol=1e-5)
  edge = 1e-5  # Within rounding of the border either answer is right.
  inside = ((expected >= edge) & (expected <= 1 - edge)).all(-1)
  outside = ((expected < -edge) | (expected > 1 + edge)).any(-1)
  both = np.asarray(mask).reshape(4, 5, 2)
  assert both[inside].all()
  assert not both[outside].any()
  np.testing.assert_array_equal(both[..., 0], both[..., 1])


def test_a_missing_point_stays_missing_wherever_it_is_moved():
  labels = jnp.full((1, 10), 0.5)
  _, mask = LANDMARKS.move(labels, jnp.zeros((1, 10), bool), geometry(1, flip=True, offset=(0.1, 0.1)))
  assert not mask.any()


@pytest.mark.parametrize('flip', [False, True])
def test_a_nan_under_a_false_mask_stays_there(flip):
  labels = jnp.full((1, 10), 0.5).at[0, :2].set(jnp.nan)
  mask = jnp.ones((1, 10), bool).at[0, :2].set(False)
  moved, moved_mask = LANDMARKS.move(labels, mask, geometry(1, flip=flip, offset=(0.1, 0.0)))
  assert np.isfinite(np.asarray(moved)[np.asarray(moved_mask)]).all()
  assert moved_mask.sum() == 8


def test_only_flipped_rows_change_sides():
  labels = jnp.arange(20.0).reshape(2, 10) / 40
  halves = Geometry(jnp.array([True, False]), jnp.zeros((2, 2)), jnp.ones((2, 2)))
  moved, _ = LANDMARKS.move(labels, jnp.ones((2, 10), bool), halves)
  np.testing.assert_array_equal(moved[1], labels[1])
  assert not np.allclose(moved[0], labels[0])


def test_classes_are_mirrored_with_the_image():
  labels, mask = jnp.array([[0.0], [1.0], [2.0], [jnp.nan]]), jnp.array([[True], [True], [True], [False]])
  moved, moved_mask = POSE.move(labels, mask, geometry(4, flip=True))
  np.testing.assert_array_equal(moved[:3], [[2.0], [1.0], [0.0]])
  np.testing.assert_array_equal(moved_mask, mask)
  unmoved, _ = POSE.move(labels, mask, geometry(4, flip=False))
  np.testing.assert_array_equal(unmoved[:3], labels[:3])


@pytest.mark.parametrize('task', [ATTRIBUTES, AGE, CategoricalTask('race', ('race',), classes=('a', 'b'))])
def test_labels_that_do_not_depend_on_the_side_do_not_move(task):
  labels = jnp.ones((2, len(task.labels)))
  moved, mask = task.move(labels, labels > 0, geometry(2, flip=True, offset=(0.3, 0.3), scale=(0.5, 0.5)))
  np.testing.assert_array_equal(moved, labels)
  assert mask.all()


# What the train split says.


@given(
  labels=hnp.arrays(np.float32, (12, 10), elements=st.floats(-5, 5, width=32)),
  mask=hnp.arrays(np.bool_, (12, 10)),
)
@settings(deadline=None, max_examples=50)
def test_stats_are_the_mean_and_spread_of_the_labels_that_exist(labels, mask):
  mask[:2] = True
  labels = np.where(mask, labels, np.float32(np.nan))
  found = LANDMARKS.stats(labels, mask=mask, standardize=True)
  for column in range(10):
    there = labels[mask[:, column], column].astype(np.float64)
    np.testing.assert_allclose(found.mean[column], there.mean(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.baseline[column], there.mean(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.std[column], there.std() or 1.0, rtol=1e-5, atol=1e-6)


def test_stats_keep_float64_precision_over_many_labels():
  labels = np.float32(1000) + np.random.default_rng(0).random((100_000, 1)).astype(np.float32)
  found = AGE.stats(labels, mask=np.ones_like(labels, bool), standardize=True)
  np.testing.assert_allclose(found.std, labels.astype(np.float64).std(0), rtol=1e-6)
  np.testing.assert_allclose(found.mean, labels.astype(np.float64).mean(0), rtol=1e-7)


def test_labels_learned_as_they_are_have_mean_0_and_spread_1():
  labels, mask = np.array([[0, 1], [1, 1]], np.float32), np.ones((2, 2), bool)
  for found in (
    BinaryTask('attributes', ('Smiling', 'Male')).stats(labels, mask=mask, standardize=True),
    LandmarkTask('p', ('nose_x', 'nose_y')).stats(labels, mask=mask, standardize=False),
  ):
    np.testing.assert_array_equal(found.mean, [0, 0])
    np.testing.assert_array_equal(found.std, [1, 1])
    np.testing.assert_array_equal(found.baseline, [0.5, 1])


def test_the_baseline_of_classes_is_their_share():
  labels = np.array([[0.0], [2.0], [2.0], [np.nan], [1.0]], np.float32)
  found = POSE.stats(labels, mask=~np.isnan(labels), standardize=True)
  np.testing.assert_allclose(found.baseline, [0.25, 0.25, 0.5])


@pytest.mark.parametrize('task', ALL, ids=names(ALL))
def test_stats_and_empty_stats_have_the_same_shapes_and_types(task):
  labels = np.zeros((3, len(task.labels)), np.float32)
  found = task.stats(labels, mask=np.ones_like(labels, bool), standardize=True)
  for ours, empty in zip(jax.tree.leaves(found), jax.tree.leaves(task.empty_stats()), strict=True):
    assert (ours.shape, ours.dtype) == (empty.shape, empty.dtype)


def test_a_label_that_no_example_has_is_refused_by_name():
  mask = np.array([[True, False, True]] * 4)
  with pytest.raises(DataError, match="'Male' of task 'attributes'"):
    ATTRIBUTES.stats(np.zeros((4, 3), np.float32), mask=mask, standardize=True)


# Saying it.


def test_landmarks_are_described_in_pixels_and_marked():
  described = LANDMARKS.describe(np.tile([0.25, 0.5], 5), width=200, height=100)
  assert described == {point: [50.0, 50.0] for point in POINTS}
  np.testing.assert_array_equal(LANDMARKS.marks(np.tile([0.25, 0.5], 5)), np.tile([0.25, 0.5], (5, 1)))
  assert LANDMARKS.captions(described) == []


def test_likely_attributes_are_captions_the_most_likely_first():
  task = BinaryTask('attributes', ('High_Cheekbones', 'Male', 'Young'))
  described = task.describe(np.array([0.5, 0.25, 0.75]), width=1, height=1)
  assert described == {'High_Cheekbones': 0.5, 'Male': 0.25, 'Young': 0.75}
  assert task.captions(described) == ['Young  0.75', 'High Cheekbones  0.50']
  assert len(task.marks(np.array([0.5, 0.25, 0.75]))) == 0


def test_other_kinds_are_described_by_name():
  assert AGE.captions(AGE.describe(np.array([31.26]), width=1, height=1)) == ['years: 31.3']
  described = POSE.describe(np.array([0.3, 0.4, 0.3]), width=1, height=1)
  assert described == {'left': 0.3, 'front': 0.4, 'right': 0.3}
  assert POSE.captions(described) == ['front  0.40']  # Its best answer, though less likely than not.


def test_a_point_outside_its_image_is_no_label():
  stated = np.array([10, 20, 100, 50, 101, 50, -1, 5, np.nan, np.nan], np.float32)
  found = LANDMARKS.from_source(stated, width=100, height=50)
  np.testing.assert_allclose(found, [0.1, 0.4, 1, 1] + [np.nan] * 6, rtol=1e-6)


@given(outputs=hnp.arrays(np.float32, (3, 3), elements=st.floats(-30, 30, width=32)))
@settings(deadline=None, max_examples=30)
def test_predictions_are_probabilities(outputs):
  odds = np.exp(outputs.astype(np.float64))
  np.testing.assert_allclose(ATTRIBUTES.predict(jnp.array(outputs)), odds / (1 + odds), atol=1e-6)
  np.testing.assert_allclose(POSE.predict(jnp.array(outputs)), odds / odds.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
  ('kind', 'arguments', 'fields'),
  [
    (BinaryTask, ('a', ()), {}),
    (BinaryTask, ('a', ('x', 'x')), {}),
    (BinaryTask, ('a', 'xy'), {}),
    (BinaryTask, ('a', ['x']), {}),
    (RegressionTask, ('age', (5,)), {}),
    (RegressionTask, ('age', (None,)), {}),
    (RegressionTask, ('age', ('a\rb',)), {}),
    (RegressionTask, ('../age', ('age',)), {}),
    (RegressionTask, ('', ('age',)), {}),
    (RegressionTask, (None, ('age',)), {}),
    (CategoricalTask, ('pose', ('a', 'b')), {'classes': ('x', 'y')}),
    (CategoricalTask, ('pose', ('pose',)), {'classes': ('x', 'x')}),
    (CategoricalTask, ('pose', ('pose',)), {'classes': ('x',)}),
    (CategoricalTask, ('pose', ('pose',)), {'classes': (1, 2)}),
    *((CategoricalTask, ('pose', ('pose',)), {'classes': ('x', 'y', 'z'), 'mirrored': mirrored}) for mirrored in (
      (1, 0), (0, 1, 99), (0, 1, -1), (1, 2, 0), (0, 0, 1), ('x', 'z', 'y'), (0.0, 1.0, 2.0), (0, None, 2), [0, 1], 7,
    )),
    (DenseTask, ('map', ('map',)), {'classes': ('x', 'y'), 'mirrored': (1,)}),
    (DenseTask, ('map', ('map',)), {'classes': tuple(f'c{i}' for i in range(256))}),
    (DenseTask, ('map', ('map',)), {'classes': ('x', 'y'), 'size': (-1, 4)}),
    (OrdinalTask, ('age', ('a', 'b')), {'classes': ('x', 'y')}),
    (OrdinalTask, ('age', ('age',)), {'classes': ('x', 'y'), 'edges': ('a',)}),
    (LandmarkTask, ('points', ('nose_x', 'mouth_x', 'nose_y', 'mouth_y')), {}),
    (LandmarkTask, ('points', ('nose_y', 'nose_x')), {}),
    (LandmarkTask, ('points', ('nose_x', 'nose_y', 'chin_x')), {}),
    (LandmarkTask, ('points', ('lefteye_x', 'lefteye_y')), {}),
    (LandmarkTask, ('points', ('nose',)), {}),
    *((LandmarkTask, ('points', ('a_x', 'a_y', 'b_x', 'b_y')), {'nme_over': over}) for over in (
      ('a', 'a'), ('a', 'c'), ('a',), 'width', 0, -1.0, math.inf, math.nan, True, None,
    )),
  ],
)  # fmt: skip
def test_a_task_that_cannot_be_is_refused_where_it_is_made_and_where_it_is_read(kind, arguments, fields):
  with pytest.raises(ValueError, match=re.escape(repr(arguments[0]))) as caught:
    kind(*arguments, **fields)
  assert len(str(caught.value).splitlines()) == 1
  written = {'kind': kind.kind, 'name': arguments[0], 'labels': arguments[1], **fields}
  if not any(isinstance(value, list) for value in written.values()):  # As JSON has tuples.
    with pytest.raises(DataError) as caught:
      from_json(written)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('over', [('a', 'b'), 'diagonal', 30, 2.5])
def test_a_landmark_task_keeps_what_nme_divides_by_and_without_one_is_judged_by_mae(over):
  named, plain = (LandmarkTask('points', ('a_x', 'a_y', 'b_x', 'b_y'), nme_over=value) for value in (over, ''))
  assert from_json(json.loads(json.dumps(named.to_json()))) == named
  assert 'nme_over' not in plain.to_json()  # Sets and runs that had none open as the same task.
  assert (named.main_metric, plain.main_metric, LANDMARKS.main_metric) == ('nme', 'mae', 'nme')
  assert 'nme' in named.shown
  assert plain.shown == ('mae',)


FIELDS = st.sampled_from(['kind', 'name', 'labels', 'classes', 'mirrored', 'edges', 'size'])
VALUES = st.none() | st.integers() | st.text() | st.booleans() | st.floats() | st.sampled_from([*KINDS, ['a_x', 'a_y']])


@given(value=st.recursive(VALUES, lambda parts: st.lists(parts) | st.dictionaries(FIELDS, parts)))
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_task_or_refused_in_one_line(value):
  message = ''
  try:
    task = from_json(value)
    assert from_json(json.loads(json.dumps(task.to_json()))) == task
  except DataError as error:
    message = str(error)
  assert len(message.splitlines()) <= 1
