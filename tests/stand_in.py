"""A local folder that stands in for the cloud: gs://BUCKET/... is FOLDER/BUCKET/..., in this process or another.

Objects are whole or absent as there, and folders are not objects: one without a file does not exist.
"""

import contextlib
import os
import sys
from pathlib import Path

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

WRITTEN: list[str] = []  # Every object that this process has written or removed, in order.
FAILING: list[str] = []  # Objects whose name holds one of these cannot be written.
VARIABLE = 'MTL_JAX_TEST_BUCKETS'
# Registers the stand-in in another process and runs what follows there; then the command line.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import stand_in
stand_in.register()
{{before}}
from mtl_jax import cli
sys.exit(cli.main())
"""


class Buckets(DirFileSystem):
  protocol = 'gs'  # pyright: ignore
  cachable = False

  def __init__(self, **options):
    super().__init__(os.environ[VARIABLE], LocalFileSystem(auto_mkdir=True), **options)

  def pipe_file(self, path, value, mode='overwrite', **options):
    self._write(path)
    place = Path(self._join(path))
    if mode == 'create' and place.exists():
      raise FileExistsError(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f'{place.name}~')
    partial.write_bytes(value)
    partial.replace(place)

  def put_file(self, lpath, rpath, **options):
    self.pipe_file(rpath, Path(lpath).read_bytes())

  def rm_file(self, path, **options):
    self._write(f'-{path}')
    place = Path(self._join(path))
    place.unlink()
    with contextlib.suppress(OSError):
      for parent in place.parents:
        parent.rmdir()

  def _write(self, path: str) -> None:
    if any(part in path for part in FAILING):
      raise ConnectionError('no route to the cloud')
    WRITTEN.append(path)


def register(folder: Path | None = None) -> None:
  if folder:
    os.environ[VARIABLE] = str(folder)
  fsspec.register_implementation('gs', Buckets, clobber=True)


def program(*arguments: object, before: str = '') -> list[str]:
  """A command that runs the command line in a process that has the stand-in."""
  return [sys.executable, '-c', PROGRAM.format(before=before), *map(str, arguments)]
