"""Loads functions and classes from a Python file of the user; what fails in it is a one-line error."""

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mtl_jax.errors import UserError, one_line

MAX_SAID = 300  # Letters of an error.


def module(path: Path, *, raises: type[UserError], blame: str = '') -> ModuleType:
  """Runs a Python file, which may import from its own folder.

  Args:
    path: the file.
    raises: the kind of error to raise.
    blame: what an error begins with, such as the flag that named the file.

  Raises:
    UserError: of that kind, for a file that is no Python, or fails.
  """
  name = f'mtl_jax_user_{path.stem}'
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise raises(f'{blame}{path} is no Python file')
  made = importlib.util.module_from_spec(spec)
  sys.modules[name] = made  # Where dataclasses look up their annotations.
  with _own_folder(path), wrap_errors(path, raises=raises, blame=blame):
    spec.loader.exec_module(made)
  return made


def load(path: Path, name: str, *, raises: type[UserError], blame: str = '') -> Any:
  """Loads what a Python file calls `name`; other arguments and errors are those of `module`.

  Raises:
    UserError: also where the file has no such function or class.
  """
  found = getattr(module(path, raises=raises, blame=blame), name, None)
  if not callable(found):
    raise raises(f'{blame}{path} defines no function {name}')
  return found


def call(path: Path, function: str, *arguments: Any, raises: type[UserError], blame: str = '') -> Any:
  """The result of a function of a Python file; arguments and errors are those of `load`."""
  found = load(path, function, raises=raises, blame=blame)
  with _own_folder(path), wrap_errors(path, raises=raises, blame=blame):
    return found(*arguments)


@contextlib.contextmanager
def _own_folder(path: Path) -> Iterator[None]:
  """Imports from a file's own folder first."""
  sys.path.insert(0, str(path.resolve().parent))
  try:
    yield
  finally:
    sys.path.pop(0)


@contextlib.contextmanager
def wrap_errors(path: Path, *, raises: type[UserError], blame: str = '') -> Iterator[None]:
  """Turns any error but ours into one line that names the file, and the line of it where the error came from."""
  try:
    yield
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    raise raises(f'{blame}{path} failed: {described(error, path)}') from error


def described(error: BaseException, path: Path) -> str:
  """An error in one line, with the line of the file where it came from, if it came from there."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
  said = one_line(error)
  half = MAX_SAID // 2  # Hints stand at the end, as "Did you mean".
  said = said if len(said) <= MAX_SAID else f'{said[:half]} ... {said[-half:]}'
  return f'{type(error).__name__}: {said}' + (f' (line {lines[-1]})' if lines else '')
