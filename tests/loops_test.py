"""The loops of docs/objectives.md run, are short, and end in the same parameters."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

TEXT = (Path(__file__).parent.parent / 'docs' / 'objectives.md').read_text()
SECTION = TEXT.split('## In a loop of your own')[1].split('\n## ')[0]
BLOCKS = re.findall(r'```python\n(.*?)```', SECTION, re.DOTALL)


@pytest.mark.parametrize('method', ['nash_mtl', 'famo', 'mgda_ub', 'fixed', 'db_mtl'])
def test_loops_in_plain_functions_linen_and_nnx_end_in_the_same_parameters(method):
  names = {}
  for block in BLOCKS:
    exec(block.replace('objectives.nash_mtl()', f'objectives.{method}()'), names)
  plain = jax.tree.leaves(names['plain'])
  assert any(np.abs(a - b).max() > 0.1 for a, b in zip(plain, jax.tree.leaves(names['start']), strict=True))
  for other in ('with_linen', 'with_nnx'):
    for leaf, expected in zip(jax.tree.leaves(names[other]), plain, strict=True):
      np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


def test_each_loop_is_at_most_30_lines():
  assert len(BLOCKS) == 4
  training = BLOCKS[0][BLOCKS[0].index('def train(') :]
  for block in BLOCKS[1:]:
    assert len([line for line in (training + block).splitlines() if line]) <= 30
