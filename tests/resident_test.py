"""A resident split gives the same bits as a streamed one, moves no image between devices, and is chosen by its size."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_runs
from jax.sharding import Mesh

from mtl_jax import doctor
from mtl_jax import tasks as task_values
from mtl_jax.data.input import resident, sampler
from mtl_jax.data.input.mixture import load_split
from mtl_jax.data.input.pipeline import Input, Split
from mtl_jax.data.input.sampler import Sampler
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import ConfigError, Interrupted
from mtl_jax.platform import memory, sharding
from mtl_jax.run.checkpoint import TrainProgress
from mtl_jax.training import building, loop
from mtl_jax.training.describe import describe
from mtl_jax.training.progress import read_metrics

GB = 10**9
COLLECTIVES = ('all-gather', 'all-reduce', 'all-to-all', 'collective-broadcast', 'collective-permute', 'reduce-scatter')


@pytest.fixture
def split(store_dir) -> Split:
  store = open_store(store_dir)
  return load_split(store, 'train', task_values.select(store.tasks, 'attributes,landmarks'))


def train_losses(directory) -> list[dict[str, float]]:
  """The losses of every logged step, of training and validation."""
  lines = read_metrics(directory / 'metrics.jsonl')
  return [{name: value for name, value in line.items() if 'loss' in name or name == 'step'} for line in lines]


# Batches.

SMILES = np.arange(1000) % 3 - 1  # A third of the rows is in no group.
ORDERS = {  # With how many rows a stripe at least.
  'one permutation': (1024, False),
  'stripes': (3, False),
  'balance': (1024, True),
}


def make_sampler(split: Split, name: str, batch_size: int = 16) -> Sampler:
  least, balanced = ORDERS[name]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sampler, 'LEAST_STRIPE', least)
    groups = SMILES[: len(split)] if balanced else None
    return sampler.make_sampler(3, sizes=(len(split),), rows=(batch_size,), groups=groups)


def resident_input(split: Split, made: Sampler, mesh: Mesh) -> Input:
  return resident.resident_input(split, resident.rows_of_devices(made, mesh), mesh, reason='')


@pytest.mark.parametrize('num_devices', [1, 4, 8])
@pytest.mark.parametrize('name', ORDERS)
def test_a_gathered_batch_is_the_streamed_one_bit_for_bit(split, num_devices, name):
  mesh, made = sharding.make_mesh(jax.devices()[:num_devices]), make_sampler(split, name)
  way = resident_input(split, made, mesh)
  source, fetch = way.place(), jax.jit(way.fetch)
  for step in (0, 5, 2**33):
    positions = made.indices(step)
    item = jax.device_put(way.read(positions), sharding.by_rows(mesh))
    found, expected = fetch(source, item), split.read(positions)
    assert item.dtype == np.int32
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      assert ours.dtype == theirs.dtype
      assert ours.sharding.is_equivalent_to(sharding.by_rows(mesh), ours.ndim)
      np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(('num_devices', 'rows'), [(1, 47), (3, 24), (4, 12), (8, 6)])
def test_each_device_has_the_stripes_of_its_places_alone(split, num_devices, rows):
  """The last row of a device that needs fewer is there again; three devices share two of the eight stripes."""
  mesh = sharding.make_mesh(jax.devices()[:num_devices])
  made = make_sampler(split, 'stripes', batch_size=24)
  source = resident_input(split, made, mesh).place()
  for leaf in jax.tree.leaves(source):
    assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {rows}
  held = np.asarray(source['example_id']).reshape(num_devices, rows)
  for device, ids in enumerate(held):
    places = slice(24 // num_devices * device, 24 // num_devices * (device + 1))
    np.testing.assert_array_equal(np.unique(ids), split.example_id[made.reach(places)])
  assert sum(leaf.nbytes for leaf in jax.tree.leaves(source)) == num_devices * rows * resident.bytes_a_row(split)


def test_a_small_split_lies_whole_on_every_device(split):
  source = resident_input(split, make_sampler(split, 'one permutation'), sharding.make_mesh()).place()
  for shard in source['example_id'].addressable_shards:
    np.testing.assert_array_equal(shard.data, split.example_id)


def test_processes_place_the_rows_of_their_own_devices_wherever_the_mesh_has_them(split):
  """Two processes whose devices come by turns in the mesh: each takes its own half of the batch in their order."""
  devices = [SimpleNamespace(process_index=process) for process in (0, 1, 0, 1)]
  made = make_sampler(split, 'stripes')
  rows = resident.rows_of_devices(made, SimpleNamespace(devices=np.array(devices)[:, None]))
  for found, places in zip(rows, (slice(0, 4), slice(8, 12), slice(4, 8), slice(12, 16)), strict=True):
    np.testing.assert_array_equal(found, made.reach(places))


# The compiled step.


@pytest.fixture(scope='module', params=[1, 2], ids=['one step', 'a loop'])
def programs(request, tiny_config, store_dir) -> dict:
  """The compiled program of each mode: one step, or two in a loop; the split is divided over the devices."""
  found = {}
  for mode in ('resident', 'streamed'):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sampler, 'LEAST_STRIPE', 4)
      run = building.build(tiny_config(**{'data.mode': mode}), open_store(store_dir))
      steps = run.compiled_steps
    items = [run.input.read(run.sampler.indices(step)) for step in range(request.param)]
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *items)
    lowered = steps.lower(jax.eval_shape(run.make_state), run.input.place(), stacked)
    found[mode] = lowered.compile()
  return found


def test_no_image_travels_between_devices(programs):
  counts = {}
  for mode, program in programs.items():
    calls = re.findall(rf'.* (?:{"|".join(COLLECTIVES)})(?:-start)?\(.*', program.as_text())
    assert calls  # The gradients travel.
    assert not [line for line in calls if 'u8[' in line]
    counts[mode] = {name: sum(f' {name}' in line for line in calls) for name in COLLECTIVES}
  assert counts['resident'] == counts['streamed']


def test_the_split_is_an_argument_and_is_not_copied(programs, split):
  ours, theirs = (programs[mode].memory_analysis() for mode in ('resident', 'streamed'))
  images = split.images.nbytes / 8  # Sizes are those on one device.
  assert ours.argument_size_in_bytes > theirs.argument_size_in_bytes + images / 2
  assert ours.temp_size_in_bytes < theirs.temp_size_in_bytes + images / 2
  assert ours.generated_code_size_in_bytes < theirs.generated_code_size_in_bytes + images


# Runs.


@pytest.fixture(scope='module')
def run_config(tiny_config):
  """The configuration of a mode, of six steps."""
  settings = {'train.steps': 6, 'eval.every_steps': 0, 'checkpoint.every_steps': 100}
  return lambda mode: tiny_config(**{'data.mode': mode, **settings})


@pytest.fixture(scope='module')
def whole_losses(run_config, tmp_path_factory) -> dict:
  """The losses of an uninterrupted run of each mode, on eight devices."""
  found = {}
  for mode in ('resident', 'streamed'):
    directory = tmp_path_factory.mktemp(mode)
    loop.train(run_config(mode), directory)
    found[mode] = train_losses(directory)
  return found


def test_both_modes_have_the_same_losses_bit_for_bit(whole_losses):
  assert [line['step'] for line in whole_losses['resident']] == list(range(1, 7))
  assert whole_losses['resident'] == whole_losses['streamed']


def test_both_modes_have_the_same_losses_on_one_device_too(run_config, tmp_path, monkeypatch):
  small_runs.on_one_device(monkeypatch)
  for mode in ('resident', 'streamed'):
    loop.train(run_config(mode), tmp_path / mode)
  assert train_losses(tmp_path / 'resident') == train_losses(tmp_path / 'streamed')


@pytest.mark.parametrize(('first', 'second'), [('resident', 'streamed'), ('streamed', 'resident')])
def test_a_run_goes_on_in_the_other_mode_with_the_same_losses(
  run_config, whole_losses, tmp_path, monkeypatch, first, second
):
  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 3)
    with pytest.raises(Interrupted):
      loop.train(run_config(first), tmp_path)
  assert loop.train(run_config(second), tmp_path, allow_config_change=True).step == 6
  assert train_losses(tmp_path) == whole_losses[first]


# The choice.


WHOLE = ' on every device (100% of the train split)'


@pytest.mark.parametrize(
  ('needed', 'available', 'is_resident', 'reason'),
  [
    (90 * 10**6, 22.4 * GB, True, f'resident, 90.0 MB{WHOLE}, of 11.2 GB allowed'),
    (8 * GB, 16 * GB, True, f'resident, 8.0 GB{WHOLE}, of 8.0 GB allowed'),
    (18.9 * GB, 16 * GB, False, f'streamed, 18.9 GB{WHOLE} do not fit in 0.5 x 16.0 GB'),
    (1, 0, False, 'streamed, the devices do not say how much memory they have'),
  ],
)
def test_auto_chooses_by_size_and_says_why(needed, available, is_resident, reason):
  found = resident.choose('auto', share=0.5, needed=int(needed), part=1.0, available=int(available))
  assert found == (is_resident, reason)


@pytest.mark.parametrize(('factor', 'mode'), [(2.1, 'resident'), (1.9, 'streamed')])
@pytest.mark.parametrize(('least', 'part'), [(1024, 1), (5, 0.13)])
def test_a_run_in_auto_takes_what_fits_and_logs_it(
  split, tiny_config, store_dir, monkeypatch, said, factor, mode, least, part
):
  rows = len(split) if part == 1 else -(-len(split) // 8)
  monkeypatch.setattr(sampler, 'LEAST_STRIPE', least)
  monkeypatch.setattr(memory, 'available_bytes', lambda: int(factor * rows * resident.bytes_a_row(split)))
  run = building.build(tiny_config(), open_store(store_dir))
  assert bool(run.input.place()) is (mode == 'resident')
  describe(run, TrainProgress())
  (line,) = [line for line in said if line.startswith('input: ')]
  assert line.startswith(f'input: {mode}, ')
  assert f'on every device ({part:.0%} of the train split)' in line


def test_a_mode_that_is_asked_for_is_taken():
  assert resident.choose('streamed', share=1.0, needed=1, part=1.0, available=GB)[0] is False
  assert resident.choose('resident', share=0.0, needed=GB, part=1.0, available=GB)[0] is True
  assert resident.choose('resident', share=0.5, needed=GB, part=1.0, available=0)[0] is True  # Nobody knows better.
  with pytest.raises(ConfigError, match=r'mode=resident: takes 2.0 GB on every device \(13% .*, but a device has 1.0'):
    resident.choose('resident', share=0.5, needed=2 * GB, part=0.13, available=GB)


def test_a_cpu_device_has_its_part_of_the_host_memory(monkeypatch):
  monkeypatch.setattr(memory, 'host_available_bytes', lambda: 16 * GB)
  assert memory.available_bytes() == 2 * GB


def test_the_doctor_tells_the_rule(monkeypatch):
  monkeypatch.setattr(memory, 'available_bytes', lambda: 16 * GB)
  assert "resident if a device's part of the train split fits in 0.5 x 16.0 GB, else streamed" in doctor.describe()
