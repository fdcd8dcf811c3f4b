"""Saves the user's own Python files with a run, and runs them from there once the user has allowed them.

A file is identified by its content. What a user trained with, or has allowed, is noted in that user's cache and not
asked for again; a workdir that came from elsewhere names files that are not noted there.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import parts
from mtl_jax.errors import CheckpointError
from mtl_jax.platform import address, atomic_write, json_file

FOLDER, LIST = 'parts', 'parts.json'
NO_PART = 'take the workdir as `mtl-jax train` left it'

log = logging.getLogger('mtl_jax')

_NOTED: set[str] = set()  # Digests allowed in this process.


class SavedPart(TypedDict):
  """A file in the workdir: its name in the folder of parts, and its digest."""

  name: str
  sha256: str


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
  """Makes the paths of the user's own files absolute."""
  files = {field: (path.resolve(), part) for field, (path, part) in _files(config).items()}
  return _renamed(config, files)


def keep(workdir: Path, config: ConfigDict) -> None:
  """Copies the files of the configuration into the workdir, and notes that this user runs them."""
  kept: dict[str, SavedPart] = {}
  for path, _ in _files(config).values():
    content = path.read_bytes()
    digest = _digest(content)
    kept[str(path)] = one = SavedPart(name=f'{digest[:8]}-{path.name}', sha256=digest)
    atomic_write.write(workdir / FOLDER / one['name'], content, root=workdir)
    _allow(digest)
  for module in _modules(config):
    _allow(_digest(module.encode()))
  if kept:
    atomic_write.write(workdir / LIST, json.dumps(kept, indent=2) + '\n')


def changed(workdir: Path, config: ConfigDict) -> list[str]:
  """Lists the fields whose file has changed since the run began."""
  if not (workdir / LIST).exists():
    return []
  kept = json_file.read(workdir / LIST, dict[str, SavedPart], advice=NO_PART)
  return [
    f'config.{field}: {path} has changed'
    for field, (path, _) in _files(config).items()
    if str(path) in kept and _digest(path.read_bytes()) != kept[str(path)]['sha256']
  ]


def located(workdir: Path, config: ConfigDict) -> ConfigDict:
  """Points a run's configuration to the user's own files as they are saved in its workdir.

  Raises:
    CheckpointError: for code that this user has neither run nor allowed, or a file that is missing or not as it was
      kept.
  """
  found, code = _kept(workdir, config)
  for digest, what in code.items():
    if not _allowed(digest):
      raise CheckpointError(
        f'{workdir} was trained with code of its own, and would run {what}; read that, then allow it with --allow_code'
      )
  return _renamed(config, found)


def allow(workdir: Path) -> None:
  """Notes that this user runs what the run in the workdir is made of."""
  config = configs.from_json(json_file.read(workdir / 'config.json', json_file.Fields, advice=NO_PART))
  for digest in _kept(workdir, config)[1]:
    _allow(digest)


def _kept(workdir: Path, config: ConfigDict) -> tuple[dict[str, tuple[Path, str]], dict[str, str]]:
  """The kept file of each field that names one, with the name in it; and all code of the run: digests, in words."""
  files = _files(config)
  kept = json_file.read(workdir / LIST, dict[str, SavedPart], advice=NO_PART) if files else {}
  found: dict[str, tuple[Path, str]] = {}
  code = {_digest(module.encode()): f'the module of {module}' for module in _modules(config)}
  for field, (original, part) in files.items():
    if (one := kept.get(str(original))) is None:
      raise CheckpointError(f'{workdir / LIST} does not name config.{field}; {NO_PART}')
    path = workdir / FOLDER / Path(one['name']).name
    if not path.is_file() or _digest(path.read_bytes()) != one['sha256']:
      raise CheckpointError(f'{path} is missing or has changed; {NO_PART}')
    found[field], code[one['sha256']] = (path, part), str(path)
  return found, code


def _files(config: ConfigDict) -> dict[str, tuple[Path, str]]:
  """The fields that name a file: the file, and the name in it."""
  own = parts.own(config)
  return {field: (path, own[field].rpartition(':')[2]) for field in own if (path := parts.own_file(own[field]))}


def _modules(config: ConfigDict) -> list[str]:
  """The values that name an installed module's part."""
  return [value for value in parts.own(config).values() if not parts.own_file(value)]


def _renamed(config: ConfigDict, places: Mapping[str, tuple[Path, str]]) -> ConfigDict:
  return parts.with_own(config, {field: f'{path}:{part}' for field, (path, part) in places.items()})


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _allowed(digest: str) -> bool:
  return digest in _NOTED or (address.cache() / 'allowed' / digest).exists()


def _allow(digest: str) -> None:
  """Notes a file's digest; where the cache cannot be written it will be asked for again in the next process."""
  _NOTED.add(digest)
  try:
    (address.cache() / 'allowed').mkdir(parents=True, exist_ok=True)
    (address.cache() / 'allowed' / digest).touch()
  except OSError as error:
    log.warning('warning: %s: cannot note what is allowed: %s', address.cache(), error.strerror)
