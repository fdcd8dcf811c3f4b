"""Writes .npz files atomically and reads them; a damaged one is a one-line error."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.errors import CheckpointError, one_line
from mtl_jax.platform import address, atomic_write


def write(path: Path, arrays: Mapping[str, Any], *, root: Path | None = None) -> None:
  """Writes the file; see `atomic_write` for `root`."""
  content = io.BytesIO()
  np.savez(content, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
  atomic_write.write(path, content.getvalue(), root=root)


def read(path: Path, *, names: Sequence[str], advice: str, only: bool = False) -> dict[str, np.ndarray]:
  """The arrays of the file.

  Args:
    path: what `write` wrote.
    names: of arrays that it must have.
    advice: what to do with one that cannot be read.
    only: read those alone, and not all there are.

  Raises:
    CheckpointError: for a file that is not as it was written.
  """
  try:
    with np.load(path if address.is_local(path) else io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      found = {name: file[name] for name in (names if only else file.files)}
      return {name: found[name] for name in names} | found
  except Exception as error:  # A zip cut short raises one of half a dozen kinds.
    raise CheckpointError(f'{path}: cannot be read ({one_line(error)}); {advice}') from error
