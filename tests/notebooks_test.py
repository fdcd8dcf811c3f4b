"""The notebooks' cells run in their order, at tiny size."""

import json
from pathlib import Path

import pytest

from mtl_jax import objectives

NOTEBOOKS = Path(__file__).parents[1] / 'docs' / 'notebooks'


@pytest.fixture
def run_cells(tmp_path, monkeypatch):
  """`run_cells(name, first)`: runs a notebook in an empty folder, its first code cell replaced; gives its variables."""
  monkeypatch.chdir(tmp_path)

  def run(name: str, first: str) -> dict:
    cells = json.loads((NOTEBOOKS / name).read_text())['cells']
    sources = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    assert sources[0].split('=')[0] == first.split('=')[0]
    variables: dict = {'__name__': 'notebook'}
    for number, source in enumerate([first, *sources[1:]]):
      exec(compile(source, f'{name}, code cell {number}', 'exec'), variables)
    return variables

  return run


def test_joint_and_single_task_models_are_compared_and_used(run_cells, tmp_path, capsys):
  variables = run_cells('joint_or_single.ipynb', 'NUM_FACES, STEPS, SEEDS = 120, 4, 2')
  assert variables['found']['tasks']['landmarks']['nme']['verdict'] in ('helps', 'hurts', 'no evidence')
  assert (tmp_path / 'runs' / 'study' / 'report.html').exists()
  assert 'attributes: joint - single' in capsys.readouterr().out


def test_every_method_of_the_loop_learns(run_cells):
  variables = run_cells('balancing_loop.ipynb', 'STEPS = 150')
  batch, (shared, heads) = variables['batch'], variables['start']
  first = variables['losses_of'](variables['represent'](shared, batch), heads, batch) / variables['scales']
  assert len(variables['results']) == 6
  for name, losses in variables['results'].items():
    assert losses.mean() < 0.8 * first.mean(), name
  update = objectives.aggregate(variables['gradients'], 'upgrad')
  assert (variables['gradients'] @ update >= -1e-5).all()
