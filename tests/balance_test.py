"""Batches balanced by person, by a label or by set: which rows are drawn, what is refused, and that runs resume."""

import jax
import numpy as np
import pytest
import small_runs

from mtl_jax import config as configs
from mtl_jax.data.input import balance, mixture
from mtl_jax.data.prepare import prepare
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import ConfigError, Interrupted
from mtl_jax.platform import sharding
from mtl_jax.training import building, loop
from mtl_jax.training.progress import read_metrics


@pytest.fixture(scope='module')
def second_dir(tmp_path_factory):
  """Another set of synthetic faces, of which nobody knows who they are."""
  out = tmp_path_factory.mktemp('second') / 'faces'
  prepare('synthetic', source=None, out=out, image_size=(32, 32), num=40, seed=1, log=lambda _: None)
  return out


@pytest.fixture
def store(store_dir):
  return open_store(store_dir)


def batches(config, data, num_steps: int = 20) -> np.ndarray:
  """The positions of the first steps, `[steps, b]`."""
  run = building.build(config, data)
  return np.stack([run.sampler.indices(step) for step in range(num_steps)])


def spread(groups: np.ndarray, positions: np.ndarray) -> int:
  """By how much the commonest group of these rows outnumbers the rarest there is."""
  counts = [np.count_nonzero(groups[positions] == name) for name in np.unique(groups[groups >= 0])]
  return max(counts) - min(counts)


# What is drawn.


def test_persons_come_equally_often_however_many_pictures_they_have(tiny_config, store):
  people = store.identity[: store.splits['train'].stop]
  assert np.ptp(np.unique(people, return_counts=True)[1]) > 0
  seen = batches(tiny_config(**{'data.balance': 'identity', 'train.batch_size': 16}), store)
  assert all(spread(people, positions) <= 1 for positions in seen)


@pytest.mark.parametrize('tasks', ['attributes', 'landmarks'])
def test_the_values_of_a_label_come_equally_often_whatever_is_learned(tiny_config, store, tasks):
  column = store.tasks[0].labels.index('Eyeglasses')
  glasses = store.labels['attributes'][: store.splits['train'].stop, column].astype(int)
  assert 0 < glasses.mean() < 0.4
  overrides = {
    'data.balance': 'attributes/Eyeglasses',
    'data.attributes': ('Smiling',) if tasks == 'attributes' else (),
  }
  seen = batches(tiny_config(tasks, **overrides), store)
  assert (glasses[seen].sum(axis=1) == 4).all()
  joint = batches(tiny_config(**{'data.balance': 'attributes/Eyeglasses'}), store)
  np.testing.assert_array_equal(seen, joint)


def test_rows_whose_label_is_missing_or_dropped_are_left_out_and_counted(tiny_config, store, said):
  config = tiny_config(**{'data.balance': 'attributes/Male', 'data.keep_labels': 'attributes:0.5'})
  run = building.build(config, store)
  kept = run.train.mask['attributes'].any(axis=1)
  assert 0 < kept.sum() < len(kept)
  seen = np.stack([run.sampler.indices(step) for step in range(20)])
  np.testing.assert_array_equal(np.unique(seen), np.flatnonzero(kept))
  (line,) = [line for line in said if line.startswith('balance attributes/Male: 2 groups of ')]
  assert line.endswith(f'; {np.count_nonzero(~kept)} of its {len(kept)} rows have none and are left out')


def test_each_set_of_a_mixture_is_balanced_by_itself_or_drawn_alike(tiny_config, store_dir, second_dir, said):
  config = tiny_config(
    **{'data.dir': '', 'data.dirs': (str(store_dir), str(second_dir)), 'data.weights': (3.0, 1.0)},
    **{'data.balance': 'identity', 'train.batch_size': 16},
  )
  data = mixture.open_data(config.data)
  data.parts[1].identity[:] = -1
  seen = batches(config, data, num_steps=40)
  first = data.parts[0].splits['train'].stop
  people = data.parts[0].identity[:first]
  for positions in seen:
    assert np.count_nonzero(positions < first) == 12
    assert spread(people, positions[positions < first]) <= 1
  assert set(seen[seen >= first] - first) == set(range(data.parts[1].splits['train'].stop))
  assert f'balance identity: no train row of {second_dir} has one, so all are drawn alike' in said


