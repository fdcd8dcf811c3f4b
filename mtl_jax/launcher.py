"""Which process of how many this one is: from flags, from plain variables, or from what the launcher has set."""

import dataclasses
import re
import zlib
from collections.abc import Mapping
from typing import Any

from mtl_jax.errors import UserError

# jax.distributed's own names; whoever starts processes by hand, or from a launcher that is not known here, sets these.
COORDINATOR, NUM_PROCESSES, PROCESS_ID = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
DEFAULT_PORT = 8476  # Of the coordinator, where a launcher gives none; jax's on TPUs too.
FIRST_PORT, NUM_PORTS = 61440, 4096  # From which a job's number picks one, so that jobs on one host do not meet.
WAY_OUT = 'give --coordinator HOST:PORT, --num_processes N and --process_id I'


class LauncherError(UserError):
  """What the launcher or the flags say of the processes does not fit together; the message names the variable."""


@dataclasses.dataclass(frozen=True)
class Place:
  """One process among several.

  Attributes:
    coordinator: HOST:PORT of process 0.
    num_processes: two or more.
    process_id: from 0.
    local_devices: numbers of the host's GPUs that are this process's; None for all that it sees.
    source: who said so, for error messages.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_devices: tuple[int, ...] | None = None
  source: str = 'flags'

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of the coordinator. Raises LauncherError if they cannot be read."""
    host, _, port = self.coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
      raise LauncherError(f'the coordinator {self.coordinator!r} ({self.source}) is not HOST:PORT')
    return host.strip('[]'), int(port)


def find(
  environment: Mapping[str, str],
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Place | None:
  """This process's place; None where it is the only one.

  Args:
    environment: the variables of this process.
    coordinator: a flag, like the two that follow; each outweighs variables. `JAX_*` variables outweigh a launcher's, so
      either can supply what a launcher does not say.
    num_processes: of the whole run.
    process_id: of this process.

  Raises:
    LauncherError: where something is missing or is not what it should be.
  """
  found: dict[str, Any] = {}
  for read in (_slurm, _open_mpi, _tpu, _plain):
    found |= read(environment)
  flags = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  given = {name: value for name, value in flags.items() if value is not None}
  found |= given | ({'source': 'flags'} if given else {})
  asked = given or any(name in environment for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID))
  if found.get('num_processes', 0) == 1 or not (asked or found.get('num_processes')):
    return None
  missing = [name for name in flags if name not in found]
  if missing:
    raise LauncherError(f'{found["source"]} does not say the {missing[0].replace("_", " ")}; {WAY_OUT}')
  place = Place(**found)
  if not 0 <= place.process_id < place.num_processes:
    raise LauncherError(
      f'process {place.process_id} of {place.num_processes} ({place.source}): the ids of so many start at 0'
    )
  return place


def _plain(environment: Mapping[str, str]) -> dict[str, Any]:
  """`JAX_*` variables; a pod of a Kubernetes Job with indices, such as a JobSet makes, has its number in another."""
  found: dict[str, Any] = {}
  if COORDINATOR in environment:
    found['coordinator'] = environment[COORDINATOR]
    if 'JOB_COMPLETION_INDEX' in environment:
      found['process_id'] = _number(environment, 'JOB_COMPLETION_INDEX')
  for name, variable in (('num_processes', NUM_PROCESSES), ('process_id', PROCESS_ID)):
    if variable in environment:
      found[name] = _number(environment, variable)
  return found | ({'source': 'the environment (JAX_COORDINATOR_ADDRESS and so on)'} if found else {})


