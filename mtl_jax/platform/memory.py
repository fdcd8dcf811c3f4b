"""Available and total memory of a device and of the host, in bytes."""

import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils


def available_bytes() -> int:
  """Bytes of a device available to arrays; for a CPU device its part of the host's free memory; 0 if unknown.

  On a CPU this is another number every time.
  """
  devices = jax.local_devices()
  if devices[0].platform == 'cpu':
    return host_available_bytes() // len(devices)
  return min(int((device.memory_stats() or {}).get('bytes_limit', 0)) for device in devices)


def total_bytes() -> int:
  """Total memory of a device of this process in bytes, used or not; 0 if unknown."""
  devices = jax.local_devices()
  return host_total_bytes() // len(devices) if devices[0].platform == 'cpu' else available_bytes()


def host_available_bytes() -> int:
  """Bytes of the host's memory that are available without swapping; 0 if unknown."""
  try:
    lines = Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return 0
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')), 0)


def host_total_bytes() -> int:
  """The host's memory."""
  return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def least_of_processes(num: int) -> int:
  """The minimum over processes of a number of bytes, in whole MiB, so that all make the same choice.

  All processes call this together.
  """
  if jax.process_count() == 1:
    return num
  return int(multihost_utils.process_allgather(np.int32(num >> 20)).min()) << 20  # Bytes would be cut to 32 bits.
