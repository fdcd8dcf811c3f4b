"""This process's place among several: from flags, from plain variables, or from what the launcher has set."""

import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtl_jax.errors import UserError

# The first is JAX's own name too; whoever starts processes by hand, or from a launcher not known here, sets all three.
PLAIN = {'coordinator': 'JAX_COORDINATOR_ADDRESS', 'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}
FIRST_PORT, NUM_PORTS = 61440, 4096  # From which a job's number picks one, as JAX does: jobs on one host do not meet.


class LauncherError(UserError):
  """What the launcher or the flags say of the processes does not fit together; the message says what."""


class Place(NamedTuple):
  """One process among several: HOST:PORT of process 0, and the numbers of the host's GPUs that are its own, or None."""

  coordinator: str
  num_processes: int
  process_id: int
  local_devices: tuple[int, ...] | None = None

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of the coordinator. Raises LauncherError if they cannot be read."""
    host, _, port = self.coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
      raise LauncherError(f'the coordinator {self.coordinator!r} is not HOST:PORT')
    return host.strip('[]'), int(port)


def find(environment: Mapping[str, str], **flags: Any) -> Place | None:
  """This process's place, of flags named as in `PLAIN`, which outweigh variables; None where it is the only one.

  Raises:
    LauncherError: where something is missing or is not what it should be.
  """
  asked = {name: environment[variable] for name, variable in PLAIN.items() if variable in environment}
  asked |= {name: value for name, value in flags.items() if value is not None}
  said = _slurm(environment) or _open_mpi(environment) or ({} if asked else _tpu())
  if 'coordinator' in asked and 'JOB_COMPLETION_INDEX' in environment:  # A pod of an indexed Job, as a JobSet makes.
    said = {'process_id': environment['JOB_COMPLETION_INDEX']}
  found = said | asked
  if not found or str(found.get('num_processes')) == '1':
    return None
  way_out = 'give --coordinator HOST:PORT, --num_processes N and --process_id I'
  for name in PLAIN:
    if name not in found:
      raise LauncherError(f'nothing says the {name.replace("_", " ")}; {way_out}')
    if name != 'coordinator' and not str(found[name]).isdecimal():
      raise LauncherError(f'the {name.replace("_", " ")} is {found[name]!r}, and should be a number; {way_out}')
  num, process = int(found['num_processes']), int(found['process_id'])
  if process >= num:
    raise LauncherError(f'process {process} of {num}: the ids of so many start at 0')
  return Place(found['coordinator'], num, process, found.get('local_devices'))


def _slurm(environment: Mapping[str, str]) -> dict[str, Any]:
  """Of a step that `srun` started. JAX reads no `rack[0-1]node[00-15]`, and gives a node's only task GPU 0 alone."""
  names = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_STEP_TASKS_PER_NODE')
  if not all(name in environment for name in names):
    return {}
  job, nodes, num, process, per_node = (environment[name] for name in names)
  first = re.sub(r'\[([^],-]*)[^]]*]', r'\1', (re.match(r'([^,[]|\[[^]]*])*', nodes) or [''])[0])
  each = [int(count) for count, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', per_node) for _ in range(int(times or 1))]
  own = _own_gpu(environment, environment.get('SLURM_LOCALID', '0'), each[int(environment.get('SLURM_NODEID', 0))])
  coordinator = f'{first}:{FIRST_PORT + int(job) % NUM_PORTS}'
  return {'coordinator': coordinator, 'num_processes': num, 'process_id': process, 'local_devices': own}


def _open_mpi(environment: Mapping[str, str]) -> dict[str, Any]:
  """Of `mpirun`. Version 5 says no host, so where there are several `-x JAX_COORDINATOR_ADDRESS=HOST:PORT` does."""
  names = ('SIZE', 'RANK', 'LOCAL_SIZE', 'LOCAL_RANK')
  num, process, here, local = (environment.get(f'OMPI_COMM_WORLD_{name}', '') for name in names)
  if not num:
    return {}
  found = {'num_processes': num, 'process_id': process, 'local_devices': _own_gpu(environment, local, int(here))}
  uri = environment.get('OMPI_MCA_orte_hnp_uri', '')  # Such as 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
  host = re.search(r'tcp://([^,:]+)|tcp6://(\[[^],]+)', uri)
  name = '127.0.0.1' if here == num else host and (host[1] or f'{host[2]}]')
  job = uri.partition('.')[0] or environment.get('PMIX_NAMESPACE', '')
  return found | ({'coordinator': f'{name}:{FIRST_PORT + zlib.crc32(job.encode()) % NUM_PORTS}'} if name else {})


def _tpu() -> dict[str, Any]:
  """Of TPU slices, as JAX finds them: in the metadata of Google's machines, or in variables of its Kubernetes."""
  from jax._src.clusters import GceTpuCluster, GkeTpuCluster

  for cluster in (GkeTpuCluster, GceTpuCluster):
    if cluster.is_env_present() and (num := cluster.get_process_count()) > 1:
      address = cluster.get_coordinator_address(timeout_secs=300, override_coordinator_port=None)
      return {'coordinator': address, 'num_processes': num, 'process_id': cluster.get_process_id()}
  return {}


def _own_gpu(environment: Mapping[str, str], local_id: str, here: int) -> tuple[int, ...] | None:
  """The one GPU of a process with others beside it, unless its launcher shows it one alone (--gpus-per-task=1)."""
  shown = environment.get('CUDA_VISIBLE_DEVICES', '')
  return None if here < 2 or (shown and ',' not in shown) else (int(local_id),)
