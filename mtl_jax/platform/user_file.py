"""Calls a function of a Python file that the user wrote; what goes wrong there is told in one line."""

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtl_jax.errors import UserError, one_line


def call(path: Path, function: str, *arguments: Any, raises: type[UserError], blame: str = '') -> Any:
  """The result of a function of a Python file, which may import from its own folder.

  Args:
    path: the file.
    function: its name there.
    *arguments: what it is given.
    raises: the kind of error to raise.
    blame: what an error begins with, such as the flag that named the file.

  Raises:
    UserError: of that kind, for a file that is no Python, has no such function, or fails.
  """
  name = f'mtl_jax_user_{path.stem}'
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise raises(f'{blame}{path} is no Python file; it must define {function}()')
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # Where dataclasses look up their annotations.
  sys.path.insert(0, str(path.resolve().parent))
  try:
    with blamed(path, raises=raises, blame=blame):
      spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
      raise raises(f'{blame}{path} defines no function {function}')
    with blamed(path, raises=raises, blame=blame):
      return getattr(module, function)(*arguments)
  finally:
    sys.path.pop(0)


@contextlib.contextmanager
def blamed(path: Path, *, raises: type[UserError], blame: str = '') -> Iterator[None]:
  """Turns any error but ours into one line that names the file, and the line of it where the error came from."""
  try:
    yield
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    where = f' (line {lines[-1]})' if lines else ''
    said = one_line(error)
    raise raises(f'{blame}{path} failed: {type(error).__name__}: {said}{where}') from error
