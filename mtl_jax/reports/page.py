"""Builds pages: one self-contained HTML file of blocks (headings, texts, tables, charts), all by one template."""

import dataclasses
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.platform import atomic_write
from mtl_jax.reports import charts
from mtl_jax.reports.scoreboard import MISSING

# The configuration's fields that a page shows first.
FIELDS = (
  'tasks',
  'model.backbone',
  'model.sharing',
  'objective.name',
  'optimizer.name',
  'optimizer.learning_rate',
  'train.steps',
  'train.batch_size',
  'train.seed',
  'data.dir',
  'data.dirs',
)
MAX_OPEN_ROWS = 12  # Longer tables that are no one's first question are folded.


class Block:
  """A part of a page; the template draws it by its class's name."""

  @property
  def kind(self) -> str:
    return type(self).__name__


@dataclasses.dataclass(frozen=True)
class Heading(Block):
  text: str
  level: int = 2


@dataclasses.dataclass(frozen=True)
class Text(Block):
  """A paragraph; its style is empty, `quiet` or `note`."""

  text: str
  style: str = ''


@dataclasses.dataclass(frozen=True)
class Card:
  heading: str
  said: Sequence[str]
  detail: str = ''
  caution: str = ''


@dataclasses.dataclass(frozen=True)
class Cards(Block):
  cards: Sequence[Card]


@dataclasses.dataclass(frozen=True)
class Side:
  """A run or an arm in legends and table heads, by its number."""

  name: str
  number: int

  @property
  def colour(self) -> str:
    return f'var(--run-{self.number % len(charts.RUN_COLOURS) + 1})'

  @property
  def dashes(self) -> str:
    return charts.SVG_DASHES[self.number % len(charts.SVG_DASHES)]


@dataclasses.dataclass(frozen=True)
class Column:
  """A table's head; `sort` is `text` or `number` where a click sorts by it."""

  text: str
  sort: str = ''
  side: Side | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell; the value is what it is sorted by."""

  text: str
  style: str = ''
  value: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a table; without cells it heads those below. It is filtered by what it says."""

  name: str
  cells: Sequence[Cell]
  note: str = ''
  style: str = ''
  says: str = ''


@dataclasses.dataclass(frozen=True)
class Table(Block):
  """Rows below columns."""

  label: str
  columns: Sequence[Column]
  rows: Sequence[Row]
  style: str = ''
  sortable: bool = False

  @property
  def says(self) -> list[str]:
    """The verdicts by which a long table can be filtered."""
    long = self.sortable and len(self.rows) > MAX_OPEN_ROWS
    return sorted({row.says for row in self.rows} - {''}) if long else []


@dataclasses.dataclass(frozen=True)
class Chart:
  heading: str
  svg: Any
  alt: str


@dataclasses.dataclass(frozen=True)
class Charts(Block):
  charts: Sequence[Chart]
  legend: Sequence[Side] = ()
  style: str = 'charts'


@dataclasses.dataclass(frozen=True)
class Picture:
  uri: str
  alt: str
  caption: str = ''


@dataclasses.dataclass(frozen=True)
class Pictures(Block):
  pictures: Sequence[Picture]


@dataclasses.dataclass(frozen=True)
class Pairs(Block):
  pairs: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Code(Block):
  text: str


@dataclasses.dataclass(frozen=True)
class Fold(Block):
  """Blocks that are shown on a click."""

  summary: str
  blocks: Sequence[Block]
  open: bool = False


def table(
  label: str,
  columns: Iterable[str | Column],
  rows: Iterable[Row | Sequence[str]],
  *,
  style: str = '',
  sortable: bool = False,
) -> Table:
  """A table from plain strings, columns and rows; a row's first string is its name."""
  lines = [row if isinstance(row, Row) else Row(row[0], [Cell(text) for text in row[1:]]) for row in rows]
  heads = [Column(column) if isinstance(column, str) else column for column in columns]
  return Table(label, heads, lines, style, sortable)


def folded(summary: str, one: Table) -> Fold:
  """A table that is open while it is short."""
  return Fold(summary, [one], open=len(one.rows) <= MAX_OPEN_ROWS)


def chart(heading: str, figure: Any, alt: str, *, folder: Path | None = None, name: str = '') -> Chart:
  """A Matplotlib figure on the page; with a folder also beside it, as PNG and SVG in the light page's colours."""
  import markupsafe

  svg = markupsafe.Markup(charts.to_svg(figure))  # The names in it were escaped when it was drawn.
  if folder:
    stem = re.sub(r'[^\w.-]+', '_', name)
    for kind in ('png', 'svg'):
      content = io.BytesIO()
      figure.savefig(content, format=kind, dpi=160, facecolor='white')
      atomic_write.write(folder / f'{stem}.{kind}', content.getvalue(), root=folder.parent)
      figure.set_layout_engine('none')  # It is laid out now; to do so again for every format takes most of the time.
  return Chart(heading, svg, alt)


def write(path: Path, body: Sequence[Block], *, title: str, subtitle: str) -> None:
  """Writes a page. Every text is escaped; only `chart` gives HTML."""
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('mtl_jax.reports', '.'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  script = any(isinstance(block, Table) and block.sortable for block in _all(body))
  page = environment.get_template('page.html')
  atomic_write.write(path, page.render(title=title, subtitle=subtitle, body=body, script=script))


def _all(blocks: Iterable[Block]) -> Iterable[Block]:
  for block in blocks:
    yield block
    if isinstance(block, Fold):
      yield from _all(block.blocks)


def field_text(value: Any) -> str:
  """A configuration's value as text."""
  if isinstance(value, list | tuple):
    return ', '.join(str(item) for item in value)
  return MISSING if value is None or value == '' else str(value)


def configuration(config: Mapping[str, Any]) -> Code:
  """A whole configuration."""
  return Code(json.dumps(config, indent=2, sort_keys=True, default=str))
