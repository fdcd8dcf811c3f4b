"""Runs whose workdir is gs://, over HTTP: one process and two that share no file system, killed, resumed, evaluated."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small_runs

from mtl_jax import cli
from mtl_jax.errors import CheckpointError
from mtl_jax.platform import address
from mtl_jax.training import loop

RUN = 'gs://bucket/runs/joint'


def names(cloud) -> list[str]:
  """Of the run's objects."""
  return [name.removeprefix('runs/joint/') for name in sorted(cloud.objects) if name.startswith('runs/joint/')]


def saved(cloud) -> set[int]:
  """Steps whose save is complete."""
  return {
    int(found[1]) for name in names(cloud) if (found := re.fullmatch(r'checkpoints/(\d+)/commit_success.txt', name))
  }


def command(tmp_path: Path, faces: Path, **overrides: Any) -> list[str]:
  return [*small_runs.command(tmp_path, small_runs.make_config(faces, **overrides), Path('x'))[:-1], RUN]


def test_a_run_in_a_bucket_is_written_there_stopped_resumed_and_evaluated(faces, cloud, tmp_path, monkeypatch, capsys):
  arguments = command(tmp_path, faces)[3:]
  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 4)
    assert cli.main(arguments) == 75
  assert saved(cloud) == {3, 4}
  assert {'config.json', 'dataset.json', 'metrics.jsonl', 'goodput.json', '.lock'} <= set(names(cloud))
  assert cli.main(arguments) == 0
  assert {9, 12} <= saved(cloud)
  lines = [json.loads(line)['step'] for line in cloud.objects['runs/joint/metrics.jsonl'][0].splitlines()]
  assert lines == list(range(1, 13))
  assert len([name for name in names(cloud) if 'tfevents' in name]) == 2
  whole = tmp_path / 'whole'
  loop.train(small_runs.make_config(faces), whole)
  small_runs.assert_same_bits(whole, address.workdir(RUN))
  assert cli.main(['eval', '--workdir', RUN]) == cli.main(['report', '--workdir', RUN]) == 0
  assert capsys.readouterr().out.endswith(f'\n{RUN}/report.html\n')
  assert cli.main(['eval', '--workdir', str(whole)]) == 0
  here = json.loads((whole / 'eval' / 'test.json').read_text())
  assert json.loads(cloud.objects['runs/joint/eval/test.json'][0])['tasks'] == here['tasks']
  assert not list(Path.cwd().glob('gs:*'))


def test_a_second_run_takes_the_workdir_and_the_first_saves_nothing_more(
  faces, cloud, tmp_path, monkeypatch, capsys, refused
):
  arguments = command(tmp_path, faces)[3:]

  def take() -> bool:
    cloud.put('runs/joint/.lock', b'process 7 of elsewhere since 1 ns\n', {})
    return False

  small_runs.at_step(monkeypatch, 4, take)
  assert f'--workdir: {RUN} was taken over by process 7 of elsewhere' in refused(*arguments)
  assert saved(cloud) == {3}
  assert cli.main(arguments) == 0
  assert f'{RUN} is taken over from process 7 of elsewhere since 1 ns; if that still runs' in capsys.readouterr().err


@pytest.mark.parametrize('part', ['dataset.json', 'metrics.jsonl', 'manifest.ocdbt', 'commit_success.txt'])
def test_an_object_that_cannot_be_written_ends_the_run_in_one_line(faces, cloud, tmp_path, refused, part):
  cloud.failing.append(part)
  told = refused(*command(tmp_path, faces)[3:])
  assert re.search(rf'{RUN}/(checkpoints|{part}): cannot be (saved|written): ', told)
  assert not saved(cloud)


def test_an_address_that_holds_no_run_is_one_line(cloud, refused, tmp_path):
  assert f'--workdir: {RUN} holds no run' in refused('predict', '--workdir', RUN, tmp_path / 'face.jpg')


@pytest.mark.parametrize('place', [Path(RUN), Path('s3://b/run')])
def test_an_address_that_was_made_a_local_path_is_refused(faces, tmp_path, monkeypatch, place):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(CheckpointError, match='has lost a slash; give the address as text'):
    loop.train(small_runs.make_config(faces), place)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('verb', ['train', 'eval'])
def test_other_stores_are_refused_with_what_works(verb, refused, tmp_path):
  config = ['--config', 'default'] if verb == 'train' else []
  told = refused(verb, *config, '--workdir', 's3://b/run')
  assert 's3://b/run: checkpoints are written to folders and gs:// alone' in told
  assert 'take a local or shared folder' in told


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    (['export', '--workdir', 'w', '--out', 'gs://b/out'], 'gs://b/out: only --workdir and prepared sets may lie in'),
    (['report', '--workdir', 'gs://'], 'gs://: names no bucket'),
    (['report', '--workdir', 'gs://b/..'], 'gs://b/..: names no bucket'),
    (['eval', '--workdir', 'w', '--data', 'quux://b/run'], '--workdir: w holds no run'),
  ],
)
def test_other_addresses_are_refused_in_one_line(refused, arguments, told):
  assert told in refused(*arguments)


