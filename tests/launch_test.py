"""The files of `launch/` say what they would do, and do it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mtl_jax.platform import launcher

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / 'launch'
# A process that says who it is, instead of mtl-jax.
PROBE = """import json, os, sys
from mtl_jax.platform import launcher
place = launcher.find(os.environ)
said = [place and [place.coordinator, place.num_processes, place.process_id], sys.argv[1:]]
os.write(1, (json.dumps(said) + '\\n').encode())  # In one piece: several write to one pipe.
"""


@pytest.fixture
def probe(tmp_path) -> str:
  path = tmp_path / 'probe.py'
  path.write_text(PROBE)
  return f'{sys.executable} {path}'


def bash(
  *arguments: object, timeout: float = 60, cwd: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
  ours = {name: value for name, value in os.environ.items() if not name.startswith(('SLURM', 'OMPI', 'JAX_NUM'))}
  return subprocess.run(
    ['bash', *map(str, arguments)],
    env=ours | {'PYTHONPATH': str(ROOT)} | environment,
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=timeout,
  )


# local.sh.


def test_local_starts_so_many_processes_with_a_place_each(probe):
  ended = bash(LAUNCH / 'local.sh', '-n', 3, 'train', '--x', 'a b', MTL_JAX=probe, JAX_PLATFORMS='cpu')
  assert ended.returncode == 0, ended.stderr
  said = sorted(map(json.loads, ended.stdout.splitlines()), key=lambda one: one[0][2])
  assert [(place[1], place[2]) for place, _ in said] == [(3, 0), (3, 1), (3, 2)]
  assert len({place[0] for place, _ in said}) == 1
  assert all(arguments == ['train', '--x', 'a b'] for _, arguments in said)


def test_a_dry_run_of_local_prints_what_it_would_run(probe):
  ended = bash(LAUNCH / 'local.sh', '-n', 2, '--dry_run', 'eval', '--workdir', 'a b', PORT='9', JAX_PLATFORMS='cpu')
  lines = [shlex.split(line) for line in ended.stdout.splitlines()]
  assert lines[1] == [
    *('env', 'JAX_COORDINATOR_ADDRESS=127.0.0.1:9', 'JAX_NUM_PROCESSES=2', 'JAX_PROCESS_ID=1'),
    *('mtl-jax', 'eval', '--workdir', 'a b'),
  ]
  assert len(lines) == 2


def test_local_divides_the_gpus(tmp_path):
  """A stand-in for nvidia-smi lists four."""
  smi = tmp_path / 'nvidia-smi'
  smi.write_text('#!/bin/sh\nprintf "0\\n1\\n2\\n3\\n"\n')
  smi.chmod(0o755)
  path = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'JAX_PLATFORMS': ''}
  ended = bash(LAUNCH / 'local.sh', '-n', 2, '--dry_run', 'train', **path)
  assert re.findall(r'CUDA_VISIBLE_DEVICES=(\S+)', ended.stdout.replace('\\', '')) == ['0,1', '2,3']
  ended = bash(LAUNCH / 'local.sh', '-n', 3, '--dry_run', 'train', **path)
  assert (ended.returncode, ended.stderr.count('\n')) == (2, 1)
  assert '4 GPUs cannot be divided between 3 processes' in ended.stderr


@pytest.mark.parametrize('code', [2, 75])
def test_local_passes_an_exit_code_on(tmp_path, code):
  script = tmp_path / 'verb'
  script.write_text(f'#!/bin/sh\n[ $JAX_PROCESS_ID = 0 ] && exit 0 || exit {code}\n')
  script.chmod(0o755)
  assert bash(LAUNCH / 'local.sh', '-n', 2, 'x', MTL_JAX=str(script), JAX_PLATFORMS='cpu').returncode == code


def test_local_ends_when_all_its_processes_die_at_once(tmp_path):
  stand_in(tmp_path, 'dies', 'sleep 0.3; kill -KILL $$')
  ended = bash(LAUNCH / 'local.sh', '-n', 6, 'x', MTL_JAX=str(tmp_path / 'dies'), JAX_PLATFORMS='cpu', timeout=20)
  assert ended.returncode == 137
  assert 'not a child' not in ended.stderr  # Bash itself may say who was killed.


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_local_passes_signals_on_to_every_process(tmp_path, number):
  script = tmp_path / 'verb'
  script.write_text(
    f'import os, signal, sys, time\n'
    f'signal.signal({int(number)}, lambda *_: sys.exit(75))\n'
    f'open("{tmp_path}/ready-" + os.environ["JAX_PROCESS_ID"], "w").close()\n'
    'time.sleep(30)\n'
  )
  environment = os.environ | {'MTL_JAX': f'{sys.executable} {script}', 'JAX_PLATFORMS': 'cpu'}
  line = ['bash', LAUNCH / 'local.sh', '-n', '2', 'x']
  process = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE)
  while len(list(tmp_path.glob('ready-*'))) < 2:
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(number)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 75, errors


@pytest.mark.parametrize('arguments', [[], ['-n'], ['-n', '0', 'x'], ['-n', '2'], ['-n', '2', '--what', 'x']])
def test_wrong_usage_of_local_is_one_line(arguments):
  ended = bash(LAUNCH / 'local.sh', *arguments)
  assert (ended.returncode, ended.stderr.count('\n'), ended.stdout) == (2, 1, '')


# slurm.sbatch and tpu_vm.sh, with stand-ins for the programs they call.


def stand_in(folder: Path, name: str, text: str) -> None:
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{text}\n')
  path.chmod(0o755)


# Runs the task once, after srun's own flags, and passes signals on to it as srun does.
SRUN = """while [[ $1 == --* ]]; do shift; done
"$@" & task=$!
trap 'pkill -USR1 -P "$task"' USR1
code=0; wait "$task" || code=$?
while kill -0 "$task" 2>/dev/null; do code=0; wait "$task" || code=$?; done
exit $code"""


def test_slurm_requeues_what_was_interrupted_and_nothing_else(tmp_path):
  stand_in(tmp_path, 'srun', SRUN)
  stand_in(tmp_path, 'verb', 'exit "$CODE"')
  stand_in(tmp_path, 'scontrol', f'echo "$@" >> {tmp_path}/requeued')
  path = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7', 'MTL_JAX': 'verb', 'cwd': str(tmp_path)}
  for code, expected in ((0, 0), (2, 2), (3, 3), (75, 0)):
    assert bash(LAUNCH / 'slurm.sbatch', 'train', CODE=str(code), **path).returncode == expected
  assert (tmp_path / 'requeued').read_text() == 'requeue 7\n'
  ended = bash(LAUNCH / 'slurm.sbatch', 'train', CODE='75', SLURM_RESTART_COUNT='100', **path)
  assert ended.returncode == 75
  assert (tmp_path / 'requeued').read_text() == 'requeue 7\n'


def test_slurm_passes_the_warning_on_to_the_step_and_waits_for_it(tmp_path):
  stand_in(tmp_path, 'srun', SRUN)  # Replaced by the task, so that the signal reaches it as srun passes it on.
  text = f'trap "sleep 0.3; exit 75" USR1; touch {tmp_path}/ready; while :; do sleep 0.05; done'
  stand_in(tmp_path, 'verb', text)
  stand_in(tmp_path, 'scontrol', f'echo "$@" >> {tmp_path}/requeued')
  path = f'{tmp_path}:{os.environ["PATH"]}'
  environment = os.environ | {'PATH': path, 'SLURM_JOB_ID': '7', 'MTL_JAX': 'verb'}
  line = ['bash', LAUNCH / 'slurm.sbatch', 'train']
  process = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, cwd=tmp_path)
  while not (tmp_path / 'ready').exists():
    time.sleep(0.02)
  process.send_signal(signal.SIGUSR1)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert (tmp_path / 'requeued').read_text() == 'requeue 7\n'


def test_slurm_says_what_it_asks_for_and_would_run():
  text = (LAUNCH / 'slurm.sbatch').read_text()
  options = dict(re.findall(r'^#SBATCH --([\w-]+)(?:=(.*))?$', text, re.MULTILINE))
  assert options['signal'] == 'B:USR1@120'
  assert 'requeue' in options
  assert options['ntasks-per-node'] == options['gpus-per-node']
  ended = bash(LAUNCH / 'slurm.sbatch', '--dry_run', 'train', '--workdir', 'a b')
  assert shlex.split(ended.stdout.splitlines()[0])[-4:] == ['mtl-jax', 'train', '--workdir', 'a b']


def test_tpu_workers_are_left_with_a_run_that_starts_again(tmp_path):
  """Stand-ins: gcloud runs the command on two workers; the verb is interrupted twice and then fails four times."""
  stand_in(
    tmp_path,
    'gcloud',
    'for last; do :; done\nfor worker in 0 1; do\n  mkdir -p "$5-$worker"; '
    '(cd "$5-$worker" && bash -c "${last#--command=}"); done',
  )
  stand_in(tmp_path, 'verb', 'echo "$@" >>starts; n=$(wc -l <starts); ((n > 2)) || exit 75; exit 1')
  path = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'cwd': str(tmp_path)}
  ended = bash(LAUNCH / 'tpu_vm.sh', '--tpu', 'a,b', '--zone', 'z', 'train', '--x', "it's a", MTL_JAX='verb', **path)
  assert ended.returncode == 0, ended.stderr
  logs = [tmp_path / f'{name}-{i}' / 'starts' for name in 'ab' for i in range(2)]
  for _ in range(500):
    if all(log.exists() and len(log.read_text().splitlines()) == 6 for log in logs):
      break
    time.sleep(0.02)
  assert [log.read_text() for log in logs] == ["train --x it's a\n" * 6] * 4


def test_a_dry_run_for_tpus_prints_the_commands_and_calls_nothing():
  ended = bash(LAUNCH / 'tpu_vm.sh', '--tpu', 'pod', '--zone', 'z', '--setup', 'pip install x', '--dry_run', 'train')
  setup, run = map(shlex.split, ended.stdout.splitlines())
  assert ' '.join(setup) == 'gcloud compute tpus tpu-vm ssh pod --zone=z --worker=all --command=pip install x'
  assert run[:8] == setup[:8]
  ended = bash(LAUNCH / 'tpu_vm.sh', 'train')
  assert (ended.returncode, ended.stderr.count('\n')) == (2, 1)


# The files.


def read_yaml(name: str) -> Any:
  yaml = pytest.importorskip('yaml')
  return list(yaml.safe_load_all((LAUNCH / name).read_text()))[-1]


def test_the_jobset_gives_every_pod_a_place():
  jobset = read_yaml('gke_jobset.yaml')
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  (job,) = jobset['spec']['replicatedJobs']
  spec = job['template']['spec']
  (container,) = spec['template']['spec']['containers']
  assert (spec['completionMode'], spec['backoffLimit'], job['replicas']) == ('Indexed', 0, 1)
  assert spec['template']['spec']['restartPolicy'] == 'Never'  # As a podFailurePolicy demands.
  environment = {one['name']: one['value'] for one in container['env']}
  assert int(environment['JAX_NUM_PROCESSES']) == spec['parallelism'] == spec['completions']
  name = jobset['metadata']['name']
  for index in range(spec['completions']):
    place = launcher.find(environment | {'JOB_COMPLETION_INDEX': str(index)})
    assert place
    assert place.process_id == index
    assert place.address == (f'{name}-{job["name"]}-0-0.{name}', 8476)


@pytest.mark.parametrize('name', ['gke_jobset.yaml', 'gke_tpu_jobset.yaml'])
def test_a_jobset_goes_on_without_limit_after_75_and_disruptions_alone(name):
  jobset = read_yaml(name)
  (job,) = jobset['spec']['replicatedJobs']
  spec = job['template']['spec']
  (container,) = spec['template']['spec']['containers']
  exits, disruption = spec['podFailurePolicy']['rules']
  assert exits == {
    'action': 'FailJob',
    'onExitCodes': {'containerName': container['name'], 'operator': 'In', 'values': [75]},
  }
  assert disruption == {'action': 'FailJob', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}
  policy = jobset['spec']['failurePolicy']
  (rule,) = policy['rules']
  assert (policy['maxRestarts'], rule['action']) == (3, 'RestartJobSetAndIgnoreMaxRestarts')
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert re.fullmatch(r'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])  # As JobSet demands.


def test_skypilot_gives_every_node_a_place_and_recovers(tmp_path, probe):
  task = read_yaml('skypilot.yaml')
  assert task['resources']['use_spot'] is True
  assert task['resources']['job_recovery']['recover_on_exit_codes'] == [75]
  script = tmp_path / 'run'
  script.write_text('set -eu\n' + task['run'].replace('~/env/bin/mtl-jax', probe))
  nodes = {'SKYPILOT_NODE_IPS': '10.0.0.7\n10.0.0.8', 'SKYPILOT_NUM_NODES': str(task['num_nodes'])}
  for rank in range(2):
    ended = bash(script, SKYPILOT_NODE_RANK=str(rank), ARGS=task['envs']['ARGS'], **nodes)
    place, arguments = json.loads(ended.stdout)
    assert place == ['10.0.0.7:8476', 2, rank]
    assert arguments[0] == 'train'


def test_the_lock_file_pins_every_package_of_the_project_with_its_digests():
  packages = (LAUNCH / 'requirements.lock').read_text().replace('\\\n', ' ').splitlines()
  assert all(re.fullmatch(r'[a-z0-9._-]+==[\w.+!]+(\s+--hash=sha256:[0-9a-f]{64})+', line) for line in packages)
  pinned = dict(re.match(r'([^=]+)==(\S+)', line).groups() for line in packages)  # pyright: ignore
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  for wanted in [*project['dependencies'], *project['optional-dependencies']['cuda']]:
    name, least = re.fullmatch(r'([\w.-]+)(?:\[\w+\])?>=([\w.]+)', wanted).groups()  # pyright: ignore
    version = pinned[name.lower().replace('_', '-')]
    assert tuple(map(int, re.findall(r'\d+', version))) >= tuple(map(int, least.split('.'))), name
  assert pinned['jax-cuda13-plugin'] == pinned['jax'] == pinned['jaxlib']


def test_the_container_installs_the_lock_file_and_files_that_exist():
  text = (LAUNCH / 'Dockerfile').read_text()
  assert re.search(r'^FROM nvidia/cuda:[\d.]+-\S+$', text, re.MULTILINE)
  assert '--require-hashes' in text
  sources = [name for line in re.findall(r'^COPY (.+) \S+$', text, re.MULTILINE) for name in line.split()]
  assert sources
  assert all((ROOT / name).exists() for name in sources)
  (version,) = set(re.findall(r'python(3\.\d+)', text))
  assert f'--python-version {version}' in (LAUNCH / 'lock.sh').read_text()


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='shellcheck is not installed')
def test_shellcheck_finds_nothing():
  scripts = [*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch', ROOT / '.ci' / 'run']
  ended = subprocess.run(['shellcheck', *scripts], capture_output=True, text=True)
  assert ended.returncode == 0, ended.stdout
