"""Benchmarks run where little is installed, count what they say they count, and write what was not measured as null."""

import argparse
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax.data.input.augment import Augmentation
from mtl_jax.platform import sharding

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
# What a GPU host that has JAX, Flax, optax and Orbax may lack, and the step must not need.
LACKING = (
  'clu', 'grain', 'jaxtyping', 'jinja2', 'matplotlib', 'ml_collections', 'safetensors', 'simplejpeg', 'tensorboardX',
  'tensorflow', 'tensorflow_datasets', 'tqdm', 'PIL', 'torch', 'torchvision',
)  # fmt: skip


@pytest.fixture
def rooms(monkeypatch):
  """The benchmarks' own modules can be imported, as they import each other."""
  monkeypatch.syspath_prepend(str(BENCHMARKS))


def run_where_little_is(name: str, *flags: str) -> None:
  """A benchmark's program in a process where those are not installed."""
  program = (
    'import runpy, sys\n'
    f'sys.modules.update(dict.fromkeys({LACKING!r}))\n'
    f'sys.path.insert(0, {str(BENCHMARKS)!r})\n'
    f'sys.argv = {[f"{name}.py", *flags]!r}\n'
    f'runpy.run_path({str(BENCHMARKS / f"{name}.py")!r}, run_name="__main__")'
  )
  root = str(BENCHMARKS.parent)
  environment = os.environ | {'PYTHONPATH': root, 'XLA_FLAGS': ''}
  done = subprocess.run([sys.executable, '-c', program], env=environment, cwd=root, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ('end_to_end', 'epoch', 'entries')]


@pytest.mark.parametrize('name', ['step', *SLOW])
def test_a_benchmark_runs_where_only_jax_flax_optax_and_orbax_are(tmp_path, name):
  out = tmp_path / 'result.json'
  run_where_little_is(name, '--quick', '--json', str(out))
  result = json.loads(out.read_text())
  assert result.keys() == {'device', 'versions', 'flags', 'date', 'rows'}
  assert all({'name', 'value', 'unit'} <= row.keys() for row in result['rows'])
  assert any(row['unit'] == 'images/s' and row['value'] > 0 for row in result['rows'] if row['value'] is not None)


def test_a_benchmark_of_whole_runs_begins_there_too():
  run_where_little_is('entries', '--help')


def test_the_toy_problems_ways_begin_at_the_starts_and_descend(rooms):
  import toy

  points, _, _ = toy.run(['fixed', 'mgda'], 200)
  assert points.shape == (2, 5, 101, 2)
  np.testing.assert_allclose(points[0, :, 0], toy.STARTS)
  before, after = (np.array([toy.problem(x).sum() for x in points[0, :, at]]) for at in (0, -1))
  assert (after < before).all()
  on_front = np.tile(np.array([0.0, -8.3]), (5, 2, 1))
  assert toy.ends(on_front)['on_front'] == 5
  assert toy.ends(points[1])['on_front'] == 0


@pytest.mark.parametrize(('backbone', 'multiply_adds'), [('resnet18', 1.814e9), ('resnet50', 4.089e9)])
def test_flops_of_a_step_are_three_times_the_published_forward_pass(rooms, backbone, multiply_adds):
  """Multiply-adds of an image at 224 px as torchvision states them; heads here and its classifier are below 1 %."""
  import floor
  import workload

  cost = floor.cost_of(workload.Workload(backbone, 224, 2, 'bfloat16'))
  assert cost.flops / 2 == pytest.approx(3 * 2 * multiply_adds, rel=0.01)


def test_fewest_bytes_of_a_step_follow_from_its_maps(rooms):
  """A convnet of width 4 at 8 px: 8x8 maps of 3 and 4 channels, 4x4 of 4 and 8, then the heads' inputs and outputs."""
  import floor
  import workload

  rows = 2
  one = workload.Workload('convnet', 8, rows, 'float32', width=4)
  maps = rows * (64 * 3 + 64 * 4 + 16 * 4 + 16 * 8 + 2 * (32 + 256) + (256 + 40) + (256 + 10))
  state = jax.eval_shape(one.make_state)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.variables['params']))
  assert floor.cost_of(one).bytes == 3 * 4 * maps + parameters * 40


def test_collectives_are_counted_with_their_bytes_in_a_compiled_program(rooms):
  import scaling

  mesh = sharding.make_mesh()
  rows, whole = sharding.by_rows(mesh), sharding.replicated(mesh)
  compiled = jax.jit(lambda x: x.sum(axis=0), in_shardings=rows, out_shardings=whole)
  text = compiled.lower(np.zeros((16, 3, 5), np.float32)).compile().as_text()
  assert scaling.found_collectives(text) == [('all-reduce', 4 * 3 * 5)]
  alone = jax.jit(lambda x: 2 * x, in_shardings=rows, out_shardings=rows)
  assert scaling.found_collectives(alone.lower(np.zeros(16, np.float32)).compile().as_text()) == []


