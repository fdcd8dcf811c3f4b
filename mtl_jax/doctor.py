"""Reports what this machine has, what would run where, and what is missing, with the commands that install it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from mtl_jax import config
from mtl_jax.models.multitask import compute_dtype
from mtl_jax.platform import devices, huge_pages, memory, xla

PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'ml_collections', 'clu', 'tensorflow-datasets', 'numpy',
  'simplejpeg',
)  # fmt: skip
BATCH_PER_ACCELERATOR = 256  # A GPU or TPU core is well filled by this many images of 128x128.
BATCH_ON_CPU = 64


def describe() -> str:
  """Returns the report as text."""
  if problem := devices.start_error():
    return '\n'.join([*_machine(), '', *_versions(), '', problem])
  lines = [*_machine(), *_devices(), '', *_versions(), '', *_choices(), '', *(_advice() or ['nothing is missing'])]
  return '\n'.join(lines)


def _machine() -> Iterator[str]:
  yield f'host        {platform.platform()}, Python {platform.python_version()}'
  yield f'cores       {os.cpu_count()} ({len(os.sched_getaffinity(0))} usable)'
  total, available = (num / 2**30 for num in (memory.host_total_bytes(), memory.host_available_bytes()))
  yield f'memory      {total:.1f} GiB, {available:.1f} GiB available'


def _devices() -> Iterator[str]:
  for device in jax.local_devices():
    stats = device.memory_stats() or {}
    limit = f', {stats["bytes_limit"] / 2**30:.1f} GiB for arrays' if 'bytes_limit' in stats else ''
    yield f'device {device.id:<4} {device.platform}: {device.device_kind}{limit}'


def _versions() -> Iterator[str]:
  for name in PACKAGES:
    yield f'{name:<20} {importlib.metadata.version(name)}'


def _choices() -> Iterator[str]:
  backend, count = jax.default_backend(), jax.device_count()
  on_cpu = backend == 'cpu'
  yield f'training runs on     {count} {backend} device(s), data split over all of them'
  yield f'XLA on a CPU         {xla.describe()}'
  yield f'computation in       {compute_dtype("auto").__name__} (config.model.dtype=auto)'
  steps = '1, or 4 in runs of 1,000 steps or more' if on_cpu else '8'
  yield f'steps a dispatch     {steps} (config.train.steps_per_dispatch=0; more over kept features)'
  yield f'input path           {_input_path()}'
  batch = BATCH_ON_CPU if on_cpu else BATCH_PER_ACCELERATOR * count
  yield f'batch to start with  {batch} (--config.train.batch_size={batch})'


def _input_path() -> str:
  """The rule by which `data.mode=auto` chooses, with this machine's figures."""
  share, available = config.get_config().data.resident_share, memory.available_bytes()
  if not available:
    return 'streamed: the devices do not say how much memory they have (config.data.mode=auto)'
  return (
    f"resident if a device's part of the train split fits in {share:g} x {available / 1e9:.1f} GB, else streamed "
    '(config.data.mode=auto)'
  )


def _advice() -> list[str]:
  """A line for each thing that is missing, with the command that mends it."""
  advice = []
  backend = jax.default_backend()
  has_gpu = bool(shutil.which('nvidia-smi')) or Path('/dev/nvidia0').exists()
  has_tpu = Path('/dev/accel0').exists() or 'TPU_NAME' in os.environ
  if has_gpu and backend != 'gpu':
    advice.append("an NVIDIA GPU is here but JAX does not use it:  pip install 'mtl_jax[cuda]'")
  elif has_tpu and backend != 'tpu':
    advice.append("a TPU is here but JAX does not use it:  pip install 'mtl_jax[tpu]'")
  elif backend == 'cpu':
    advice.append("no GPU or TPU is here; on a host with one:  pip install 'mtl_jax[cuda]'  or  'mtl_jax[tpu]'")
    if huge_pages.wanted():
      advice.append(
        'mtl-jax trains with huge pages here; for a program of your own:  '
        f'export {huge_pages.NAME}={huge_pages.TUNABLE}'
      )
  if importlib.util.find_spec('tensorflow') is None:
    advice.append("TensorFlow is not installed; only TFDS sets in tfrecord files need it:  pip install 'mtl_jax[tf]'")
  free = shutil.disk_usage(Path.cwd()).free / 2**30
  if free < 10:
    advice.append(f'{free:.1f} GiB of disk are free here; CelebA at 128x128 takes 10: choose --out on another disk')
  return advice