def _slurm(environment: Mapping[str, str]) -> dict[str, Any]:
  """Of a step that `srun` started; a batch script itself is one process, whatever its job has been given."""
  if not {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID'} <= set(environment):
    return {}
  job = _number(environment, 'SLURM_JOB_ID')
  here = _slurm_tasks(environment.get('SLURM_STEP_TASKS_PER_NODE', '1'), _number(environment, 'SLURM_NODEID', 0))
  return {
    'coordinator': f'{_first_host(environment["SLURM_STEP_NODELIST"])}:{FIRST_PORT + job % NUM_PORTS}',
    'num_processes': _number(environment, 'SLURM_STEP_NUM_TASKS'),
    'process_id': _number(environment, 'SLURM_PROCID'),
    'local_devices': _own_device(environment, _number(environment, 'SLURM_LOCALID', 0), here),
    'source': 'SLURM',
  }


def _first_host(nodes: str) -> str:
  """`gpu003` of `gpu[003-005,9],login1`."""
  found = re.match(r'([^,\[]+)(?:\[([^,\-\]]+))?', nodes)
  if not found:
    raise LauncherError(f'SLURM_STEP_NODELIST is {nodes!r}, which names no host; {WAY_OUT}')
  return found[1] + (found[2] or '')


def _slurm_tasks(counts: str, node: int) -> int:
  """How many processes a node has, of counts such as `4(x2),3`: two nodes with 4 and one with 3."""
  each: list[int] = []
  for part in re.finditer(r'(\d+)(?:\(x(\d+)\))?', counts):
    each += [int(part[1])] * int(part[2] or 1)
  return each[node] if node < len(each) else 1


def _open_mpi(environment: Mapping[str, str]) -> dict[str, Any]:
  """Of `mpirun`; where it does not say on which host it runs, `-x JAX_COORDINATOR_ADDRESS=HOST:PORT` does."""
  if not {'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'} <= set(environment):
    return {}
  size, here = _number(environment, 'OMPI_COMM_WORLD_SIZE'), _number(environment, 'OMPI_COMM_WORLD_LOCAL_SIZE', 1)
  found = {
    'num_processes': size,
    'process_id': _number(environment, 'OMPI_COMM_WORLD_RANK'),
    'local_devices': _own_device(environment, _number(environment, 'OMPI_COMM_WORLD_LOCAL_RANK', 0), here),
    'source': 'Open MPI',
  }
  uri = environment.get('OMPI_MCA_orte_hnp_uri', '')  # Such as 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
  job = uri.partition('.')[0] or environment.get('PMIX_NAMESPACE', '')
  port = FIRST_PORT + zlib.crc32(job.encode()) % NUM_PORTS
  launcher = re.search(r'tcp://([^,:]+)|tcp6://\[([^,\]]+)', uri)
  if here == size:
    return found | {'coordinator': f'127.0.0.1:{port}'}
  if launcher:
    return found | {'coordinator': f'{launcher[1]}:{port}' if launcher[1] else f'[{launcher[2]}]:{port}'}
  return found


def _tpu(environment: Mapping[str, str]) -> dict[str, Any]:
  """Of a TPU slice on Kubernetes, or of several; on TPU machines `launch/tpu_vm.sh` asks them for the same."""
  if not {'TPU_WORKER_ID', 'TPU_WORKER_HOSTNAMES'} <= set(environment):
    return {}
  hosts = environment['TPU_WORKER_HOSTNAMES'].split(',')
  slices, number = _number(environment, 'MEGASCALE_NUM_SLICES', 1), _number(environment, 'MEGASCALE_SLICE_ID', 0)
  first = environment.get('MEGASCALE_COORDINATOR_ADDRESS', hosts[0]).partition(':')[0]
  return {
    'coordinator': f'{first}:{DEFAULT_PORT}',
    'num_processes': len(hosts) * slices,
    'process_id': len(hosts) * number + _number(environment, 'TPU_WORKER_ID'),
    'source': 'the TPU slice',
  }


def _own_device(environment: Mapping[str, str], local_id: int, here: int) -> tuple[int, ...] | None:
  """The one GPU of a process that has others beside it, unless the launcher shows it one alone."""
  shown = environment.get('CUDA_VISIBLE_DEVICES', '')
  alone = bool(shown) and ',' not in shown
  return None if here < 2 or alone else (local_id,)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
  """A variable as a number. Raises LauncherError if it is none."""
  text = environment.get(name, '' if default is None else str(default))
  if not text.isdecimal():
    raise LauncherError(f'the variable {name} is {text!r}, and should be a number; {WAY_OUT}')
  return int(text)