def test_a_tuple_of_shapes_has_the_bytes_of_all(rooms):
  import scaling

  text = '  %a = (f32[2,3]{1,0}, bf16[4]{0}, s32[]) all-reduce-start(%x, %y, %z), to_apply=%add'
  assert scaling.found_collectives(text) == [('all-reduce', 24 + 8 + 4)]


def test_gradients_of_bfloat16_layers_are_summed_over_devices_in_bfloat16_but_by_a_cpu(rooms):
  """What is known of how gradients are reduced: the type is the layer's, not the parameter's."""
  import scaling

  layer = nn.Dense(4, use_bias=False, dtype=jnp.bfloat16)
  x = np.zeros((16, 3), np.float32)
  params = layer.init(jax.random.key(0), x)
  mesh = sharding.make_mesh()
  whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
  gradient = jax.grad(lambda params, x: (layer.apply(params, x) ** 2).astype(jnp.float32).sum())
  lowered = jax.jit(gradient, in_shardings=(whole, rows), out_shardings=whole).lower(params, x)
  compiled, partitioned = scaling.programs(lowered)
  assert scaling.reduced_by_type(partitioned) == {'bf16': 2 * 3 * 4}
  assert scaling.found_collectives(compiled) == [('all-reduce', 4 * 3 * 4)]


@pytest.fixture
def clock(rooms, monkeypatch):
  """Time that passes only as a test says, by its method `wait`."""
  import reporting

  class Clock:
    now = 0.0

    def wait(self, secs):
      self.now += secs

  clock = Clock()
  monkeypatch.setattr(reporting, 'time', SimpleNamespace(perf_counter=lambda: clock.now))
  return clock


def test_parts_take_turns_and_each_round_has_its_own_rate(clock):
  import reporting

  order, secs = [], {'a': iter([1.0, 2.0, 4.0]), 'b': iter([0.5, 0.25, 1.0])}

  def part(name, images):
    order.append(name)
    clock.wait(next(secs[name]))
    return images

  parts = {'a': lambda: part('a', 8), 'b': lambda: part('b', 1)}
  assert reporting.rates_in_turn(parts, rounds=2) == {'a': [8.0, 4.0], 'b': [2.0, 4.0]}
  assert order == ['a', 'b', 'a', 'b']
  assert reporting.best_rates(parts, rounds=1) == {'a': 2.0, 'b': 1.0}


def test_ratios_are_of_each_round_to_the_first_part(rooms):
  import reporting

  first, other = reporting.against_first('net', {'a': [8.0, 4.0, 6.0], 'b': [4.0, 4.0, 12.0]})
  assert (first['name'], first['value'], first['value_high']) == ('net, a', 6.0, 8.0)
  assert 'ratio' not in first
  assert (other['value'], other['ratio'], other['ratio_low'], other['ratio_high']) == (4.0, 1.0, 0.5, 2.0)
  assert other['ratio_to'] == 'net, a'


@pytest.mark.parametrize(('secs', 'least', 'calls'), [(6.0, 2, 12), (0.1, 2, 2), (0.1, 1, 1)])
def test_as_many_calls_as_fill_the_time_at_half_a_second_each(clock, secs, least, calls):
  import reporting

  assert reporting.calls_for(lambda number: clock.wait(0.5 * number), secs, least=least) == calls


def test_what_was_not_measured_is_said_and_null(rooms, tmp_path, capsys):
  import reporting

  out = tmp_path / 'result.json'
  rows = [reporting.row('a', math.nan, 'ms'), reporting.row('b', 2.0, 'ms') | reporting.spread([1.5, 2.5])]
  reporting.report(rows, argparse.Namespace(quick=True, json=out))
  assert [row['value'] for row in json.loads(out.read_text())['rows']] == [None, 2.0]
  said = capsys.readouterr().out
  assert '| a | not measured | ms |' in said
  assert '| b | 2 (1.5 to 2.5) | ms |' in said


@pytest.mark.parametrize('losses', [[1.0, 1.0], [1.0, math.nan]])
def test_steps_that_change_nothing_or_break_are_no_measurement(rooms, losses):
  import workload

  with pytest.raises(AssertionError, match='loss'):
    workload.check_losses(losses)


def test_benchmarks_augment_as_the_default_configuration_does(rooms):
  import variants

  from mtl_jax.configs import default

  assert Augmentation(**default.get_config().data.augment) == variants.AUGMENTATION


def test_adam_on_one_vector_makes_the_updates_of_the_default_optimizer(rooms):
  import variants
  import workload

  from mtl_jax.run import optimizer

  random = np.random.default_rng(0)
  params = {
    'conv': {'kernel': random.normal(size=(3, 2)), 'bias': random.normal(size=2)},
    'norm': {'scale': np.ones(2)},
  }
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
  flat = variants.changed(workload.Workload('convnet', 8, 8, 'float32'), variants.Flat)._trained['tx']
  found = []
  for tx in (flat, optimizer.from_config(workload.config(8).optimizer, steps=workload.config(8).train.steps)):
    state, moved = tx.init(params), params
    for factor in (1.0, 0.1, 30.0):
      gradients = jax.tree.map(lambda leaf, factor=factor: factor * jnp.cos(leaf), moved)
      updates, state = tx.update(gradients, state, moved)
      moved = optax.apply_updates(moved, updates)
    found.append(moved)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *found)
  assert np.abs(found[0]['norm']['scale'] - 1).max() > 1e-4