def test_domains_are_the_sets_of_a_mixture_in_equal_shares(tiny_config, store_dir, second_dir):
  mixed = {'data.dir': '', 'data.dirs': (str(store_dir), str(second_dir))}
  equal = tiny_config(**mixed, **{'data.weights': (1.0, 1.0)})
  domain = tiny_config(**mixed, **{'data.balance': 'domain'})
  data = mixture.open_data(domain.data)
  seen = batches(domain, data)
  np.testing.assert_array_equal(seen, batches(equal, data))
  assert (np.count_nonzero(seen < data.parts[0].splits['train'].stop, axis=1) == 4).all()


# What is refused.


@pytest.mark.parametrize(
  ('by', 'said'),
  [
    ('identiy', "data.balance: no choice 'identiy'; did you mean 'identity'?"),
    ('attributes/Smilling', "data.balance: no choice 'attributes/Smilling'; did you mean 'attributes/Smiling'?"),
    ('attributes', "data.balance: no choice 'attributes'"),
    ('landmarks/nose_x', "data.balance: 'landmarks/nose_x' is of a landmarks task and has no classes to balance"),
  ],
)
def test_what_the_data_does_not_have_is_refused_by_name(tiny_config, store, by, said):
  with pytest.raises(ConfigError, match=said) as error:
    balance.groups(tiny_config(**{'data.balance': by}).data, store, seed=0)
  assert '\n' not in str(error.value)


def test_a_set_of_which_no_person_is_known_cannot_be_balanced_by_them(tiny_config, store):
  store.identity[:] = -1
  with pytest.raises(ConfigError, match=r"data.balance: no train row of .*faces has 'identity'; leave it empty"):
    balance.groups(tiny_config(**{'data.balance': 'identity'}).data, store, seed=0)


@pytest.mark.parametrize('overrides', [('data.dir=a',), ('data.dirs=a,b', 'data.weights=1,2')])
def test_domains_need_several_sets_without_weights(overrides, tmp_path):
  (tmp_path / 'config.py').write_text('from mtl_jax.configs.default import get_config')
  with pytest.raises(ConfigError, match=r'data.balance=domain is for several sets, .* without config.data.weights'):
    configs.load(tmp_path / 'config.py', ('data.balance=domain', *overrides))


# Runs.


@pytest.fixture(scope='module')
def balanced_config(tiny_config):
  net = {'model.backbone': 'convnet', 'model.width': 2, 'model.head': 'linear'}
  rest = {'data.balance': 'identity', 'eval.every_steps': 0, 'checkpoint.every_steps': 100}
  return lambda mode: tiny_config(**net, **rest, **{'data.mode': mode})


def test_a_balanced_run_stopped_and_resumed_in_the_other_mode_has_the_same_losses(
  balanced_config, tmp_path, monkeypatch
):
  loop.train(balanced_config('streamed'), tmp_path / 'whole')
  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 2)
    with pytest.raises(Interrupted):
      loop.train(balanced_config('resident'), tmp_path / 'parts')
  loop.train(balanced_config('streamed'), tmp_path / 'parts', allow_config_change=True)
  whole, parts = (read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('whole', 'parts'))
  assert [line['train/loss'] for line in whole] == [line['train/loss'] for line in parts]
  assert len(whole) == 4


def test_eight_devices_and_one_take_the_same_balanced_batches(balanced_config, store, monkeypatch):
  found = []
  for mesh in [sharding.make_mesh(jax.devices()[:num_devices]) for num_devices in (8, 1)]:
    monkeypatch.setattr(sharding, 'make_mesh', lambda mesh=mesh, **_: mesh)
    run = building.build(balanced_config('resident'), store)
    item = jax.device_put(run.input.read(run.sampler.indices(3)), sharding.by_rows(mesh))
    found.append(jax.device_get(jax.jit(run.input.fetch)(run.input.place(), item)))
  for one, other in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_array_equal(one, other)
