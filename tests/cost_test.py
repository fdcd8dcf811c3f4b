"""What a model costs, as a run tells it before it begins."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from mtl_jax.data.input import mixture
from mtl_jax.models import convnet, cost
from mtl_jax.run.checkpoint import TrainProgress
from mtl_jax.training import building
from mtl_jax.training.describe import describe


def test_flops_are_those_of_the_convolutions_and_little_more():
  model = convnet.ConvNet(width=16)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
  # A 3x3 convolution has 62 of 64 columns with three taps and two with two: 190 / 192 of the products each way.
  first = 2 * (3 * 64 - 2) ** 2 * 3 * 16
  second = 2 * (3 * 32 - 2) ** 2 * 16 * 32
  found = cost.flops(partial(model.apply, train=False), variables, (64, 64, 3))
  assert found == pytest.approx(first + second, rel=0.05)
  assert found > first + second  # ReLU and pooling come on top.


def test_a_run_tells_its_parameters_and_flops(tiny_config, said):
  config = tiny_config('landmarks', **{'model.backbone': 'convnet'})
  store = mixture.open_data(config.data)
  run = building.build(config, store)
  said.clear()
  describe(run, TrainProgress())
  table = [text for text in said if text.startswith('|')]
  (line,) = (text for text in said if text.startswith('training'))
  assert '| shared/backbone/conv1 | 2      | 112        |' in table
  head = 8 * 8 * 8 * 8 + 8 + 8 * 10 + 10
  assert any(f'| {head:,} ' in row for row in table)
  assert 'training: convnet, 0.00 M parameters, 0.000' in line
  assert 'GFLOPs an image forward, 32x32' in line