def test_what_is_changed_for_an_entry_is_changed_in_the_step(rooms):
  import variants
  import workload

  net = workload.Workload('resnet18', 32, 8, 'float32', width=4)
  models = [variants.changed(net, kind).one_step.keywords['model'] for kind in (type(net), variants.Remat)]
  assert [model.module.shared.backbone.remat for model in models] == [False, True]
  plain = workload.Workload('convnet', 8, 8, 'float32', width=4)
  mesh = sharding.make_mesh(jax.devices()[:1])
  given = []
  for kind in (type(plain), variants.NotDonated):
    one = variants.changed(plain, kind)
    lowered = one.lowered(jax.eval_shape(one.make_state), one.make_batch(), mesh=mesh)
    given.append(
      sum(leaf.donated for leaf in jax.tree.leaves(lowered.args_info, is_leaf=lambda x: hasattr(x, 'donated')))
    )
  assert given[0] > 10
  assert given[1] == 0


def test_input_prepared_apart_is_what_the_step_would_read(rooms):
  import variants
  import workload

  from mtl_jax.training import step

  one = workload.Workload('convnet', 8, 4, 'float32', width=4)
  batch = one.make_batch()
  state = SimpleNamespace(step=jnp.int32(3), variables={}, label_stats={})
  forward, _ = step.forward_of(
    state, batch, model=one.model, tasks=one.tasks, augmentation=variants.AUGMENTATION, seed=0, entries=()
  )
  found = variants._prepared(batch, state.step, tasks=one.tasks)
  jax.tree.map(np.testing.assert_array_equal, (found['image'], found['labels']), (forward.images, dict(forward.labels)))
  assert np.abs(found['labels']['landmarks'] - batch['labels']['landmarks']).max() > 0.01


CHILD = """
import os, sys
if '--known' not in os.environ['XLA_FLAGS']:
  sys.exit(1)
print(0, flush=True)
for line in sys.stdin:
  print(8 * int(line), flush=True)
sys.exit('--bad' in os.environ['XLA_FLAGS'] and 3)
"""


def test_a_child_takes_the_steps_it_is_told_to_under_flags_of_its_own(rooms):
  import variants

  child = variants.Child('--known', ['-c', CHILD])
  assert [child.advance(2), child.advance(5)] == [16, 40]
  child.check()
  child.close()
  with pytest.raises(ChildProcessError, match='ended with 1'):
    variants.Child('--unknown', ['-c', CHILD])
  bad = variants.Child('--known --bad', ['-c', CHILD])
  with pytest.raises(ChildProcessError, match='ended with 3'):
    bad.check()


def test_layout_is_counted_in_the_compiled_program(rooms):
  import entries

  text = """
  %a = f32[2,8,8,4]{3,2,1,0} convolution(%x, %k), window={size=3x3}, dim_labels=b01f_01io->b01f
  %b = (bf16[2,4]{1,0}, u8[0]{0}) custom-call(%y, %l), dim_labels=bf01_oi01->bf01
  %t = f32[4,2]{1,0} transpose(%x), dimensions={1,0}
  %transpose_copy_fusion = f32[9]{0} fusion(%t)
  ROOT %c = bf16[64,4096]{0,1} copy(%t)"""
  plain = SimpleNamespace(compiled=SimpleNamespace(as_text=lambda: text))
  rows = entries.layout(SimpleNamespace(plain=plain, workload=SimpleNamespace(title='net')))
  assert [row['value'] for row in rows] == [2, 1, 1, 4 * 8 / 2**20, 1, 0.5]
  assert rows[0]['kinds'] == {'b01f': 1, 'bf01': 1}


def test_entries_that_there_is_no_time_or_device_for_are_not_measured(rooms, tmp_path, monkeypatch, capsys):
  import entries

  out = tmp_path / 'entries.json'
  monkeypatch.setattr(sys, 'argv', ['entries.py', '--quick', '--seconds', '1e-9', '--json', str(out)])
  entries.main()
  rows = json.loads(out.read_text())['rows']
  assert len(rows) == len(entries.ENTRIES)
  assert {row['value'] for row in rows} == {None}
  assert 'donation (no time left) | not measured |' in capsys.readouterr().out
  bench = entries.Bench(entries.QUICK[0], 0, argparse.Namespace(quick=True, rounds=1, round_secs=0.0))
  rows = entries.flags(bench)
  assert [math.isnan(row['value']) for row in rows] == [True] * len(entries.FLAGS)
  assert 'no command buffers (flags of GPUs)' in rows[-1]['name']
