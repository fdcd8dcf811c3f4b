"""Several sets as one: whose labels their rows have, what is refused, and what a run makes of them."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import small_runs

from mtl_jax import config as configs
from mtl_jax.configs import default
from mtl_jax.data.input import mixture
from mtl_jax.data.input.mixture import open_mixture, parse_renames
from mtl_jax.data.prepare import prepare
from mtl_jax.data.source import Record
from mtl_jax.data.store.reader import open_store
from mtl_jax.data.store.writer import prepare as prepare_source
from mtl_jax.errors import ConfigError, DataError, Interrupted
from mtl_jax.evaluation.command import evaluate_workdir
from mtl_jax.platform import sharding
from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, RegressionTask, Task
from mtl_jax.training import building, loop

RENAME = ('smile/Smiling=attributes/Smiling',)
TASKS = 'attributes,landmarks,age'
POINTS = tuple(f'{p}_{a}' for p in ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth') for a in 'xy')
OTHER_TASKS = (LandmarkTask('landmarks', POINTS), BinaryTask('smile', ('Smiling',)), RegressionTask('age', ('years',)))


@dataclasses.dataclass
class Drawn:
  """Noise with landmarks, a smile and an age: a set whose labels overlap with those of the synthetic faces."""

  images: Path
  tasks: tuple[Task, ...] = OTHER_TASKS
  name: str = 'drawn'
  splits: tuple[str, ...] = ('train',) * 20 + ('val',) * 6 + ('test',) * 6

  def records(self):
    from PIL import Image

    rng = np.random.default_rng(0)
    for row, split in enumerate(self.splits):
      path = self.images / f'{row}.png'
      Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
      eyes_and_mouth = np.array([10, 10, 22, 10, 16, 16, 11, 24, 21, 24], np.float32) + row % 4
      labels = {'landmarks': eyes_and_mouth, 'smile': np.array([row % 2], np.float32), 'age': np.array([20.0 + row])}
      yield Record(path.name, split, path, {task.name: labels[task.name] for task in self.tasks})


def prepared(folder: Path, **fields) -> Path:
  images = folder.with_name(f'{folder.name}_images')
  images.mkdir(parents=True)
  prepare_source(Drawn(images, **fields), folder, image_size=(32, 32), log=lambda _: None)
  return folder


@pytest.fixture(scope='module')
def other_dir(tmp_path_factory) -> Path:
  return prepared(tmp_path_factory.mktemp('other') / 'noise')


@pytest.fixture(scope='module')
def mixed_config(store_dir, other_dir, tiny_config):
  def make(tasks: str = TASKS, **overrides):
    mixed = {'data.dir': '', 'data.dirs': (str(store_dir), str(other_dir)), 'data.rename': RENAME}
    net = {'model.backbone': 'convnet', 'model.head': 'linear'}
    return tiny_config(tasks, **{**net, **mixed, **overrides})

  return make


@pytest.fixture
def mixed(store_dir, other_dir):
  return open_mixture([store_dir, other_dir], parse_renames(RENAME))


# Labels.


def test_a_mixture_has_the_tasks_of_all_sets_and_renamed_ones_vanish(mixed, store_dir, other_dir):
  first, second = open_store(store_dir), open_store(other_dir)
  assert [task.name for task in mixed.tasks] == ['attributes', 'landmarks', 'age']
  assert mixed.tasks[:2] == first.tasks
  assert mixed.split_sizes == {name: len(first.splits[name]) + len(second.splits[name]) for name in first.splits}
  assert mixed.checksum not in (first.checksum, second.checksum)
  assert open_mixture([other_dir, store_dir], {}).checksum != mixed.checksum


@pytest.mark.parametrize('name', ['train', 'val', 'test'])
def test_a_split_is_the_sets_splits_one_after_another_with_lacking_labels_masked(name, mixed, store_dir, other_dir):
  split = mixture.load_split(mixed, name, mixed.tasks)
  first, second = open_store(store_dir), open_store(other_dir)
  ours, theirs = (slice(store.splits[name].start, store.splits[name].stop) for store in (first, second))
  size = ours.stop - ours.start
  assert split.parts == (size, theirs.stop - theirs.start)
  np.testing.assert_array_equal(split.images[:], np.concatenate([first.images[ours], second.images[theirs]]))
  for task in first.tasks:
    np.testing.assert_array_equal(split.labels[task.name][:size], first.labels[task.name][ours])
    np.testing.assert_array_equal(split.mask[task.name][:size], first.mask[task.name][ours])
  column = first.tasks[0].labels.index('Smiling')
  np.testing.assert_array_equal(split.labels['attributes'][size:, column], second.labels['smile'][theirs, 0])
  assert split.mask['attributes'][size:, column].all()
  assert not np.delete(split.mask['attributes'][size:], column, axis=1).any()
  np.testing.assert_array_equal(split.labels['landmarks'][size:], second.labels['landmarks'][theirs])
  np.testing.assert_array_equal(split.labels['age'][size:], second.labels['age'][theirs])
  assert not split.mask['age'][:size].any()
  ids = np.concatenate([np.r_[ours], len(first.images) + np.r_[theirs]])
  np.testing.assert_array_equal(split.example_id, ids)
  assert split.example_id.dtype == np.int32
  np.testing.assert_array_equal(split.source_size[size:], second.source_size[theirs])


def test_rows_are_read_from_their_set(mixed):
  split = mixture.load_split(mixed, 'train', mixed.tasks)
  positions = np.array([len(split) - 1, 0, -1, split.parts[0], split.parts[0] - 1])
  batch = split.read(positions)
  np.testing.assert_array_equal(batch['image'][[0, 1, 3, 4]], split.images[:][positions[[0, 1, 3, 4]]])
  assert batch['image'].dtype == np.uint8
  assert not any(mask[2].any() for mask in batch['mask'].values())


def test_what_a_set_lacks_moves_neither_losses_nor_gradients(mixed_config):
  """A step in which NaN lies under every False mask ends in the same bits, weights and metrics."""
  config = mixed_config(**{'data.mode': 'streamed', 'data.augment.flip': True})
  run = building.build(config, mixture.open_data(config.data))
  clean = next(loop.input_items(run, 0))[1]
  read = run.input.read(run.sampler.indices(0))
  for name, labels in read['labels'].items():
    labels[~read['mask'][name]] = np.nan
  whole = sharding.by_rows(run.mesh, axis=1)
  dirty = sharding.to_global(jax.tree.map(lambda values: values[None], read), whole)
  states = []
  for batch in (clean, dirty):
    state = jax.jit(run.make_state, out_shardings=sharding.replicated(run.mesh))()
    states.append(jax.device_get(run.compiled_steps(state, (), batch)))
  for one, other in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(one, other)


# What is refused.


def test_sets_of_other_image_sizes_are_refused_with_the_size_to_prepare(store_dir, tmp_path, refused):
  prepare('synthetic', source=None, out=tmp_path / 'small', image_size=(16, 24), num=8, seed=0, log=lambda _: None)
  sets = f'--config.data.dirs={store_dir},{tmp_path / "small"}'
  told = refused('train', '--config', 'default', '--workdir', tmp_path / 'run', sets)
  assert f'{tmp_path / "small"} holds images of 16x24' in told
  assert '--image_size 32 32' in told


@pytest.mark.parametrize(
  ('rename', 'said'),
  [
    ('smile', "'smile' is no TASK/LABEL=TASK/LABEL"),
    ('smile/Smiling=attributes', "'smile/Smiling=attributes' is no TASK/LABEL=TASK/LABEL"),
    ('smile/Smilin=attributes/Smiling', "no choice 'smile/Smilin'; did you mean 'smile/Smiling'?"),
    ('smiles/x=y/z', "no choice 'smiles/x'"),
    ('smile/Smiling=attributes/Smilling', "no choice 'attributes/Smilling'; did you mean 'attributes/Smiling'?"),
    (
      'age/years=attributes/Young',
      r"its task 'attributes' is regression, that of the sets before it binary.*config\.data\.rename",
    ),
    ('landmarks/nose_x=landmarks2/nose_x', 'landmarks.* named POINT_x and POINT_y in pairs'),
  ],
)
def test_a_wrong_rename_is_refused_by_name(rename, said, store_dir, other_dir):
  with pytest.raises((ConfigError, DataError), match=said) as error:
    open_mixture([store_dir, other_dir], parse_renames((rename,)))
  assert '\n' not in str(error.value)


def test_two_labels_of_a_set_cannot_become_one(store_dir):
  renames = parse_renames(('attributes/Bald=attributes/Bangs',))
  with pytest.raises(ConfigError, match=r'attributes/Bald and attributes/Bangs of .* would both be attributes/Bangs'):
    open_mixture([store_dir], renames)
  with pytest.raises(ConfigError, match='attributes/Bald is renamed twice'):
    parse_renames(('attributes/Bald=attributes/Bangs', 'attributes/Bald=attributes/Blurry'))


def test_tasks_of_one_name_and_another_kind_are_refused(tmp_path):
  three = CategoricalTask('age', ('years',), classes=tuple(map(str, range(60))))
  first = prepared(tmp_path / 'numbers', tasks=(OTHER_TASKS[2],))
  second = prepared(tmp_path / 'classes', tasks=(three,))
  with pytest.raises(DataError, match="classes: its task 'age' is categorical, that of the sets before it regression"):
    open_mixture([first, second], {})


def test_labels_of_different_kinds_cannot_become_one_task(other_dir):
  renames = parse_renames(('smile/Smiling=both/Smiling', 'age/years=both/years'))
  with pytest.raises(ConfigError, match=r'age/years of .* is regression and cannot join both, which is binary'):
    open_mixture([other_dir], renames)


def test_a_set_without_train_rows_or_named_twice_is_refused(store_dir, other_dir, tmp_path):
  empty = prepared(tmp_path / 'tests', splits=('test',) * 4)
  data = open_mixture([store_dir, empty], {})
  with pytest.raises(DataError, match=r"split 'train' of .*tests has no rows"):
    mixture.load_split(data, 'train', data.tasks)
  assert mixture.load_split(data, 'val', data.tasks).parts == (len(open_store(store_dir).splits['val']),)
  with pytest.raises(ConfigError, match='is named twice'):
    open_mixture([other_dir, other_dir], {})


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    (('data.dir=a', 'data.dirs=b,c'), 'config.data.dir and config.data.dirs are both set'),
    (('data.dirs=b,c', 'data.weights=1'), 'config.data.weights holds 1 numbers for 2'),
    (('data.weights=1',), 'config.data.weights holds 1 numbers for 0'),
    (('data.dirs=b,c', 'data.weights=1,0'), 'config.data.weights '),
    (('data.dirs=b,c', 'data.weights=1,inf'), 'config.data.weights '),
    (('data.dirs=b,c', 'data.weights=1,x'), 'config.data.weights '),
  ],
)
def test_wrong_fields_are_refused_by_name(overrides, said, tmp_path):
  (tmp_path / 'config.py').write_text('from mtl_jax.configs.default import get_config')
  with pytest.raises(ConfigError, match=said):
    configs.load(tmp_path / 'config.py', overrides)


def test_weights_survive_json_and_take_whole_numbers():
  config = default.get_config()
  configs.apply_override(config, 'data.dirs=a,b')
  configs.apply_override(config, 'data.weights=3,0.5')
  assert config.data.weights == (3.0, 0.5)
  assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))).data.weights == (3.0, 0.5)


# Runs.


@pytest.fixture(scope='module')
def mixed_run(tmp_path_factory, mixed_config) -> Path:
  directory = tmp_path_factory.mktemp('mixed') / 'run'
  loop.train(mixed_config(), directory)
  return directory


def test_a_run_over_two_sets_learns_all_tasks(mixed_run):
  lines = [json.loads(line) for line in (mixed_run / 'metrics.jsonl').read_text().splitlines()]
  for task in TASKS.split(','):
    losses = [line[f'train/{task}/loss'] for line in lines]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert np.min(losses) > 0
    assert np.isfinite(lines[-1][f'val/{task}/loss'])


def test_the_log_says_how_many_rows_of_each_set_a_batch_holds(mixed_config, tmp_path, said, store_dir, other_dir):
  loop.train(mixed_config('landmarks', **{'data.weights': (1.0, 3.0), 'train.steps': 1}), tmp_path)
  assert f'each batch holds 2 rows of {store_dir}, ' in '\n'.join(said)
  assert f'each batch holds 6 rows of {other_dir}, which has 20' in '\n'.join(said)


def test_resident_and_streamed_mixtures_give_the_same_bits(mixed_config):
  metrics = []
  for mode in ('resident', 'streamed'):
    config = mixed_config(**{'data.mode': mode})
    run = building.build(config, mixture.open_data(config.data))
    assert run.input.reason.startswith(mode)
    state = jax.jit(run.make_state, out_shardings=sharding.replicated(run.mesh))()
    _, items = next(loop.input_items(run, 1))
    metrics.append(jax.device_get(run.compiled_steps(state, run.input.place(), items)[1]))
  for name, values in metrics[0].items():
    np.testing.assert_array_equal(values, metrics[1][name])


def test_a_resumed_mixture_ends_in_the_same_bits(mixed_config, mixed_run, tmp_path, monkeypatch):
  small_runs.at_step(monkeypatch, 1)
  with pytest.raises(Interrupted):
    loop.train(mixed_config(), tmp_path)
  assert loop.train(mixed_config(), tmp_path).step == 4
  small_runs.assert_same_bits(mixed_run, tmp_path)


def test_evaluation_covers_the_mixture_and_each_set_alone(mixed_run, store_dir, other_dir):
  whole = evaluate_workdir(mixed_run)
  assert set(whole['tasks']) == set(TASKS.split(','))
  first = evaluate_workdir(mixed_run, data=store_dir)
  second = evaluate_workdir(mixed_run, data=other_dir)
  assert whole['num_examples'] == first['num_examples'] + second['num_examples']
  assert set(first['tasks']) == {'attributes', 'landmarks'}
  assert set(second['tasks']) == set(TASKS.split(','))
  outputs = second['tasks']['attributes']['per_output']
  assert [name for name, values in outputs.items() if values['accuracy'] is not None] == ['Smiling']
  assert outputs['Smiling']['num_labels'] == 6
  assert second['tasks']['attributes']['macro_accuracy'] == outputs['Smiling']['accuracy']
  assert whole['tasks']['age'] == second['tasks']['age']
  smiles = whole['tasks']['attributes']['per_output']['Smiling']['num_labels']
  assert smiles == whole['num_examples']
  assert (mixed_run / 'eval' / f'{other_dir.name}-test.json').is_file()
  assert (mixed_run / 'eval' / 'test.json').is_file()


def test_attributes_as_tasks_of_their_own_are_evaluated_where_they_have_labels(mixed_config, other_dir, tmp_path):
  loop.train(mixed_config('attributes/Bald,attributes/Smiling', **{'train.steps': 1}), tmp_path)
  assert set(evaluate_workdir(tmp_path)['tasks']) == {'attributes/Bald', 'attributes/Smiling'}
  assert set(evaluate_workdir(tmp_path, data=other_dir)['tasks']) == {'attributes/Smiling'}
