"""Writes digests of a checkpoint's files when its save completes, and compares them before it is used.

Orbax makes a checkpoint complete or absent, but does not notice a file that was cut short or changed afterwards.
"""

import asyncio
import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mtl_jax.errors import CheckpointError
from mtl_jax.platform import address, atomic_write, json_file

log = logging.getLogger('mtl_jax')

FILE = 'digests.json'  # In the checkpoint's folder: {file: SHA-256 in hex}.
OURS = (FILE, 'commit_success.txt', 'state', 'clock')  # Of which a checkpoint has all, one half removed some.
DAMAGED = '.damaged'  # A damaged checkpoint's folder has this after its step, and is not looked at again.
UNFINISHED = re.compile(
  r'[0-9]+\.(orbax-checkpoint-tmp.*|digests\.json\.partial)'
)  # Names of saves that were cut short.


class Digested(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """The folder that Orbax writes a checkpoint into; once renamed, it also gets its digests, and is complete."""

  @classmethod
  async def validate_final(cls, final_path: Any) -> None:
    await super().validate_final(final_path)
    if is_step(final_path.name) and not is_checkpoint(Path(final_path)):
      raise ocp.path.atomicity.ValidationError(f'{final_path} is no checkpoint')

  async def finalize(self) -> None:
    await super().finalize()
    final = Path(self.get_final())
    if is_step(final.name):  # Not the folders inside a checkpoint.
      await asyncio.to_thread(write, final)


def is_step(name: str) -> bool:
  """True for the names that Orbax gives the folders of checkpoints."""
  return name.isascii() and name.isdecimal() and name == str(int(name))


def is_checkpoint(path: Path) -> bool:
  """True for a checkpoint, or what is left of one; False for somebody's folder, though a number be its name."""
  return is_step(path.name) and any((path / name).exists() for name in OURS)


def write(checkpoint: Path) -> None:
  """Writes the digests of a checkpoint's files, whole or not at all."""
  atomic_write.write(checkpoint / FILE, json.dumps(_digests(checkpoint), indent=0))


def damage(checkpoint: Path) -> str | None:
  """Describes the damage of a checkpoint on disk, in a few words; None if it is as it was saved.

  One without digests is taken at Orbax's word, and a line says so: the process was killed right after it had been
  renamed, an earlier version saved it, or somebody removed them.
  """
  try:
    expected = _expected(checkpoint)
    found = _digests(checkpoint)
  except (CheckpointError, OSError) as error:
    return str(error)
  if expected is None:
    if not _is_committed(checkpoint):
      return 'its save was cut short'
    log.warning('warning: %s has no %s: damage to it cannot be noticed', checkpoint, FILE)
    return None
  if missing := sorted(expected.keys() - found.keys()):
    return f'{missing[0]} is missing'
  changed = sorted(name for name in found if found[name] != expected.get(name))
  return f'{changed[0]} is not as it was saved' if changed else None


def incomplete(checkpoint: Path) -> bool:
  """True if a file that was saved is missing, as after an interrupted removal."""
  try:
    expected = _expected(checkpoint)
  except CheckpointError:
    return False
  return (
    not _is_committed(checkpoint) if expected is None else any(not (checkpoint / name).exists() for name in expected)
  )


def _is_committed(checkpoint: Path) -> bool:
  return (checkpoint / 'commit_success.txt').exists()


def _expected(checkpoint: Path) -> dict[str, str] | None:
  """The digests that were written; None where there are none. CheckpointError for a file that does not hold such."""
  path = checkpoint / FILE
  return json_file.read(path, dict[str, str], advice='take another step') if path.exists() else None


def _digests(checkpoint: Path) -> dict[str, str]:
  digests = {}
  for path in sorted(checkpoint.rglob('*')):
    name = path.relative_to(checkpoint).as_posix()
    if path.is_file() and name != FILE and path.suffix != '.partial':
      with path.open('rb') as file:
        digests[name] = hashlib.file_digest(file, 'sha256').hexdigest()
  return digests


def set_aside_damaged(directory: Path) -> None:
  """Renames damaged checkpoints in a folder and logs them; only for a run that holds its workdir.

  Saves and removals of older checkpoints that were cut short are cleared away; damaged checkpoints are renamed, for
  they may be worth a look. What has a name that neither Orbax nor this package gives stays.

  Raises:
    CheckpointError: if there are checkpoints and all are damaged, or one is a symbolic link.
  """
  if jax.process_index() == 0 and directory.is_dir():
    _set_aside(directory) if address.is_local(directory) else _clear_away(directory)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('checkpoints looked at')


def _clear_away(directory: Path) -> None:
  """Deletes what no save has completed in a bucket, or what a removal that was cut short has left."""
  for path in sorted(directory.iterdir()):
    if not is_checkpoint(path):
      log.warning('warning: %s is no checkpoint; it is left alone', path)
    elif not (path / 'commit_success.txt').exists():
      log.warning('warning: %s is a save or a removal that was cut short; it was deleted', path)
      path.rmtree()  # pyright: ignore[reportAttributeAccessIssue]


def _set_aside(directory: Path) -> None:
  paths = sorted(directory.iterdir())
  steps = sorted(filter(is_checkpoint, paths), key=lambda path: int(path.name))
  for path in steps:
    atomic_write.refuse_link(path)
  wrong = {path: found for path in steps if (found := damage(path))}
  good = [path for path in steps if path not in wrong]
  use = f'step {good[-1].name} is the last complete one' if good else 'none is complete, the run begins anew'
  if wrong and not good:
    every = '; '.join(f'{path.name}: {found}' for path, found in wrong.items())
    raise CheckpointError(f'{directory}: every checkpoint is damaged ({every}); delete the folder to begin anew')
  for path in paths:
    if UNFINISHED.fullmatch(path.name):
      log.warning('warning: %s is a save that was cut short; it was deleted, and %s', path, use)
      _remove(path)
    elif path not in steps and path.suffix != DAMAGED:
      log.warning('warning: %s is no checkpoint; it is left alone', path)
  for path, found in wrong.items():
    if good and int(path.name) < int(good[-1].name) and incomplete(path):
      log.warning('warning: the removal of %s had been cut short; it is done now', path)
      _remove(path)
      continue
    aside = path.with_name(path.name + DAMAGED)
    log.warning('warning: %s: %s; it is now %s, and %s', path, found, aside.name, use)
    if aside.exists():
      _remove(aside)
    path.replace(aside)


def _remove(path: Path) -> None:
  """Removes a folder, or a file or link itself."""
  shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
