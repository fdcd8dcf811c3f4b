"""Digests of every file of a checkpoint, written when its save completes, and compared before it is used.

Orbax makes a checkpoint complete or absent, but does not notice a file that was cut short or changed afterwards.
"""

import asyncio
import hashlib
import json
import logging
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mtl_jax.errors import CheckpointError, one_line
from mtl_jax.platform import address

log = logging.getLogger('mtl_jax')

FILE = 'digests.json'  # In the checkpoint's folder: {file: SHA-256 in hex}.
DAMAGED = '.damaged'  # A damaged checkpoint's folder has this after its step, and is not looked at again.


class Digested(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """The folder that Orbax writes a checkpoint into; once renamed, it also gets its digests, and is complete."""

  async def finalize(self) -> None:
    await super().finalize()
    final = Path(self.get_final())
    if final.name.isdigit():  # Not the folders inside a checkpoint.
      await asyncio.to_thread(write, final)


def write(checkpoint: Path) -> None:
  """Writes the digests of a checkpoint's files, whole or not at all."""
  partial = checkpoint.with_name(f'{checkpoint.name}.{FILE}.partial')
  partial.write_text(json.dumps(_digests(checkpoint), indent=0))
  partial.replace(checkpoint / FILE)


def damage(checkpoint: Path) -> str | None:
  """Describes the damage of a checkpoint on disk, in a few words; None if it is as it was saved.

  One without digests is taken at Orbax's word: the process was killed right after it had been renamed, or an earlier
  version saved it.
  """
  try:
    expected = json.loads((checkpoint / FILE).read_text())
    found = _digests(checkpoint)
  except FileNotFoundError:
    return None if (checkpoint / 'commit_success.txt').exists() else 'its save was cut short'
  except (OSError, ValueError) as error:
    return f'{FILE} cannot be read: {one_line(error)}'
  if missing := sorted(expected.keys() - found.keys()):
    return f'{missing[0]} is missing'
  changed = sorted(name for name in found if found[name] != expected.get(name))
  return f'{changed[0]} is not as it was saved' if changed else None


def incomplete(checkpoint: Path) -> bool:
  """True if a file that was saved is missing, as after an interrupted removal."""
  try:
    return any(not (checkpoint / name).exists() for name in json.loads((checkpoint / FILE).read_text()))
  except FileNotFoundError:
    return not (checkpoint / 'commit_success.txt').exists()
  except (OSError, ValueError):
    return False


def _digests(checkpoint: Path) -> dict[str, str]:
  digests = {}
  for path in sorted(checkpoint.rglob('*')):
    name = path.relative_to(checkpoint).as_posix()
    if path.is_file() and name != FILE:
      with path.open('rb') as file:
        digests[name] = hashlib.file_digest(file, 'sha256').hexdigest()
  return digests


def set_aside_damaged(directory: Path) -> None:
  """Leaves only sound checkpoints in a folder, saying what it passes over; of a run that holds its workdir alone.

  Saves and removals of older checkpoints that were cut short are cleared away; damaged checkpoints are renamed, for
  they may be worth a look.

  Raises:
    CheckpointError: if there are checkpoints and all are damaged.
  """
  if jax.process_index() == 0 and directory.is_dir():
    _set_aside(directory) if address.is_local(directory) else _clear_away(directory)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('checkpoints looked at')


def _clear_away(directory: Path) -> None:
  """Deletes what no save has completed in a bucket, or what a removal that was cut short has left."""
  for path in list(directory.iterdir()):
    if not (path / 'commit_success.txt').exists():
      log.warning('warning: %s is a save or a removal that was cut short; it was deleted', path)
      path.rmtree()  # pyright: ignore[reportAttributeAccessIssue]


def _set_aside(directory: Path) -> None:
  steps = sorted((path for path in directory.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
  wrong = {path: found for path in steps if (found := damage(path))}
  good = [path for path in steps if path not in wrong]
  unfinished = [path for path in directory.iterdir() if not path.name.isdigit() and path.suffix != DAMAGED]
  use = f'step {good[-1].name} is the last complete one' if good else 'none is complete, the run begins anew'
  if wrong and not good:
    every = '; '.join(f'{path.name}: {found}' for path, found in wrong.items())
    raise CheckpointError(f'{directory}: every checkpoint is damaged ({every}); delete the folder to begin anew')
  for path in unfinished:
    log.warning('warning: %s is a save that was cut short; it was deleted, and %s', path, use)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  for path, found in wrong.items():
    if good and int(path.name) < int(good[-1].name) and incomplete(path):
      log.warning('warning: the removal of %s had been cut short; it is done now', path)
      shutil.rmtree(path)
      continue
    aside = path.with_name(path.name + DAMAGED)
    log.warning('warning: %s: %s; it is now %s, and %s', path, found, aside.name, use)
    if aside.exists():
      shutil.rmtree(aside)
    path.replace(aside)
