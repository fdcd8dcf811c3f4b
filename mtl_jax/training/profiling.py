"""Traces some steps of a run with JAX's profiler, for TensorBoard or xprof."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from mtl_jax.platform import address, atomic_write
from mtl_jax.training.building import Run

log = logging.getLogger('mtl_jax')

FOLDER = 'profile'  # In the workdir.
FIRST, NUM = 3, 5  # The dispatches that are traced; by the third, both of a run's programs have most often compiled.


@contextmanager
def tracing(directory: Path) -> Iterator[Callable[[Run, int], Callable[..., Any]]]:
  """Yields a `wrap_steps` for `loop.train` that traces dispatches 3 to 7 of the run, or as many as there are."""
  with tempfile.TemporaryDirectory() as temporary:
    local = address.is_local(directory)
    folder = directory / FOLDER if local else Path(temporary)
    calls, open_now = 0, False

    def close() -> None:
      nonlocal open_now
      if open_now:
        open_now = False
        jax.profiler.stop_trace()
        if not local:
          atomic_write.write_all(folder, directory / FOLDER)
        log.info('profile: %d dispatches are in %s, for xprof or TensorBoard', calls - FIRST + 1, directory / FOLDER)

    def wrap_steps(run: Run, step: int) -> Callable[..., Any]:
      del step

      def steps(*arguments: Any) -> Any:
        nonlocal calls, open_now
        calls += 1
        if calls == FIRST:
          jax.profiler.start_trace(str(folder))
          open_now = True
        found = run.compiled_steps(*arguments)
        if calls == FIRST + NUM - 1:
          jax.block_until_ready(found)
          close()
        return found

      return steps

    try:
      yield wrap_steps
    finally:
      close()
    if calls < FIRST:
      log.warning('warning: profile: a start of %d dispatches is too short for a trace', calls)
