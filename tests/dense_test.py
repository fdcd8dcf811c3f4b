"""Dense tasks: maps move with the image, unlabelled pixels count nowhere, and faces are parsed beside other tasks."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

import mtl_jax
from mtl_jax import cli
from mtl_jax.configs import default, demo
from mtl_jax.data.input import augment
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.data.prepare import prepare
from mtl_jax.data.sources.image_file import read_upright
from mtl_jax.data.store.reader import open_store
from mtl_jax.data.synthetic.canvas import PARTS
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.evaluation import predict
from mtl_jax.metrics import draws
from mtl_jax.models import multitask
from mtl_jax.tasks import DenseTask, Geometry

SIZE = (8, 12)
DEMO = str(Path(demo.__file__))
PARSING = DenseTask('parsing', ('parsing',), classes=('around', 'left', 'right'), mirrored=(0, 2, 1), size=SIZE)


def maps(num, seed=0):
  rng = np.random.default_rng(seed)
  shape = (num, *SIZE)
  return rng.integers(0, 3, shape).astype(np.uint8), rng.integers(0, 3, shape).astype(np.uint8), rng.random(shape) < 0.7


def test_a_map_moves_as_the_image_does():
  """A picture whose left, right and surroundings have one colour each is still the picture of its map."""
  label = np.zeros((16, *SIZE), np.uint8)
  label[:, 2:6, 1:5], label[:, 2:6, 6:11] = 1, 2
  colours = jnp.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
  images = colours[label]
  settings = Augmentation(flip=True, shift=0.2, zoom=0.2)
  moved, labels, mask = augment.augment(
    images, {'parsing': label}, {'parsing': np.ones(label.shape, bool)}, key=jax.random.key(3), tasks=(PARSING,),
    settings=settings,
  )  # fmt: skip
  # Classes swap sides in a mirrored picture, as colours do not.
  geometry, _ = augment._draw(jax.random.key(3), images.shape, settings)
  seen = jnp.where(geometry.flip[:, None, None], jnp.array([0, 2, 1])[labels['parsing']], labels['parsing'])
  plain = moved.max(-1) > 0.75  # Elsewhere two colours are blended.
  agree = (moved.argmax(-1) == seen - 1)[plain & mask['parsing']]
  assert agree.size > 16 * 38 / 2  # Half of the coloured pixels.
  assert agree.all()
  assert bool(geometry.flip.any())
  assert not bool(geometry.flip.all())


def test_an_unmoved_map_stays_as_it_is_and_what_comes_from_outside_is_masked():
  label, _, mask = maps(3)
  still = Geometry(jnp.zeros(3, bool), jnp.zeros((3, 2)), jnp.ones((3, 2)))
  moved, moved_mask = PARSING.move(label, mask, still)
  np.testing.assert_array_equal(moved, label)
  np.testing.assert_array_equal(moved_mask, mask)
  left = Geometry(jnp.zeros(3, bool), jnp.tile(jnp.array([3 / 12, 0.0]), (3, 1)), jnp.ones((3, 2)))
  moved, moved_mask = PARSING.move(label, np.ones_like(mask), left)
  np.testing.assert_array_equal(moved[:, :, :9], label[:, :, 3:])
  np.testing.assert_array_equal(moved_mask, np.broadcast_to(np.arange(12) < 9, mask.shape))


def test_a_turned_map_follows_the_turned_image():
  turn = jnp.array([[[0.0, -8 / 12], [12 / 8, 0.0]]])  # A right angle, of x and y in units of width and height.
  label = np.zeros((1, *SIZE), np.uint8)
  label[0, 4, 8] = 1  # 2.5 to the right of the centre and 0.5 below it.
  moved, _ = PARSING.move(
    label, np.ones(label.shape, bool), Geometry(jnp.zeros(1, bool), jnp.zeros((1, 2)), jnp.ones((1, 2)), turn)
  )
  assert np.argwhere(np.asarray(moved[0])).tolist() == [[6, 5]]


def test_metrics_equal_scikit_learn_over_the_labelled_pixels():
  predictions, labels, mask = maps(5)
  found = PARSING.metrics(predictions, labels, mask=mask, source_size=np.ones((5, 2)))
  expected = jaccard_score(labels[mask], predictions[mask], average=None)
  np.testing.assert_allclose([found['per_output'][name]['iou'] for name in PARSING.classes], expected, rtol=1e-12)
  assert found['miou'] == pytest.approx(np.mean(expected), rel=1e-12)
  assert found['pixel_accuracy'] == pytest.approx((labels == predictions)[mask].mean(), rel=1e-12)
  json.dumps(found, allow_nan=False)


def test_metrics_of_draws_equal_those_of_the_drawn_images():
  predictions, labels, mask = maps(6)
  drawn = draws.draw(np.array([0, 0, 1, 2, -1, -1]), num_resamples=10)
  found = PARSING.metrics(predictions, labels, mask=mask, source_size=np.ones((6, 2)), draws=drawn)
  for number in range(10):
    rows = np.repeat(np.arange(6), drawn.weights[drawn.clusters, number].astype(int))
    alone = PARSING.metrics(predictions[rows], labels[rows], mask=mask[rows], source_size=np.ones((len(rows), 2)))
    assert found['miou'][number] == pytest.approx(alone['miou'], rel=1e-12)
    assert found['pixel_accuracy'][number] == pytest.approx(alone['pixel_accuracy'], rel=1e-12)


def test_a_source_states_maps_in_its_own_pixels_and_wrong_ones_are_refused():
  stated = np.kron(np.array([[0.0, 1.0], [2.0, np.nan]]), np.ones((40, 60))).astype(np.float32)
  found = PARSING.from_source(stated, width=120, height=80)
  np.testing.assert_array_equal(found, np.kron(np.array([[0.0, 1.0], [2.0, np.nan]]), np.ones((4, 6))))
  with pytest.raises(ValueError, match='shape'):
    PARSING.from_source(stated, width=80, height=120)
  with pytest.raises(ValueError, match='0 to'):
    PARSING.check(np.full((2, 2), 3.0))


def test_a_head_that_gives_no_map_is_refused():
  config = default.get_config()
  config.model.heads = {'parsing': 'mlp'}
  with pytest.raises(ConfigError, match=r'config\.model\.heads\.parsing: mlp'):
    multitask.head_of(config.model, PARSING)


def test_only_synthetic_faces_have_parts(tmp_path):
  settings = {'image_size': (8, 8), 'num': 4, 'seed': 0, 'log': print}
  with pytest.raises(DataError, match='--parsing'):
    prepare('synthetic:expressions', source=None, out=tmp_path / 'set', parsing=True, **settings)


def test_faces_are_parsed_beside_attributes_and_landmarks(tmp_path, capsys):
  settings = {'image_size': (32, 32), 'num': 80, 'seed': 1, 'log': lambda line: None}
  prepare('synthetic', source=None, out=tmp_path / 'set', parsing=True, **settings)
  prepare('synthetic', source=None, out=tmp_path / 'plain', **settings)
  store, plain = open_store(tmp_path / 'set'), open_store(tmp_path / 'plain')
  np.testing.assert_array_equal(store.images[:], plain.images[:])
  for task in plain.tasks:
    np.testing.assert_array_equal(store.labels[task.name], plain.labels[task.name])
  parts = store.labels['parsing']
  assert set(np.unique(parts)) >= {
    PARTS.index(part) for part in ('background', 'skin', 'hair', 'eyes', 'nose', 'mouth')
  }
  # Between the eyes' landmarks and the mouth's corners, the nose lies on the face.
  x, y = (store.labels['landmarks'].reshape(-1, 5, 2)[:, 2] * 32).astype(int).T
  assert (parts[np.arange(len(parts)), y, x] == PARTS.index('nose')).mean() > 0.8

  overrides = {
    'data.dir': tmp_path / 'set', 'tasks': 'attributes,landmarks,parsing', 'train.steps': 60, 'train.batch_size': 8,
    'optimizer.learning_rate': 0.01, 'optimizer.warmup_steps': 2,
    'model.backbone': 'convnet', 'model.width': 8, 'model.head_features': 16,
  }  # fmt: skip
  flags = [f'--config.{name}={value}' for name, value in overrides.items()]
  assert cli.main(['train', '--config', DEMO, '--workdir', str(tmp_path / 'run'), *flags]) == 0
  assert cli.main(['eval', '--workdir', str(tmp_path / 'run')]) == 0
  found = json.loads((tmp_path / 'run/eval/test.json').read_text())
  assert set(found['tasks']) == {'attributes', 'landmarks', 'parsing'}
  assert 0 < found['tasks']['parsing']['miou'] < found['tasks']['parsing']['pixel_accuracy'] < 1
  log = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  losses = [line['train/parsing/loss'] for line in log if 'train/parsing/loss' in line]
  assert losses[-1] < 0.8 * losses[0]

  capsys.readouterr()
  picture = tmp_path / 'set/source/img_align_celeba/000001.jpg'
  assert predict.predict_files(mtl_jax.load(tmp_path / 'run'), [picture], out=tmp_path / 'drawn') == 0
  shares = json.loads(capsys.readouterr().out)['parsing']
  assert sum(shares.values()) == pytest.approx(1)
  plain = read_upright(picture)
  plain = plain.resize((round(plain.width * 400 / plain.height), 400))
  with Image.open(tmp_path / 'drawn/000001.png') as drawn:
    pixels = np.asarray(drawn.crop((0, 0, *plain.size)), int)
  covered = (np.abs(pixels - np.asarray(plain)).max(-1) > 8).mean()  # By the mask, and a little by landmarks.
  assert covered == pytest.approx(1 - shares['background'], abs=0.03)


def test_a_mask_is_drawn_over_the_picture_and_nothing_else_there(tmp_path):
  Image.new('RGB', (60, 40), 'white').save(tmp_path / 'a.png')
  drawn = np.asarray(
    predict.draw(tmp_path / 'a.png', {'parsing': np.repeat([[0, 1, 2]], 4, 1).repeat(8, 0)}, (PARSING,))
  )
  left, right = drawn[200, 300], drawn[200, 500]
  assert drawn[:, :196].min() == 255
  assert not np.array_equal(left, right)
  for x, colour in ((210, left), (390, left), (410, right), (590, right)):
    assert (drawn[5:395, x] == colour).all()
