"""Frozen stages stay as they are; training on their kept outputs is training on the images."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mtl_jax.data.input import mixture
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.store import reader
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import ConfigError, DataError, Interrupted
from mtl_jax.evaluation.command import evaluate_workdir
from mtl_jax.models import multitask, own_weights
from mtl_jax.platform import sharding
from mtl_jax.run import checkpoint, features, trained_model, workdir
from mtl_jax.run.checkpoint import Checkpoints
from mtl_jax.run.features import FeatureCache
from mtl_jax.run.state import TrainState
from mtl_jax.studies import program
from mtl_jax.training import building, loop
from mtl_jax.training.progress import read_metrics

PLAIN = {f'data.augment.{name}': 0.0 for name in ('shift', 'zoom', 'rotate', 'brightness', 'contrast')} | {
  'data.augment.flip': False
}
SMALL = {'model.backbone': 'convnet', 'model.norm': 'batch'}  # Of two stages; 512 features of a 32x32 image.
RESNET = {'model.backbone': 'resnet18', 'model.norm': 'auto'}
TASKS = ('attributes', 'landmarks')
IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)


@pytest.fixture(scope='module')
def frozen_config(tiny_config):
  """`frozen_config(tasks, **overrides)`: a small frozen backbone, no augmentation, no clipping by the global norm."""
  return lambda tasks='attributes,landmarks', **overrides: tiny_config(
    tasks, **{**PLAIN, **SMALL, 'model.freeze': 'backbone', 'optimizer.clip_norm': 0.0, **overrides}
  )


@pytest.fixture(scope='module')
def runs(frozen_config, tmp_path_factory) -> Path:
  """Finished runs beside each other: joint and single-task, and joint from the images in every step."""
  root = tmp_path_factory.mktemp('runs')
  loop.train(frozen_config(), root / 'joint')
  loop.train(frozen_config(**{'data.feature_cache': 'none'}), root / 'from_images')
  for task in TASKS:
    loop.train(frozen_config(task), root / task)
  return root


def final_state(directory: Path) -> TrainState:
  config, _ = workdir.read(directory)
  run = building.build(config, open_store(Path(config.data.dir)))
  checkpoints = Checkpoints(directory)
  found = checkpoints.restore(checkpoint.abstract_state(run.make_state, sharding.replicated(run.mesh)))
  checkpoints.close()
  assert found is not None
  return found[0]


def first_state(config) -> tuple[building.Run, TrainState]:
  run = building.build(config, open_store(Path(config.data.dir)))
  return run, jax.jit(run.make_state)()


def largest_difference(one, other) -> float:
  return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), one, other)))


# The cut.


@pytest.mark.parametrize(('backbone', 'freeze'), [(SMALL, 'stage0'), (SMALL, 'backbone'), (RESNET, 'stage3')])
def test_a_backbone_that_is_cut_computes_what_the_whole_one_does(tiny_config, backbone, freeze):
  config = tiny_config(**backbone, **{'model.freeze': freeze})
  tasks = workdir.DataFacts.of(open_store(Path(config.data.dir))).selected(config)
  cut = multitask.from_config(config.model, tasks)
  assert cut.frozen is not None
  images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  variables = dict(jax.jit(cut.init)(jax.random.key(0), images))
  held = variables['frozen']['frozen']['variables']
  whole = {}
  for kind in ('params', 'batch_stats'):
    rest = variables.get(kind, {}).get('shared', {}).get('backbone', {}).get('backbone', {})
    heads = {name: tree for name, tree in variables.get(kind, {}).items() if name.startswith('head_')}
    whole[kind] = {'shared': {'backbone': {**held[kind]['backbone'], **rest}}, **heads}
    assert not held[kind]['backbone'].keys() & rest.keys()
  plain = multitask.from_config(tiny_config(**backbone).model, tasks)

  @jax.jit
  def in_three_ways(variables, whole):
    features = cut.encode_frozen({'frozen': variables['frozen']['frozen']}, images)
    after = cut.after_frozen.outputs(variables, features)
    return plain.outputs(whole, images), cut.outputs(variables, images), after

  expected, *found = in_three_ways(variables, whole)
  for ours in found:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, expected)


def test_a_stage_that_there_is_not_is_refused(tiny_config):
  with pytest.raises(ConfigError, match=r'model.freeze=stage5: resnet18 has the stages 0 to 4; choose'):
    multitask.from_config(tiny_config(**RESNET, **{'model.freeze': 'stage5'}).model, ())


def test_what_is_frozen_has_no_optimizer_state_and_no_average(frozen_config):
  config = frozen_config(**{'optimizer.ema_decay': 0.9, 'model.freeze': 'stage0'})
  state = jax.eval_shape(building.build(config, open_store(Path(config.data.dir))).make_state)
  frozen = {leaf.shape for leaf in jax.tree.leaves(state.variables['frozen'])}
  assert (3, 3, 3, 4) in frozen  # The first convolution's.
  assert (3, 3, 3, 4) not in {leaf.shape for leaf in jax.tree.leaves((state.optimizer, state.average))}
  assert state.average is not None
  assert state.average.keys() == {'params', 'batch_stats'}
  assert state.eval_variables['frozen'] is state.variables['frozen']


def test_the_step_computes_no_gradient_of_what_is_frozen(frozen_config):
  """The compiled step of frozen stages costs one pass forward through them, not three."""
  flops = {}
  for freeze in ('', 'backbone'):
    config = frozen_config(**RESNET, **{'model.freeze': freeze, 'data.mode': 'streamed'})
    run = building.build(config, open_store(Path(config.data.dir)))
    batch = run.train.read(run.sampler.indices(0))
    analysis: Any = jax.jit(run.one_step).lower(jax.eval_shape(run.make_state), batch).cost_analysis()
    flops[freeze] = analysis['flops']
  assert flops['backbone'] < 0.45 * flops['']


@pytest.mark.parametrize('freeze', ['stage0', 'backbone'])
def test_pretrained_weights_reach_the_stages_before_and_after_the_cut(frozen_config, freeze):
  config = frozen_config(**{'model.freeze': freeze})
  run = building.build(config, open_store(Path(config.data.dir)))
  shapes = jax.eval_shape(
    partial(multitask.backbone_from_config(config.model).init, train=False), jax.random.key(0), IMAGES
  )
  loaded = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
  variables = jax.jit(run.make_state)(pretrained_weights=own_weights.of_backbone(loaded)).variables
  held = variables['frozen']['frozen']['variables']
  for kind in ('params', 'batch_stats'):
    found = {**variables[kind].get('shared', {}).get('backbone', {}).get('backbone', {}), **held[kind]['backbone']}
    jax.tree.map(np.testing.assert_array_equal, found, dict(loaded[kind]))


def test_a_study_over_kept_features_starts_from_a_run(runs, frozen_config, tmp_path):
  config = frozen_config(**{'model.weights': str(runs / 'joint')})
  built = program.build(config, mixture.open_data(config.data), directory=tmp_path / 'study')
  state = jax.jit(built.init)({'seed': 1, 'learning_rate': 1e-3}, built.weights)
  theirs = own_weights.flatten(trained_model.restore(runs / 'joint').variables)
  for name, value in own_weights.flatten(state.variables).items():
    np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_a_study_over_kept_features_starts_from_a_run_whose_other_layers_do_not_fit(runs, frozen_config, tmp_path):
  config = frozen_config(**{'model.weights': str(runs / 'joint'), 'model.trunk_features': (5,)})
  built = program.build(config, mixture.open_data(config.data), directory=tmp_path / 'study')
  state = jax.eval_shape(built.init, {'seed': 1, 'learning_rate': 1e-3}, built.weights)
  names = own_weights.flatten(state.variables)
  assert any('trunk_layers' in name for name in names)
  assert not any('/backbone' in name for name in built.weights)


# Statistics.


@pytest.mark.parametrize('images', ['kept', 'none'])
def test_frozen_stages_end_as_they_began(runs, frozen_config, images):
  _, before = first_state(frozen_config())
  after = final_state(runs / {'kept': 'joint', 'none': 'from_images'}[images])
  jax.tree.map(np.testing.assert_array_equal, after.variables['frozen'], before.variables['frozen'])
  assert largest_difference(after.variables['params'], before.variables['params']) > 0


def test_drifting_statistics_move_and_nothing_else_of_the_frozen_stages(frozen_config, tmp_path, said):
  config = frozen_config(**{'model.frozen_statistics': 'drift'})
  loop.train(config, tmp_path / 'run')
  _, before = first_state(config)
  after = final_state(tmp_path / 'run').variables['frozen']['frozen']['variables']
  before = before.variables['frozen']['frozen']['variables']
  jax.tree.map(np.testing.assert_array_equal, after['params'], before['params'])
  assert largest_difference(after['batch_stats'], before['batch_stats']) > 1e-3
  assert 'features: not kept, the frozen stages run in every step: their batch statistics drift' in '\n'.join(said)
  assert not (tmp_path / 'features').exists()


# Features in place of images.


def lines(directory: Path) -> list[dict[str, float]]:
  timed = ('images_per_sec',)
  return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(directory / 'metrics.jsonl')]


def test_training_on_features_is_training_on_images(runs):
  assert len(list((runs / 'features').glob('*/rows.bin'))) == 2  # train and val, of four runs.
  kept, computed = lines(runs / 'joint'), lines(runs / 'from_images')
  assert [line['step'] for line in kept] == [1, 2, 3, 4]
  for ours, theirs in zip(kept, computed, strict=True):
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4)
  assert any('val/landmarks/nme' in line for line in kept)


def test_eval_goes_on_from_images_where_features_cannot_be_kept(runs, monkeypatch):
  def refuse(*_):
    raise DataError('no')

  monkeypatch.setattr(FeatureCache, 'replace_images', refuse)
  assert evaluate_workdir(runs / 'attributes', split='val')['num_examples'] == 5


def test_eval_is_the_same_from_features_and_from_images(runs, tmp_path):
  found = {}
  for name in ('joint', 'from_images'):
    evaluate_workdir(runs / name, predictions=tmp_path / f'{name}.npz')
    found[name] = np.load(tmp_path / f'{name}.npz')
  for field in found['joint'].files:
    np.testing.assert_allclose(found['joint'][field], found['from_images'][field], rtol=1e-4, atol=1e-6)


def test_streamed_features_give_the_bits_of_resident_ones(runs, frozen_config):
  for mode in ('streamed', 'resident'):
    loop.train(frozen_config(**{'data.mode': mode}), runs / mode)
  assert lines(runs / 'streamed') == lines(runs / 'resident')


def test_runs_beside_each_other_compute_once(runs, frozen_config, monkeypatch):
  monkeypatch.setattr(FeatureCache, '_computed', lambda *_: pytest.fail('computed again'))
  config = frozen_config('landmarks', **{'optimizer.learning_rate': 0.01})
  run, state = first_state(config)
  for frozen in (state, final_state(runs / 'joint')):  # A new run, and one that resumes.
    found = building.on_features(run, frozen.variables, runs / 'another', stop=bool)
    assert found.train.inputs['features'].shape == (len(run.train), 512)


def test_images_that_are_augmented_leave_validation_its_features(runs, frozen_config):
  config = frozen_config(**{'data.augment.flip': True})
  run, state = first_state(config)
  found = building.on_features(run, state.variables, runs / 'flipped', stop=bool)
  assert found.train is run.train
  assert found.val is not None
  assert found.val.inputs['features'].dtype == np.float32
  assert found.val.inputs['features'].shape == (len(found.val), 512)


@pytest.fixture
def kept(frozen_config, tmp_path):
  """`kept(...)`: the train and validation splits of a run, on features of variables that its seed decides."""

  def keep(stop=bool, **overrides) -> dict[str, Split]:
    config = frozen_config(**overrides)
    run = building.build(config, mixture.open_data(config.data))
    random = np.random.default_rng(config.train.seed)
    shapes = jax.eval_shape(run.make_state).variables
    variables = jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), shapes)
    assert run.val is not None
    cache = FeatureCache(config, run.model, variables, run.store.checksum, run.mesh, tmp_path / 'run', stop)
    return cache.replace_images({'train': run.train, 'val': run.val})

  return keep


def test_what_is_kept_changes_with_what_features_depend_on_and_with_nothing_else(kept, monkeypatch):
  def places(cache: FeatureCache, splits):
    return {name: cache._place(split, name) for name, split in splits.items()}

  monkeypatch.setattr(FeatureCache, 'replace_images', places)
  found = kept()
  assert found['train'] != found['val']
  assert kept(**{'model.head_features': 16, 'tasks': 'landmarks', 'train.steps': 9}) == found
  for change in ({'train.seed': 1}, {'model.freeze': 'stage0'}, {'model.dtype': 'bfloat16'}, {'model.norm': 'group'}):
    assert all(place != found[name] for name, place in kept(**change).items())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_features_that_were_damaged_are_computed_anew(kept, tmp_path, said, dtype):
  overrides = {'model.dtype': dtype, 'model.freeze': 'stage0'}
  first = kept(**overrides)
  assert first['train'].images.dtype == dtype
  assert first['train'].images.shape == (len(first['train']), 16, 16, 4)
  content = {name: split.images[:] for name, split in first.items()}
  for file in (tmp_path / 'features').glob('*/rows.bin'):
    damaged = bytearray(file.read_bytes())
    damaged[7] ^= 1
    file.write_bytes(damaged)
  for name, split in kept(**overrides).items():
    np.testing.assert_array_equal(split.images[:], content[name])
  assert '\n'.join(said).count('was changed since it was prepared') == 2


def test_an_image_that_was_corrupt_is_so_in_its_features_too(kept, store_dir, tmp_path):
  directory = tmp_path / 'set'
  shutil.copytree(store_dir, directory)
  with (directory / 'images.npy').open('r+b') as file:
    file.seek(128 + 2 * 32 * 32 * 3)
    file.write(b'damaged')
  schema = json.loads((directory / 'schema.json').read_text())
  schema['files']['images.npy'] = reader.digest(directory / 'images.npy')
  (directory / 'schema.json').write_text(json.dumps({**schema, 'checksum': reader.checksum(schema)}))
  for _ in ('computed', 'read'):
    train = kept(**{'data.dir': str(directory), 'data.corrupt_share': 0.1})['train']
    assert train.images.num_corrupt == 1
    for mask in train.mask.values():
      np.testing.assert_array_equal(mask.any(1), np.arange(len(train)) != 2)
    np.testing.assert_array_equal(train.images[2], train.images[3])


def test_a_computation_that_is_stopped_leaves_nothing(kept, tmp_path):
  with pytest.raises(Interrupted, match='starts with them again'):
    kept(stop=lambda: True)
  assert [path.name for path in (tmp_path / 'features').iterdir()] == ['.lock']


def test_of_all_splits_or_of_none_where_the_disk_has_no_room(kept, monkeypatch):
  assert [list(split.inputs) for split in kept().values()] == [['features']] * 2
  monkeypatch.setattr(features, 'DISK_SHARE', 0.0)
  assert [list(split.inputs) for split in kept().values()] == [['features']] * 2  # They are there.
  assert [list(split.inputs) for split in kept(**{'train.seed': 1}).values()] == [['image']] * 2


def test_short_steps_fill_the_time_between_two_looks(frozen_config):
  settings = ('train.log_every_steps', 'eval.every_steps', 'checkpoint.every_steps')
  for looks, expected in [((20, 1000, 1000), 20), ((10, 230, 230), 10), ((100, 0, 300), 50), ((1, 4, 4), 1)]:
    config = frozen_config(**dict(zip(settings, looks, strict=True)))
    assert building.steps_between_host_work(config) == expected


# What joint training can change.


def test_over_a_frozen_backbone_joint_and_single_task_heads_are_equal(runs):
  joint = final_state(runs / 'joint').variables['params']
  assert joint.keys() == {'head_attributes', 'head_landmarks'}  # Nothing that learns is shared.
  for task in TASKS:
    single = final_state(runs / task).variables['params']
    jax.tree.map(
      partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), single[f'head_{task}'], joint[f'head_{task}']
    )


def test_over_a_shared_trunk_they_are_not(runs, frozen_config):
  found = []
  for tasks in ('attributes,landmarks', 'landmarks'):
    directory = runs / f'trunk-{tasks}'
    loop.train(frozen_config(tasks, **{'model.trunk_features': (8.0,)}), directory)
    found.append(final_state(directory).variables['params'])
  assert found[0]['shared']['backbone']['trunk_layers_0']['kernel'].shape == (512, 8)
  assert largest_difference(found[0]['shared'], found[1]['shared']) > 1e-3