# Two processes on two hosts: each has a folder of its own as its working directory, cache and home.


def hosts(command: list[str], cloud_environment: dict[str, str], tmp_path: Path) -> list[subprocess.Popen]:
  port, started = small_runs.free_port(), []
  for i in range(2):
    home = tmp_path / f'host{i}'
    home.mkdir(exist_ok=True)
    flags = ['--coordinator', f'127.0.0.1:{port}', '--num_processes', '2', '--process_id', str(i), '--heartbeat', '3']
    environment = small_runs.one_device() | cloud_environment | {'XDG_CACHE_HOME': str(home), 'HOME': str(home)}
    environment['PYTHONPATH'] = str(Path(__file__).parents[1])
    started.append(
      subprocess.Popen(
        [*command, *flags], cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
      )
    )
  return started


def end(processes: list[subprocess.Popen]) -> list[str]:
  try:
    return [process.communicate(timeout=300)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()


def wait_for(holds, processes: list[subprocess.Popen]) -> None:
  deadline = time.monotonic() + 200
  while not holds():
    assert time.monotonic() < deadline
    assert all(process.poll() is None for process in processes), end(processes)
    time.sleep(0.005)


def set_in_bucket(faces: Path, cloud) -> None:
  for path in faces.rglob('*'):
    if path.is_file():
      cloud.put(f'faces/{path.relative_to(faces).as_posix()}', path.read_bytes(), {})


@pytest.mark.slow
def test_two_hosts_without_a_shared_folder_are_killed_in_saves_and_resumed_on_one(faces, cloud, fake_gcs, tmp_path):
  set_in_bucket(faces, cloud)
  overrides = {'data.dir': 'gs://bucket/faces', 'train.steps': 30, 'checkpoint.every_steps': 1, 'optimizer.name': 'sgd'}
  line, environment = command(tmp_path, faces, **overrides), fake_gcs.environment()
  for kill in ([0], [1], [0, 1]):
    before = max(saved(cloud), default=0)
    processes = hosts(line, environment, tmp_path)
    wait_for(lambda before=before: max(saved(cloud), default=0) >= before + 3, processes)
    wait_for(
      lambda: {int(n.split('/')[1]) for n in names(cloud) if n.startswith('checkpoints/')} - saved(cloud), processes
    )
    for i in kill:
      processes[i].send_signal(signal.SIGKILL)
    said = end(processes)
    assert all(process.returncode for process in processes), said
    assert max(saved(cloud)) >= before + 3
  processes = hosts(line, environment, tmp_path)
  before = max(saved(cloud))
  wait_for(lambda: max(saved(cloud)) > before, processes)
  processes[1].send_signal(signal.SIGTERM)
  said = end(processes)
  assert [process.returncode for process in processes] == [75, 75], said
  stopped = int(re.findall(r'interrupted and saved at step (\d+)', said[0])[0])
  assert stopped in saved(cloud)
  single = subprocess.run(line, env=small_runs.one_device() | environment, capture_output=True, text=True, timeout=300)
  assert single.returncode == 0, single.stderr
  assert f'resuming at step {stopped}' in single.stderr
  assert 30 in saved(cloud)
  unfinished = {name.split('/')[1] for name in names(cloud) if name.startswith('checkpoints/')}
  assert {int(step) for step in unfinished} == saved(cloud)
  evaluated = subprocess.run(
    [sys.executable, '-m', 'mtl_jax', 'eval', '--workdir', RUN],
    env=os.environ | environment | {'XDG_CACHE_HOME': str(tmp_path / 'laptop')},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert evaluated.returncode == 0, evaluated.stderr
  loop.train(small_runs.make_config(faces, **overrides | {'data.dir': str(faces)}), tmp_path / 'whole')
  small_runs.assert_close_weights(tmp_path / 'whole', address.workdir(RUN))


@pytest.mark.slow
def test_a_study_in_a_bucket_keeps_its_replicas_and_pages_there(faces, cloud, tmp_path):
  overrides = {'study.num_seeds': 2, 'study.num_resamples': 100, 'train.steps': 6}
  arguments = ['study', *command(tmp_path, faces, **overrides)[4:]]
  assert cli.main(arguments) == 0
  found = set(names(cloud))
  assert {'study.json', 'study.csv', 'report.html', 'config.json'} <= found
  assert any(name.startswith('plots/') and name.endswith('.png') for name in found)
  replicas = {name for name in found if name.startswith('replicas/')}
  assert len(replicas) > 2
  generations = {name: cloud.objects[f'runs/joint/{name}'][1] for name in replicas}
  assert cli.main(arguments) == 0  # None is run again.
  assert {name: cloud.objects[f'runs/joint/{name}'][1] for name in replicas} == generations
