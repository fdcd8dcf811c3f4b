"""Starts the devices; what fails there, or for want of memory, becomes a one-line error."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mtl_jax.errors import UserError, one_line


def start_error() -> str:
  """Says why JAX cannot start its devices, and what to do; empty where it can."""
  import jax

  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    said = one_line(error)[:200] or 'no such device is here'
    asked = os.environ.get('JAX_PLATFORMS')
    where = f'JAX_PLATFORMS={asked}' if asked else 'JAX'
    return f"{where}: no device can be started ({said}); unset JAX_PLATFORMS, or pip install 'mtl_jax[cuda]' or [tpu]"
  return ''


@contextmanager
def wrap_errors() -> Iterator[None]:
  """Turns a lack of memory, of the host or of a device, or of devices themselves, into a UserError."""
  try:
    yield
  except (AssertionError, MemoryError, RuntimeError) as error:  # XLA's are RuntimeErrors.
    if isinstance(error, MemoryError) or re.search('out of memory|RESOURCE_EXHAUSTED', str(error), re.I):
      raise UserError(
        f'out of memory: {one_line(error)[:200]}; lower config.train.batch_size, raise config.train.accumulate, or '
        'take smaller images or a narrower network'
      ) from error
    if 'jax' in sys.modules and (said := start_error()):
      raise UserError(said) from error
    raise
