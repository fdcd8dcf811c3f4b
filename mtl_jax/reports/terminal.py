"""The pages as text for a terminal: headings, tables and reservations."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from mtl_jax.platform import address
from mtl_jax.reports import affinity_page, sweep_page, verdicts
from mtl_jax.reports.charts import Side
from mtl_jax.reports.page import Block, Heading, Table, Text
from mtl_jax.reports.runs import Evaluation, Run, load
from mtl_jax.reports.scoreboard import details, scoreboard
from mtl_jax.run import workdir

WIDTH = 110  # Of paragraphs; a table is as wide as it must be.


def of_runs(folders: Mapping[str, Path]) -> str:
  """The metrics of the runs in these folders, by name."""
  return as_text([scoreboard(load(folders))])


def of_evaluation(found: Mapping[str, Any], directory: Path) -> str:
  """The metrics of what `eval` gave for the run in the directory."""
  config, facts = workdir.read(directory)
  tasks = [task for task in facts.selected(config) if task.name in found['tasks']]
  run = Run(Side(address.name(directory), 0), directory, config, tasks, cast(Evaluation, found), log=[])
  what = f'Step {found["step"]} on the {found["num_examples"]} examples of {found["split"]} in {found["data"]}'
  return as_text([Heading(what), scoreboard([run]), *details(run.evaluation, tasks)])


def of_study(found: Mapping[str, Any]) -> str:
  """All arms of a `study.json`, then the tests of each."""
  return as_text([*verdicts.all_arms(found), *verdicts.tests(found)])


def of_sweep(found: Mapping[str, Any]) -> str:
  """The best of a `sweep.json`, the tests that confirm it, and the front."""
  front = sweep_page.front(found) if found['front'] else []
  return as_text([*sweep_page.best(found), *verdicts.tests(found['best']['confirmed']), *front])


def of_affinity(found: Mapping[str, Any]) -> str:
  """The groups that an `affinity.json` suggests."""
  return as_text(affinity_page.groups(found))


def as_text(blocks: Iterable[Block]) -> str:
  """Headings, tables and notes; explanations stay on the page."""
  parts = []
  for block in blocks:
    if isinstance(block, Table):
      parts.append(_aligned(block))
    elif isinstance(block, Heading):
      parts.append(block.text)
    elif isinstance(block, Text) and block.style == 'note':
      parts.append(textwrap.fill(block.text, WIDTH))
  return '\n\n'.join(parts)


def _aligned(table: Table) -> str:
  """Names on the left; other columns on the right, or on the left too where they hold words."""
  lines = [[column.text for column in table.columns]]
  lines += [[', '.join(filter(None, (row.name, row.note))), *(cell.text for cell in row.cells)] for row in table.rows]
  widths = [max(map(len, column)) for column in zip(*(line for line in lines if len(line) > 1), strict=True)]
  side = '<' if table.style == 'wrap' else '>'
  aligned = []
  for name, *cells in lines:
    rest = [f'{cell:{side}{width}}' for cell, width in zip(cells, widths[1:], strict=False)]
    aligned.append('  '.join([f'{name:<{widths[0]}}', *rest]).rstrip())
  return '\n'.join(aligned)
