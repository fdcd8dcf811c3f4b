"""Every launcher's variables give a process its place; the files of `launch/` say what they would do, and do it."""

import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mtl_jax.errors import LauncherError
from mtl_jax.platform import launcher
from mtl_jax.platform.launcher import ProcessInfo

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


# What launchers say.


def slurm(task: int, **more: str) -> dict[str, str]:
  """What `srun --ntasks=6 --ntasks-per-node=4,2` sets, of two nodes."""
  return {
    'SLURM_JOB_ID': '70001',
    'SLURM_STEP_NODELIST': 'gpu[007-008]',
    'SLURM_STEP_NUM_TASKS': '6',
    'SLURM_STEP_TASKS_PER_NODE': '4,2',
    'SLURM_PROCID': str(task),
    'SLURM_NODEID': str(task // 4),
    'SLURM_LOCALID': str(task % 4),
  } | more


def test_slurm_steps_have_a_process_a_task_and_a_gpu_each():
  places = [launcher.find(slurm(task)) for task in range(6)]
  assert places == [ProcessInfo(f'gpu007:{61440 + 70001 % 4096}', 6, i, (i % 4,)) for i in range(6)]


def test_a_slurm_task_that_is_alone_on_its_node_takes_all_its_gpus():
  place = launcher.find(slurm(1, SLURM_STEP_NUM_TASKS='2', SLURM_STEP_TASKS_PER_NODE='1(x2)', SLURM_NODEID='1'))
  assert place
  assert place.local_devices is None


def test_a_slurm_task_that_sees_one_gpu_takes_it():
  place = launcher.find(slurm(3, CUDA_VISIBLE_DEVICES='0'))
  assert place
  assert place.local_devices is None


def test_a_batch_script_without_srun_is_one_process():
  allocated = {'SLURM_JOB_ID': '70001', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '0', 'SLURM_JOB_NODELIST': 'gpu[007-008]'}
  assert launcher.find(allocated) is None
  assert launcher.find(slurm(0, SLURM_STEP_NUM_TASKS='1')) is None


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [
    ('node1', 'node1'),
    ('node1,host2', 'node1'),
    ('node[001-015],host2', 'node001'),
    ('node[001,007-015]', 'node001'),
    ('a-b-[3]', 'a-b-3'),
    ('rack[0-1]node[00-15]', 'rack0node00'),
    ('r[1,3]n[7,9],login', 'r1n7'),
  ],
)
def test_the_first_host_of_a_node_list_is_the_coordinator(nodes, first):
  place = launcher.find(slurm(0, SLURM_STEP_NODELIST=nodes))
  assert place
  assert place.address[0] == first


def open_mpi(rank: int, **more: str) -> dict[str, str]:
  return {
    'OMPI_COMM_WORLD_SIZE': '4',
    'OMPI_COMM_WORLD_RANK': str(rank),
    'OMPI_COMM_WORLD_LOCAL_RANK': str(rank % 2),
    'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
  } | more


def test_open_mpi_says_where_it_was_started_or_is_told():
  uri = {'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911'}
  places = [launcher.find(open_mpi(rank, **uri)) for rank in range(4)]
  assert [place and place.process_id for place in places] == [0, 1, 2, 3]
  assert {place and place.address for place in places} == {('10.96.0.1', places[0].address[1])}  # pyright: ignore
  assert [place and place.local_devices for place in places] == [(0,), (1,), (0,), (1,)]
  named = launcher.find(open_mpi(2, JAX_COORDINATOR_ADDRESS='head:9000'))
  assert named
  assert (named.coordinator, named.num_processes, named.process_id) == ('head:9000', 4, 2)
  on_one_host = launcher.find(open_mpi(1, OMPI_COMM_WORLD_LOCAL_SIZE='4', PMIX_NAMESPACE='prterun-head-77@1'))
  assert on_one_host
  assert on_one_host.address[0] == '127.0.0.1'
  with pytest.raises(LauncherError, match='nothing says the coordinator; give --coordinator'):
    launcher.find(open_mpi(1))


