"""Writes a file atomically; a symbolic link in its place is replaced, never followed."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from mtl_jax.errors import CheckpointError
from mtl_jax.platform import address


def write(path: Path, content: str | bytes, *, root: Path | None = None) -> None:
  """Writes the file under a name that nobody can foresee, and renames it. Objects of buckets are whole by themselves.

  Args:
    path: of the file.
    content: of it; text becomes UTF-8.
    root: the folder above it that must be there, by default its own; folders between are made if need be.

  Raises:
    CheckpointError: where `root` has vanished, or a folder between is a symbolic link.
    OSError: where the file cannot be written.
  """
  content = content.encode() if isinstance(content, str) else content
  if not address.is_local(path):
    with address.wrap_errors(str(path), 'written'):
      path.write_bytes(content)
    return
  _make_folders(path.parent, root or path.parent)
  partial = path.with_name(f'.{path.name[:100]}.{secrets.token_hex(8)}.partial')
  try:
    with partial.open('xb') as file:
      file.write(content)
    partial.replace(path)
  except BaseException:
    with suppress(OSError):
      partial.unlink()
    raise


def write_all(folder: Path, place: Path) -> None:
  """Writes each file of a local folder to its name in another place, which may be in a bucket."""
  for path in folder.rglob('*'):
    if path.is_file():
      write(place / path.relative_to(folder), path.read_bytes(), root=place)


def _make_folders(folder: Path, root: Path) -> None:
  if not root.is_dir():
    raise CheckpointError(f'{root} has vanished; bring it back, and the same command goes on')
  for place in reversed([folder, *folder.parents][: len(folder.relative_to(root).parts)]):
    refuse_link(place)
    place.mkdir(exist_ok=True)


def refuse_link(place: Path) -> None:
  """Raises CheckpointError for a symbolic link, which may lead anywhere, such as to files of the user's."""
  if os.path.islink(place):  # noqa: PTH114  Also of an address, where there are none.
    raise CheckpointError(f'{place} is a symbolic link; put a folder there, or make the whole workdir the link')
