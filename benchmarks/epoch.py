"""Wall time of one epoch of 162,770 images, CelebA's train split, resident on the devices; of 15; and of the start.

    python benchmarks/epoch.py [--json benchmarks/results/epoch.json]

Images are random bytes made on the devices. On a CPU, where an epoch takes minutes, some steps are timed and the rest
extrapolated; rows say so. The start is a process of its own, from its beginning to the end of its first step, with the
compilation cache empty and then filled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import absent  # noqa: F401
import jax
import numpy as np
from reporting import Row, parser, report, row
from running import Stepper, make_run, make_split, random_on_devices
from workload import Workload

from mtl_jax.data.input.pipeline import Split

NUM_IMAGES, EPOCHS = 162_770, 15
ON_CPU = Workload('resnet18', 64, 64, 'float32', width=32)
ON_ACCELERATOR = Workload('resnet18', 128, 1024, 'bfloat16')
QUICK = Workload('convnet', 8, 8, 'float32', width=4)
ON_CPU_IMAGES, ON_CPU_STEPS = 4_096, 40
TARGETS = {'epoch': 3.0, 'start': 40.0}  # Seconds, on an accelerator; the start anywhere.


def main() -> None:
  options = flags().parse_args()
  rows = [] if options.quick or options.start else starts()  # First: this process would hold the device's memory.
  on_cpu = jax.default_backend() == 'cpu'
  workload = QUICK if options.quick else ON_CPU if on_cpu else ON_ACCELERATOR
  if options.start:
    Stepper(make_run(workload, make_split(workload, 2 * workload.batch), mode='resident')).advance(1)
    return
  num_images = 256 if options.quick else ON_CPU_IMAGES if on_cpu else NUM_IMAGES
  run = make_run(workload, described(workload, num_images), mode='resident')
  source = random_on_devices(workload, run)
  stepper = Stepper(run, source=source)
  stepper.advance(1)  # Compiles.
  steps = 4 if options.quick else ON_CPU_STEPS if on_cpu else -(-NUM_IMAGES // workload.batch)
  report([*rows, *epochs(workload, stepper, steps, whole=not (on_cpu or options.quick))], options)


def flags() -> argparse.ArgumentParser:
  made = parser('Wall time of an epoch, of 15, and of the start of a run.')
  made.add_argument('--start', action='store_true', help='only start, take a step and end: what the start measures')
  return made


def described(workload: Workload, num_images: int) -> Split:
  """A split of which nothing is in the host's memory: rows take its place on the devices."""

  def nowhere(dtype: Any, *shape: int) -> Any:
    return np.broadcast_to(np.zeros((), dtype), (num_images, *shape))

  return Split(
    images=nowhere(np.uint8, workload.size, workload.size, 3),
    labels={task.name: nowhere(np.float32, len(task.labels)) for task in workload.tasks},
    mask={task.name: nowhere(bool, len(task.labels)) for task in workload.tasks},
    example_id=np.arange(num_images, dtype=np.int32),
    source_size=nowhere(np.int32, 2),
  )


def starts(*flags: str) -> list[Row]:
  """Seconds of a process that takes one step, without and with what the first one compiled; `flags` are its."""
  rows = []
  with tempfile.TemporaryDirectory() as cache:
    environment = os.environ | {
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    for name, target in (('an empty', None), ('a filled', TARGETS['start'])):
      began = time.perf_counter()
      subprocess.run([sys.executable, str(Path(__file__)), '--start', *flags], env=environment, check=True)
      secs = time.perf_counter() - began
      rows.append(row(f'from start to first step, {name} compilation cache', secs, 's', target=target))
  return rows


def epochs(workload: Workload, stepper: Stepper, steps: int, *, whole: bool) -> list[Row]:
  """Seconds of an epoch and of 15."""
  dispatches = -(-steps // stepper.run.steps_per_dispatch)
  one = secs_an_epoch(stepper, dispatches)
  fifteen = secs_an_epoch(stepper, EPOCHS * dispatches) if whole else one
  stepper.check()
  how = '' if whole else f', from {steps} steps'
  epoch = row(
    f'an epoch of {NUM_IMAGES:,} images, {workload.title}{how}', one, 's', target=TARGETS['epoch'] if whole else None
  )
  return [
    epoch,
    row(f'the same, {EPOCHS} epochs{how}', EPOCHS * fifteen, 's', to=epoch),
    row('training', NUM_IMAGES / fifteen, 'images/s'),
  ]


def secs_an_epoch(stepper: Stepper, dispatches: int) -> float:
  """Seconds for 162,770 images, from those that were taken."""
  began = time.perf_counter()
  images = stepper.advance(dispatches)
  return (time.perf_counter() - began) * NUM_IMAGES / images


if __name__ == '__main__':
  main()