def test_an_ipv6_launcher_is_read():
  place = launcher.find(open_mpi(0, OMPI_MCA_orte_hnp_uri='1314521088.0;tcp6://[fe80::b9b:ac5d,2620::2]:43370'))
  assert place
  assert place.address[0] == 'fe80::b9b:ac5d'
  assert place.coordinator.startswith('[fe80::b9b:ac5d]:')


@pytest.fixture
def on_a_tpu(monkeypatch) -> None:
  """JAX takes this for a machine with TPUs, and its environment alone says where."""
  from jax._src.clusters import cloud_tpu_cluster

  monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
  monkeypatch.setattr('socket.gethostbyname', lambda name: '10.0.0.1')
  monkeypatch.setenv('MEGASCALE_COORDINATOR_ADDRESS', '')
  monkeypatch.setenv('MEGASCALE_NUM_SLICES', '')
  monkeypatch.setenv('MEGASCALE_SLICE_ID', '')
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY', raising=False)


def test_a_tpu_slice_on_kubernetes_is_found_as_jax_finds_it(on_a_tpu, monkeypatch):
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 't-0.t,t-1.t,t-2.t,t-3.t')
  monkeypatch.setenv('TPU_WORKER_ID', '2')
  assert launcher.find({}) == ProcessInfo('t-0.t:8482', 4, 2)
  assert launcher.find({}, coordinator='a:1', num_processes=1, process_id=0) is None
  two = {'MEGASCALE_NUM_SLICES': '2', 'MEGASCALE_SLICE_ID': '1', 'MEGASCALE_COORDINATOR_ADDRESS': 'm-0.m:8080'}
  for name, value in two.items():
    monkeypatch.setenv(name, value)
  assert launcher.find({}) == ProcessInfo('m-0.m:8482', 8, 6)
  monkeypatch.setenv('TPU_PROCESS_ADDRESSES', 'u-0.u:8471,u-1.u:8471')
  monkeypatch.setenv('TPU_WORKER_ID', '1')
  assert launcher.find({}) == ProcessInfo('m-0.m:8482', 4, 3)


@pytest.mark.parametrize('endpoints', ['10.0.0.7,10.0.0.8', 'u:u:10.0.0.7,u:u:10.0.0.8'])
def test_a_tpu_machine_is_found_in_its_metadata(on_a_tpu, monkeypatch, endpoints):
  monkeypatch.delenv('TPU_WORKER_HOSTNAMES', raising=False)
  monkeypatch.delenv('TPU_PROCESS_ADDRESSES', raising=False)
  known = {'agent-worker-number': '1', 'worker-network-endpoints': endpoints, 'tpu-env': ''}

  class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
      content = known[self.path.rpartition('/')[2]].encode()
      self.send_response(200)
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *_) -> None:
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Metadata) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('GCE_METADATA_IP', f'127.0.0.1:{server.server_port}')
    assert launcher.find({}) == ProcessInfo('10.0.0.7:8482', 2, 1)
    server.shutdown()


def test_flags_outweigh_variables_and_variables_outweigh_a_launcher():
  plain = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}
  assert launcher.find(slurm(2) | plain, process_id=1) == ProcessInfo('a:1', 4, 1, (2,))
  assert launcher.find({}, coordinator='b:2', num_processes=2, process_id=0) == ProcessInfo('b:2', 2, 0)


def test_one_process_is_none_of_several():
  assert launcher.find({}) is None
  assert launcher.find({'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}) is None


@pytest.mark.parametrize(
  ('environment', 'message'),
  [
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'nothing says the num_processes; give --coordinator HOST:PORT'),
    ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}, 'nothing says the coordinator; give --coordinator HOST:PORT'),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'}, 'process 2 of 2'),
    (slurm(0, SLURM_STEP_NUM_TASKS='many'), "the num_processes is 'many' and no number"),
  ],
)
def test_what_does_not_fit_together_is_named(environment, message):
  with pytest.raises(LauncherError, match=message):
    launcher.find(environment)


@pytest.mark.parametrize('coordinator', ['head', 'head:', ':80', 'head:http', 'head:70000'])
def test_a_coordinator_without_host_or_port_is_refused(coordinator):
  with pytest.raises(LauncherError, match='is not HOST:PORT'):
    _ = ProcessInfo(coordinator, 2, 0).address


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
