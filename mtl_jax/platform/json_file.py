"""Reads JSON and validates it against a schema; errors name the file and the field."""

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from mtl_jax.errors import CheckpointError, UserError, one_line

Schema = TypeVar('Schema')

MAX_BYTES = 2**26  # No file of ours comes near; a larger one would fill the memory.
NOT_FINITE = re.compile(rb'(?<=: )(NaN|-?Infinity)(?=[,}])')  # As earlier versions wrote it into logs.
Fields = dict[str, Any]  # The schema of an object whose fields are checked elsewhere.


def read(path: Path, schema: type[Schema], *, advice: str, raises: type[UserError] = CheckpointError) -> Schema:
  """The content of a file, local or in a bucket.

  Args:
    path: of the file.
    schema: the type it must have, such as a TypedDict or a dataclass, with `msgspec.Meta` for ranges. Fields that it
      does not name are ignored. Numbers are finite: JSON has no NaN.
    advice: what to do where it is missing or wrong; ends the message.
    raises: the kind of error to raise.

  Raises:
    UserError: of that kind, for a file that is missing, cannot be read, is no JSON or is not of the schema.
  """
  if not path.exists():
    raise raises(f'{path} is missing; {advice}')
  return parse(_content(path, advice, raises), schema, place=path, advice=advice, raises=raises)


def parse(
  content: bytes | str,
  schema: type[Schema],
  *,
  place: Path | str,
  advice: str,
  raises: type[UserError] = CheckpointError,
) -> Schema:
  """Parses content that was read already, such as text inside another file; errors call it `place`."""
  return _one_line(lambda: msgspec.json.decode(content, type=schema), place, advice, raises)


def convert(
  value: Any, schema: type[Schema], *, place: Path | str, advice: str, raises: type[UserError] = CheckpointError
) -> Schema:
  """Converts a value that was decoded as `Fields` to another schema, for readers that check a field first."""
  return _one_line(lambda: msgspec.convert(value, schema), place, advice, raises)


def finite(value: Any) -> Any:
  """A value for JSON, which has no NaN and no infinity: None for these, and lists for arrays."""
  if isinstance(value, Mapping):
    return {key: finite(item) for key, item in value.items()}
  value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def lines(path: Path) -> list[Fields]:
  """The objects of a JSONL file, none where there is no file, NaN as None.

  Lines that hold none, as the last when a kill cut it short, are left out.
  """
  found = []
  for line in path.read_bytes().splitlines() if path.is_file() else []:
    with suppress(ValueError, RecursionError):
      found.append(msgspec.json.decode(NOT_FINITE.sub(b'null', line), type=Fields))
  return found


def _content(path: Path, advice: str, raises: type[UserError]) -> bytes:
  try:
    if not path.is_file():  # Opening a pipe would wait.
      raise OSError('it is no file')
    with path.open('rb') as file:
      content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
      raise OSError(f'it has more than {MAX_BYTES} bytes')
    return content
  except OSError as error:
    raise raises(f'{path} cannot be read: {error.strerror or error}; {advice}') from error


def _one_line(decode: Callable[[], Schema], place: Path | str, advice: str, raises: type[UserError]) -> Schema:
  try:
    return decode()
  except (ValueError, RecursionError) as error:  # Of msgspec, and of bytes that are not UTF-8.
    said = 'it is nested too deeply' if isinstance(error, RecursionError) else one_line(error).replace('`$.', '`')[:200]
    raise raises(f'{place} is not as it was written: {said}; {advice}') from error
