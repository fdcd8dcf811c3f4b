"""Drawn faces with expressions: labels and picture have one cause, whose table is known, and the attributes another."""

import dataclasses

import numpy as np
import pytest

from mtl_jax.data.prepare import prepare
from mtl_jax.data.store.reader import open_store
from mtl_jax.data.synthetic import drawing, expressions, people
from mtl_jax.data.synthetic.expressions import EXPRESSIONS, TABLE, UNITS
from mtl_jax.errors import DataError
from mtl_jax.objectives.matching import tables

NUM = 6_000


@pytest.fixture(scope='module')
def latent():
  drawn = [expressions.latent(index, seed=3) for index in range(NUM)]
  return np.array([expression for expression, _, _ in drawn]), np.array([on for _, on, _ in drawn])


def test_the_table_counted_in_the_labels_converges_to_the_true_one(latent):
  expressions, units = latent
  errors = []
  for num in (NUM // 60, NUM):
    found = [
      tables.counted(
        expressions[:num], units[:num, i].astype(int), known=np.ones(num, bool), shape=(7, 2), smoothing=1.0
      )
      for i in range(len(UNITS))
    ]
    errors.append(np.abs(np.stack(found, 1)[..., 1] - TABLE).max())
  assert errors[1] < 0.07  # Four standard errors of a seventh of 6,000 rows are 0.068 at the most.
  assert errors[1] < errors[0]


def test_expressions_are_equally_frequent(latent):
  shares = np.bincount(latent[0], minlength=len(EXPRESSIONS)) / NUM
  np.testing.assert_allclose(shares, 1 / 7, atol=0.018)  # Four standard errors.


def test_a_face_depends_on_seed_and_index_alone():
  one, again, other = (expressions.face(index, seed=5) for index in (7, 7, 8))
  np.testing.assert_array_equal(one.image, again.image)
  assert all(np.array_equal(one.labels[task], again.labels[task]) for task in one.labels)
  assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize('unit', UNITS)
def test_every_unit_shows(unit):
  subject = people.subject_of(11, seed=0)
  at_rest = dataclasses.replace(subject, strength={**subject.strength, **expressions._AT_REST})
  plain, shown = (
    drawing.draw(dataclasses.replace(at_rest, units=units), np.random.default_rng(0))[0].astype(int)
    for units in ({}, {unit: 1.0})
  )
  changed = np.abs(plain - shown).max(-1) > 25
  assert 20 < changed.sum() < 0.1 * changed.size


def test_prepared_faces_hold_the_four_tasks(tmp_path):
  arguments = {'image_size': (32, 32), 'num': 45, 'seed': 1, 'log': lambda _: None}
  prepare('synthetic:expressions', source=None, out=tmp_path / 'faces', **arguments)
  store = open_store(tmp_path / 'faces')
  assert [task.name for task in store.tasks] == ['expression', 'action_units', 'attributes', 'landmarks']
  assert all(store.splits[name] for name in ('train', 'val', 'test'))
  assert store.mask['expression'].all()
  with pytest.raises(DataError, match='prepare synthetic:expressions draws its own faces; leave out --source'):
    prepare('synthetic:expressions', source=tmp_path, out=tmp_path / 'more', **arguments)
