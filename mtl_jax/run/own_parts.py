"""The user's own Python files that a run is made of: kept with it, and run from there once the user has allowed them.

A file is told by its content. What a user trained with, or has allowed, is noted in that user's cache and not asked for
again; a workdir that came from elsewhere names files that are not noted there.
"""

import hashlib
import logging
from pathlib import Path
from typing import TypedDict

from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import parts
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.platform import address, atomic_write, json_file

FOLDER, LIST = 'parts', 'parts.json'
NO_PART = 'take the workdir as `mtl-jax train` left it'

log = logging.getLogger('mtl_jax')


class Kept(TypedDict):
  """A file in the workdir: its name in the folder of parts, and its digest."""

  name: str
  sha256: str


def named(config: ConfigDict) -> dict[str, str]:
  """The fields that name a file of the user's own, with their values `FILE.py:NAME`."""
  flat = configs.flat(config.to_dict())
  return {field: flat[field] for field in flat if configs.is_part(field) and parts.own_file(flat[field])}


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
  """The configuration whose files are found from any folder."""
  return _renamed(config, {field: f'{_file(value).resolve()}:{_name(value)}' for field, value in named(config).items()})


def keep(workdir: Path, config: ConfigDict) -> None:
  """Copies the files of the configuration into the workdir, and notes that this user runs them."""
  kept: dict[str, Kept] = {}
  for value in named(config).values():
    content = _file(value).read_bytes()
    digest = _digest(content)
    kept[str(_file(value))] = {'name': f'{digest[:8]}-{_file(value).name}', 'sha256': digest}
    (workdir / FOLDER).mkdir(exist_ok=True)
    atomic_write.write(workdir / FOLDER / kept[str(_file(value))]['name'], content, root=workdir)
    _allow(digest)
  if kept:
    atomic_write.write(workdir / LIST, json_file.text(kept))


def changed(workdir: Path, config: ConfigDict) -> list[str]:
  """The fields whose file is another one than the run began with, in words."""
  if not (workdir / LIST).exists():
    return []
  kept = json_file.read(workdir / LIST, dict[str, Kept], advice=NO_PART)
  found = []
  for field, value in named(config).items():
    began = kept.get(str(_file(value)))
    if began is not None and _digest(_file(value).read_bytes()) != began['sha256']:
      found.append(f'config.{field}: {_file(value)} has changed')
  return found


def located(workdir: Path, config: ConfigDict, *, allow_code: bool) -> ConfigDict:
  """The configuration of a run whose own parts are those kept in its workdir.

  Args:
    workdir: of the run.
    config: that it began with.
    allow_code: run files that this user has not run before.

  Raises:
    CheckpointError: for a file that is not allowed, is missing, or is not as it was kept.
  """
  fields = named(config)
  kept = json_file.read(workdir / LIST, dict[str, Kept], advice=NO_PART) if fields else {}
  found = {}
  for field, value in fields.items():
    if (one := kept.get(str(_file(value)))) is None:
      raise CheckpointError(f'{workdir / LIST} does not name config.{field}; {NO_PART}')
    path = workdir / FOLDER / Path(one['name']).name
    content = path.read_bytes() if path.is_file() else b''
    if _digest(content) != one['sha256']:
      raise CheckpointError(f'{path} is missing or has changed; {NO_PART}')
    if not allow_code and not _allowed(one['sha256']):
      raise CheckpointError(
        f'{workdir} was trained with code of its own, and would run {path}; read that file, then allow it with '
        '--allow_code'
      )
    _allow(one['sha256'])
    found[field] = f'{path}:{_name(value)}'
  return _renamed(config, found)


def _renamed(config: ConfigDict, values: dict[str, str]) -> ConfigDict:
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for field, value in values.items():
      configs.set_field(config, field, value)
  return config


def _file(value: str) -> Path:
  path = parts.own_file(value)
  assert path is not None  # `named` gives no others.
  if not path.is_file():
    raise ConfigError(f'no file {path}, which {value} names')
  return path


def _name(value: str) -> str:
  return value.rpartition(':')[2]


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _allowed(digest: str) -> bool:
  return (address.cache() / 'allowed' / digest).exists()


def _allow(digest: str) -> None:
  """Notes a file's digest; where the cache cannot be written it will be asked for again."""
  try:
    (address.cache() / 'allowed').mkdir(parents=True, exist_ok=True)
    (address.cache() / 'allowed' / digest).touch()
  except OSError as error:
    log.warning('warning: %s: cannot note what is allowed: %s', address.cache(), error.strerror)
