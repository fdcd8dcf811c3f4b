"""Huge pages for the memory of programs on a CPU, without which a step takes a tenth to a quarter longer.

A step takes hundreds of MiB for what it keeps between its operations; in pages of 4 KiB the processor spends much of
its time on their addresses. Where Linux leaves huge pages to programs that ask (`madvise`, the default of most
distributions), glibc asks if `GLIBC_TUNABLES` says so when the process starts.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

SETTING = Path('/sys/kernel/mm/transparent_hugepage/enabled')
NAME, TUNABLE = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'
ACCELERATORS = ('/dev/nvidia0', '/dev/accel0')


def wanted(environment: Mapping[str, str] = os.environ, setting: Path = SETTING) -> bool:
  """True where no accelerator is here, huge pages are available on request, and the user has set no tunables."""
  try:
    text = setting.read_text()
  except OSError:
    return False
  return '[madvise]' in text and NAME not in environment and not any(map(os.path.exists, ACCELERATORS))


def restart_if_wanted() -> None:
  """Starts this process again in its place, with huge pages, where they are wanted; it keeps its process id."""
  if wanted():
    os.execve(sys.executable, sys.orig_argv, os.environ | {NAME: TUNABLE})
