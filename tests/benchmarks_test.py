"""Benchmarks run where little is installed, count what they say they count, and write what was not measured as null."""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_a_benchmark_runs_where_only_jax_flax_optax_and_orbax_are(tmp_path):
  out = tmp_path / 'result.json'
  run_where_little_is('step', '--quick', '--json', str(out))
  result = json.loads(out.read_text())
  assert result.keys() == {'device', 'versions', 'flags', 'date', 'rows'}
  assert all({'name', 'value', 'unit'} <= row.keys() for row in result['rows'])
  assert any(row['unit'] == 'images/s' and row['value'] > 0 for row in result['rows'] if row['value'] is not None)


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
