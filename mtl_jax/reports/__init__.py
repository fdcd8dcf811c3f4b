"""Pages and plots over the JSON that `eval`, `study` and `affinity` write, and the table for the terminal."""

from pathlib import Path

from mtl_jax.reports import affinity_page, study_page
from mtl_jax.reports.runs import find_runs
from mtl_jax.reports.runs_page import write_report
from mtl_jax.reports.scoreboard import comparison, headlines, text_table

__all__ = ['comparison', 'find_runs', 'headlines', 'rebuild', 'text_table', 'write_report']


def rebuild(directory: Path, *, pictures: bool = False) -> Path:
  """Writes the page of a study, an affinity run, a run, or a folder of runs; returns its path.

  Args:
    directory: the working directory.
    pictures: whether to show test images, which may be photos of real people.

  Raises:
    UserError: for a file that is missing or damaged.
  """
  out = directory / 'report.html'
  if study_page.is_study(directory):
    study_page.write_report(directory, pictures=pictures)
  elif affinity_page.is_affinity(directory):
    affinity_page.write_report(directory)
  else:
    write_report(find_runs(directory), out, title=directory.name, pictures=pictures)
  return out
