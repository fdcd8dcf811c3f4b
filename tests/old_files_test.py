"""A prepared set and a run that an earlier version wrote still open: see `old_files/`, written on 2026-11-28."""

import json
import shutil
from pathlib import Path

import pytest

from mtl_jax import cli

OLD = Path(__file__).parent / 'old_files'


@pytest.fixture
def old(tmp_path):
  """A copy of both, the run's configuration pointing to the set, and a config file of that configuration."""
  copy = shutil.copytree(OLD, tmp_path / 'old')
  config = json.loads((copy / 'run' / 'config.json').read_text())
  config['data']['dir'] = str(copy / 'set')
  (copy / 'run' / 'config.json').write_text(json.dumps(config))
  (copy / 'config.py').write_text(
    'import json\nfrom mtl_jax.config import from_json\ndef get_config():\n'
    f'  return from_json(json.loads({json.dumps(config)!r}))\n'
  )
  return copy


def test_an_old_run_evaluates_as_it_did_on_an_old_set(old):
  expected = json.loads((OLD / 'run' / 'eval' / 'test.json').read_text())
  assert cli.main(['eval', '--workdir', str(old / 'run')]) == 0
  found = json.loads((old / 'run' / 'eval' / 'test.json').read_text())
  assert {**found['tasks'], **found['baseline']}.keys() == expected['tasks'].keys()
  for side in ('tasks', 'baseline'):
    for task, metrics in expected[side].items():
      for name, value in metrics.items():
        if not isinstance(value, dict):
          assert found[side][task][name] == pytest.approx(value, rel=1e-5), (task, name)


def test_an_old_run_goes_on(old):
  command = ['train', '--config', str(old / 'config.py'), '--workdir', str(old / 'run')]
  assert cli.main([*command, '--config.train.steps=6', '--allow_config_change']) == 0
  steps = [json.loads(line)['step'] for line in (old / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert steps[-1] == 6
