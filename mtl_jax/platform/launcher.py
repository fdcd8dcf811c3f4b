"""Finds this process's index and its coordinator, from flags, environment variables or the launcher."""

import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtl_jax.errors import LauncherError

# The first is JAX's own name too; whoever starts processes by hand, or from a launcher not known here, sets all three.
PLAIN = {'coordinator': 'JAX_COORDINATOR_ADDRESS', 'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}


class ProcessInfo(NamedTuple):
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


def find(environment: Mapping[str, str], **flags: Any) -> ProcessInfo | None:
  """Finds this process's place; None if it is the only one. Flags, named as in `PLAIN`, win. Raises LauncherError."""
  asked = {name: environment[variable] for name, variable in PLAIN.items() if variable in environment}
  asked |= {name: value for name, value in flags.items() if value is not None}
  said = _slurm(environment) or _open_mpi(environment) or ({} if asked else _tpu())
  if 'coordinator' in asked and 'JOB_COMPLETION_INDEX' in environment:  # A pod of an indexed Job, as a JobSet makes.
    said = {'process_id': environment['JOB_COMPLETION_INDEX']}
  found: dict[str, Any] = said | asked
  if not found or str(found.get('num_processes')) == '1':
    return None
  for name in PLAIN:
    if name not in found or (name != 'coordinator' and not str(found[name]).isdecimal()):
      wrong = f'the {name} is {found[name]!r} and no number' if name in found else f'nothing says the {name}'
      raise LauncherError(f'{wrong}; give --coordinator HOST:PORT, --num_processes N and --process_id I')
  num, process = int(found['num_processes']), int(found['process_id'])
  if process >= num:
    raise LauncherError(f'process {process} of {num}: the ids of so many start at 0')
  return ProcessInfo(found['coordinator'], num, process, found.get('local_devices'))


def _slurm(of: Mapping[str, str]) -> dict[str, Any]:
  """Reads a step of `srun`. JAX reads no `rack[0-1]node[00-15]`, and gives a node's only task GPU 0 alone."""
  names = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_STEP_TASKS_PER_NODE')
  if not all(name in of for name in names):
    return {}
  job, nodes, num, process, per_node = (of[name] for name in names)
  first = re.sub(r'\[([^],-]*)[^]]*]', r'\1', (re.match(r'([^,[]|\[[^]]*])*', nodes) or [''])[0])
  each = [int(count) for count, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', per_node) for _ in range(int(times or 1))]
  return _placed(of, first, job, num, process, of.get('SLURM_LOCALID', '0'), each[int(of.get('SLURM_NODEID', 0))])


def _open_mpi(of: Mapping[str, str]) -> dict[str, Any]:
  """Reads a run of `mpirun`. Version 5 names no host: several need `-x JAX_COORDINATOR_ADDRESS=HOST:PORT`."""
  num, process, local, here = (of.get(f'OMPI_COMM_WORLD_{x}', '') for x in ('SIZE', 'RANK', 'LOCAL_RANK', 'LOCAL_SIZE'))
  if not num:
    return {}
  uri = of.get('OMPI_MCA_orte_hnp_uri', '')  # Such as 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
  host = re.search(r'tcp://([^,:]+)|tcp6://(\[[^],]+)', uri)
  name = '127.0.0.1' if here == num else host and (host[1] or f'{host[2]}]')
  job = zlib.crc32((uri.partition('.')[0] or of.get('PMIX_NAMESPACE', '')).encode())
  return _placed(of, name, job, num, process, local, int(here))


def _placed(of: Mapping[str, str], host: str | None, job: Any, num: str, process: str, local: str, here: int) -> dict:
  """Adds the one GPU of a process that shares its host, unless it sees only one (--gpus-per-task=1)."""
  shown = of.get('CUDA_VISIBLE_DEVICES', '')
  own = None if here < 2 or (shown and ',' not in shown) else (int(local),)
  coordinator = {'coordinator': f'{host}:{61440 + int(job) % 4096}'} if host else {}  # As JAX picks a job's port.
  return {'num_processes': num, 'process_id': process, 'local_devices': own, **coordinator}


def _tpu() -> dict[str, Any]:
  """Reads TPU slices as JAX finds them: in the metadata of Google's machines, or in variables of its Kubernetes."""
  from jax._src.clusters import GceTpuCluster, GkeTpuCluster

  for cluster in (GkeTpuCluster, GceTpuCluster):
    if cluster.is_env_present() and (num := cluster.get_process_count()) > 1:
      address = cluster.get_coordinator_address(timeout_secs=300, override_coordinator_port=None)
      return {'coordinator': address, 'num_processes': num, 'process_id': cluster.get_process_id()}
  return {}
