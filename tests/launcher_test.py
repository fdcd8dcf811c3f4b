"""Every launcher's variables give a process its place."""

import http.server
import threading

import pytest

from mtl_jax.errors import LauncherError
from mtl_jax.platform import launcher
from mtl_jax.platform.launcher import ProcessInfo


def slurm(task: int, **more: str) -> dict[str, str]:
  """Variables that `srun --ntasks=6 --ntasks-per-node=4,2` sets, of two nodes."""
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
