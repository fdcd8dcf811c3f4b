"""Pages and plots over the JSON that `eval`, `study`, `sweep` and `affinity` write, and tables for the terminal."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtl_jax.errors import CheckpointError, one_line
from mtl_jax.platform import json_file
from mtl_jax.reports import affinity_page, study_page, sweep_page, terminal
from mtl_jax.reports.runs import find_runs
from mtl_jax.reports.runs_page import write_report

__all__ = ['find_runs', 'rebuild', 'terminal', 'write_report']


def rebuild(directory: Path, *, pictures: bool = False) -> Path:
  """Writes the page of a study, a sweep, an affinity run, a run, or a folder of runs; returns its path.

  Args:
    directory: the working directory.
    pictures: whether to show test images, which may be photos of real people.

  Raises:
    UserError: for a file that is missing or damaged.
  """
  out = directory / 'report.html'
  if (directory / 'study.json').is_file() or (directory / 'replicas').is_dir():
    with _content(directory / 'study.json', 'study') as study:
      study_page.write_report(study, directory, show_pictures=pictures)
  elif (directory / 'sweep.json').is_file() or (directory / 'trials').is_dir():
    with _content(directory / 'sweep.json', 'sweep') as found:
      sweep_page.write_report(found, directory)
  elif (directory / 'affinity.json').is_file() or (directory / 'looks').is_dir():
    with _content(directory / 'affinity.json', 'affinity') as found:
      affinity_page.write_report(found, directory)
  else:
    write_report(find_runs(directory), out, show_pictures=pictures)
  return out


@contextlib.contextmanager
def _content(path: Path, verb: str) -> Iterator[dict[str, Any]]:
  """A JSON that a verb has written. What cannot be read from it inside is told as this file's fault, in one line.

  Raises:
    CheckpointError: for a file that is missing or damaged; the message says the command that makes it.
  """
  make = f'make it with `mtl-jax {verb} --config F.py --workdir {path.parent}`'
  content = json_file.read(path, json_file.Fields, advice=make)
  try:
    yield content
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    said = f'{type(error).__name__}: {one_line(error)}'
    raise CheckpointError(f'{path} is not as it was written ({said}); {make}') from error
