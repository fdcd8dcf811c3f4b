"""Builds pages: one self-contained HTML file of blocks (headings, texts, tables, charts), all by one template."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtl_jax.config import flat
from mtl_jax.platform import atomic_write
from mtl_jax.reports import charts
from mtl_jax.reports.charts import Side
from mtl_jax.reports.figures import MISSING

# The configuration's fields that a page shows first.
FIELDS = (
  'tasks',
  'model.backbone',
  'model.sharing',
  'model.weights',
  'model.freeze',
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


class Heading(NamedTuple):
  text: str
  level: int = 2


class Text(NamedTuple):
  """A paragraph; its style is empty, `quiet`, `note` or `code`."""

  text: str
  style: str = ''


class Column(NamedTuple):
  """A table's head; `sort` is `text` or `number` where a click sorts by it."""

  text: str
  sort: str = ''
  side: Side | None = None


class Cell(NamedTuple):
  """A cell; the value is what it is sorted by."""

  text: str
  style: str = ''
  value: float | None = None


class Row(NamedTuple):
  """A line of a table; without cells it heads those below. It is filtered by what it says."""

  name: str
  cells: Sequence[Cell] = ()
  note: str = ''
  style: str = ''
  says: str = ''


class Table(NamedTuple):
  label: str
  columns: Sequence[Column]
  rows: Sequence[Row]
  style: str = ''
  sortable: bool = False

  def first(self, number: int) -> 'Table':
    """The same table with its first columns alone."""
    rows = [row._replace(cells=row.cells[: number - 1]) for row in self.rows]
    return self._replace(columns=self.columns[:number], rows=rows)

  @property
  def says(self) -> list[str]:
    """The verdicts by which a long table can be filtered."""
    long = self.sortable and len(self.rows) > MAX_OPEN_ROWS
    return sorted({row.says for row in self.rows} - {''}) if long else []


class Chart(NamedTuple):
  heading: str
  svg: Any
  alt: str


class Charts(NamedTuple):
  charts: Sequence[Chart]
  legend: Sequence[Side] = ()
  style: str = 'charts'


class Picture(NamedTuple):
  uri: str
  alt: str
  caption: str = ''


class Pictures(NamedTuple):
  pictures: Sequence[Picture]


class Pairs(NamedTuple):
  pairs: Mapping[str, Any]


class Fold(NamedTuple):
  """Blocks that are shown on a click."""

  summary: str
  blocks: 'Sequence[Block]'
  open: bool = False


Block = Heading | Text | Table | Charts | Pictures | Pairs | Fold


def table(
  label: str, columns: Iterable[str | Column], rows: Iterable[Row | Sequence[str]], *, style: str = ''
) -> Table:
  """A table from plain strings, columns and rows; a row's first string is its name."""
  lines = [row if isinstance(row, Row) else Row(row[0], [Cell(text) for text in row[1:]]) for row in rows]
  return Table(label, [Column(one) if isinstance(one, str) else one for one in columns], lines, style)


def folded(summary: str, one: Table) -> Fold:
  """A table that is open while it is short."""
  return Fold(summary, [one], open=len(one.rows) <= MAX_OPEN_ROWS)


def chart(
  heading: str, figure: Any, alt: str, *, folder: Path | None = None, name: str = '', legend: Sequence[Side] = ()
) -> Chart:
  """A Matplotlib figure on the page; with a folder also beside it, as PNG and SVG in the light page's colours.

  These have the heading and the legend in them; on the page one legend stands above all charts of a section.
  """
  import markupsafe

  svg = markupsafe.Markup(charts.to_svg(figure, name=alt))  # The names in it were escaped when it was drawn.
  if folder:
    charts.add_legend(figure, heading, legend)
    stem = re.sub(r'[^\w.-]+', '_', name)
    for kind in ('png', 'svg'):
      content = io.BytesIO()
      figure.savefig(content, format=kind, dpi=200, facecolor='white', bbox_inches='tight')
      atomic_write.write(folder / f'{stem}.{kind}', content.getvalue(), root=folder.parent)
  return Chart(heading, svg, alt)


def field_text(value: Any) -> str:
  """A configuration's value as text."""
  if isinstance(value, list | tuple):
    value = ', '.join(map(str, value))
  return MISSING if value is None or value == '' else str(value)


def configuration(summary: str, config: Mapping[str, Any]) -> Fold:
  """A whole configuration, folded away."""
  return Fold(summary, [Text(json.dumps(config, indent=2, sort_keys=True, default=str), 'code')])


def provenance(
  found: Mapping[str, Any], config: Mapping[str, Any], *, section: str, more: Mapping[str, str]
) -> list[Block]:
  """Data, versions, device and date of a JSON, and more facts; of its configuration the main fields, a section, all."""
  data, fields = found.get('data', {}), flat(config)
  names = [name for name in fields if name in FIELDS or name.startswith(f'{section}.')]
  facts = {
    'data': data.get('directory'),
    'checksum': data.get('checksum'),
    'images': [f'{split} {count}' for split, count in data.get('splits', {}).items()],
    **more,
    **found.get('versions', {}),
    'device': found.get('device'),
    'date': found.get('date'),
  }
  shown = {name: field_text(fields[name]) for name in names if field_text(fields[name]) != MISSING}
  return [
    Heading('Data, versions and configuration'),
    Pairs({name: field_text(value) for name, value in facts.items()}),
    Pairs(shown),
    configuration('Whole configuration', config),
  ]


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
  environment.filters['kind'] = lambda block: type(block).__name__
  environment.filters['unbroken'] = lambda text: re.sub(' (?=[↑↓])', '\N{NO-BREAK SPACE}', text)
  atomic_write.write(path, environment.get_template('page.html').render(title=title, subtitle=subtitle, body=body))
