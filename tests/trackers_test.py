"""Metrics reach every tracker by its own client, over restarts too; one that fails or is missing is one line."""

import json
import sys
from pathlib import Path

import pytest
import small_runs

from mtl_jax import cli
from mtl_jax.errors import Interrupted, UserError
from mtl_jax.training import loop, trackers
from mtl_jax.training.progress import read_metrics

# Stand-ins for the clients, which keep each call, as a line, in the folder of the test.
KEEP = """
import json, os, types

def keep(*call):
  if os.environ.get('FAILS') and call[0] == 'log':
    raise ConnectionError('the service\\nis away')
  with open(os.environ['KEPT'], 'a') as file:
    file.write(json.dumps(call) + '\\n')
"""
WANDB = """
class Run:
  id = 'run-1'
  def log(self, values, step):
    keep('log', step, sorted(values))
  def finish(self):
    keep('finish')

def init(**given):
  keep('init', given['id'], given['project'], str(given['config']['train.steps']))
  return Run()
"""
MLFLOW = """
class MlflowClient:
  def get_experiment_by_name(self, name):
    self.name = name
  def create_experiment(self, name):
    return 7
  def create_run(self, experiment, run_name):
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id='run-1'))
  def update_run(self, run_id, status):
    keep('init', run_id, 'mtl_jax', '6')
  def log_batch(self, run_id, params=(), metrics=()):
    assert len(params) <= 100
    for key, value in params:
      if key == 'train.steps':
        keep('init', None, self.name, value)
    for step in {metric[3] for metric in metrics}:
      keep('log', step, sorted(metric[0] for metric in metrics))
  def set_terminated(self, run_id):
    keep('finish')

def Param(*fields):
  return fields
Metric = Param
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
  """The calls that the stand-ins got so far."""
  clients = tmp_path / 'clients'
  clients.mkdir()
  (clients / 'wandb.py').write_text(KEEP + WANDB)
  (clients / 'mlflow').mkdir()
  (clients / 'mlflow' / '__init__.py').write_text(KEEP + MLFLOW)
  (clients / 'mlflow' / 'entities.py').write_text('from mlflow import Metric, Param')
  monkeypatch.syspath_prepend(str(clients))
  for name in [name for name in sys.modules if name.split('.')[0] in ('wandb', 'mlflow')]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setenv('KEPT', str(tmp_path / 'kept'))
  yield lambda: [json.loads(line) for line in (tmp_path / 'kept').read_text().splitlines()]
  for name in ('wandb', 'mlflow', 'mlflow.entities'):
    sys.modules.pop(name, None)


def config_of(faces: Path, names: tuple[str, ...], **overrides):
  return small_runs.make_config(faces, **{'train.trackers': names, 'train.steps': 6, **overrides})


@pytest.mark.parametrize('name', trackers.SERVICES)
def test_the_lines_of_the_log_reach_the_service_and_a_resumed_run_goes_on_under_its_id(
  faces, tmp_path, monkeypatch, calls, name
):
  config = config_of(faces, (name,))
  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 2)
    with pytest.raises(Interrupted):
      loop.train(config, tmp_path / 'run')
  loop.train(config, tmp_path / 'run')
  found = calls()
  assert [call for call in found if call[0] == 'init'] == [['init', id, 'mtl_jax', '6'] for id in (None, 'run-1')]
  assert found.count(['finish']) == 2
  lines = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert [call[1:] for call in found if call[0] == 'log'] == [
    [line['step'], sorted(line.keys() - {'step'})] for line in lines
  ]
  assert not list((tmp_path / 'run').glob('events*'))  # Which were not asked for.


def test_a_service_that_fails_is_said_once_and_the_run_goes_on(faces, tmp_path, monkeypatch, calls, said):
  monkeypatch.setenv('FAILS', 'yes')
  loop.train(config_of(faces, ('tensorboard', 'wandb')), tmp_path / 'run')
  (line,) = [line for line in said if line.startswith('warning')]
  assert 'wandb' in line
  assert 'the service is away' in line
  assert read_metrics(tmp_path / 'run' / 'metrics.jsonl')[-1]['step'] == 6
  assert ['finish'] not in calls()


@pytest.mark.parametrize('name', trackers.NEEDS)
def test_a_tracker_that_is_not_installed_is_one_line_with_its_extra(faces, tmp_path, monkeypatch, capsys, name):
  module, extra = trackers.NEEDS[name]
  monkeypatch.setitem(sys.modules, module, None)
  arguments = ['train', '--config', 'demo', '--workdir', str(tmp_path / 'run'), f'--config.data.dir={faces}']
  assert cli.main([*arguments, f'--config.train.trackers=tensorboard,{name}']) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'config.train.trackers' in line
  assert f'mtl_jax[{extra}]' in line
  assert not (tmp_path / 'run').exists()


def test_a_service_that_cannot_be_opened_is_one_line(faces, tmp_path, monkeypatch, calls):
  monkeypatch.setattr(trackers.Wandb, '__init__', lambda *_: 1 / 0)
  with pytest.raises(UserError, match=r'config\.train\.trackers: wandb cannot be opened'):
    loop.train(config_of(faces, ('wandb',)), tmp_path / 'run')


def test_mlflow_keeps_parameters_and_metrics_of_one_run_over_restarts(tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow', reason="needs pip install 'mtl_jax[mlflow]'")
  monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'mlruns').as_uri())
  monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'faces')
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  start = trackers.Start('run', tmp_path, {'train.steps': 6, 'model.heads': {}}, step=0)
  for step in (1, 2):
    (tracker,) = trackers.open_all(['mlflow'], tmp_path, start)
    tracker.write(step, {'train/loss': 1.0 / step, 'train/cosine/a~b': 0.5, **{f'm{i}': 0.0 for i in range(200)}})
    tracker.close()
  client = mlflow.MlflowClient()
  (run,) = client.search_runs([client.get_experiment_by_name('faces').experiment_id])
  assert run.info.status == 'FINISHED'
  assert run.data.params['train.steps'] == '6'
  assert len(run.data.metrics) == 202
  assert [each.value for each in client.get_metric_history(run.info.run_id, 'train/loss')] == [1.0, 0.5]


def test_clu_writes_event_files_of_its_own(tmp_path):
  pytest.importorskip('clu.metric_writers', reason="needs pip install 'mtl_jax[clu]'", exc_type=ImportError)
  (tracker,) = trackers.open_all(['clu'], tmp_path, trackers.Start('run', tmp_path, {'train.steps': 6}, step=0))
  tracker.write(1, {'train/loss': 1.0})
  tracker.close()
  (events,) = (tmp_path / 'clu').iterdir()
  assert b'train/loss' in events.read_bytes()


def test_a_profile_is_a_trace_of_a_few_steps_whose_place_is_said(faces, tmp_path, capsys):
  (tmp_path / 'config.py').write_text(small_runs.file_of(config_of(faces, ())))
  arguments = ['train', '--config', str(tmp_path / 'config.py'), '--workdir', str(tmp_path / 'run'), '--profile']
  assert cli.main([*arguments, '--config.train.steps=2']) == 0
  assert 'too short for a trace' in capsys.readouterr().err
  assert cli.main([*arguments, '--config.train.steps=10', '--allow_config_change']) == 0
  assert f'profile: 5 dispatches are in {tmp_path / "run" / "profile"}' in capsys.readouterr().err
  (trace,) = (tmp_path / 'run' / 'profile').rglob('*.xplane.pb')
  assert trace.stat().st_size > 10_000
