"""Draws reports' charts: curves, differences and maps, as SVG that follows the page's colours."""

import hashlib
import io
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mtl_jax.metrics.metric import Metric

# The light page's colours. Within a page CSS variables replace them, so that the same chart serves light and dark.
RUN_COLOURS = ('#0072b2', '#d55e00', '#00875f', '#a8487f', '#8a7400', '#555d66')
INK, GRID = '#1b1f24', '#dfe3e8'
DASHES = ((), (6, 2), (2, 1.5), (8, 2, 2, 2), (4, 4), (4, 1.5, 1, 1.5))
MARKERS = 'Dosv^p'
# The same marks in a page's legend, around (19, 6).
MARKS = (
  'M19 1l5 5-5 5-5-5z', 'M14.5 6a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z', 'M15 2h8v8h-8z', 'M14 2h10l-5 9z',
  'M14 10h10l-5-9z', 'M19 1l5 3.8-1.9 6.2h-6.2l-1.9-6.2z',
)  # fmt: skip
WIDTH_INCHES = 4.6  # Narrow, so that the text stays readable when a phone shows the chart at its full width.
MAX_POINTS = 300
INCHES_A_TASK = 0.14  # Room for its name; maps of many tasks are wider than others, and scroll on a phone.
MAX_NUMBERS = 8  # Maps of up to so many tasks have their numbers written into them.
SAYS = 'says: '  # Begins the id of what shows the rest of it when it is touched.
LABEL_DISTANCES = (5, 14, 24, 36)  # From a point, in points of type.
FAINT = 0.3  # How strongly entries within noise are drawn.


class Side(NamedTuple):
  """A run or an arm in charts, legends and table heads; its number gives its colour, dashes and mark.

  The reference that others are compared with has -1, which is grey.
  """

  name: str
  number: int

  @property
  def place(self) -> int:
    return self.number % len(RUN_COLOURS)

  @property
  def colour(self) -> str:
    return f'var(--run-{self.place + 1})'

  @property
  def dashes(self) -> str:
    return ' '.join(map(str, DASHES[self.place]))

  @property
  def mark(self) -> str:
    return MARKS[self.place]


class Curve(NamedTuple):
  """A line over training steps: steps, values and half the height of the band around them, `[m]` each."""

  steps: np.ndarray
  values: np.ndarray
  deviation: np.ndarray | None = None


class Mark(NamedTuple):
  """A difference with its interval, and those it is the mean of; None is not drawn."""

  value: float | None
  interval: Sequence[float] | None = None
  parts: Sequence[float] = ()


class Point(NamedTuple):
  """A point with its intervals in both directions, a label beside it, and what it says when it is touched."""

  side: Side
  x: float
  y: float
  intervals: tuple[Sequence[float] | None, Sequence[float] | None] = (None, None)
  label: str = ''
  says: str = ''


def curves(lines: Sequence[tuple[Side, Curve]], *, percent: bool) -> Any:
  """A figure of lines over training steps; values are fractions to be shown in per cent if `percent`. NaN is a gap."""
  from matplotlib import ticker

  figure, axes = _figure(2.5)
  scale = 100 if percent else 1
  for side, curve in lines:
    steps, values = thinned(curve.steps), thinned(curve.values) * scale
    colour = RUN_COLOURS[side.place]
    axes.plot(steps, values, marker=MARKERS[side.place] if len(steps) < 12 else '', color=colour, **_line(side))
    if curve.deviation is not None:
      half = thinned(curve.deviation) * scale
      axes.fill_between(steps, values - half, values + half, color=colour, alpha=0.18, linewidth=0)
  everything = np.concatenate([curve.values for _, curve in lines])
  everything = everything[np.isfinite(everything)]
  if not percent and everything.size and everything.min() > 0 and everything.max() > 20 * everything.min():
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
  elif percent:
    axes.yaxis.set_major_formatter('{x:g}%')
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
  axes.xaxis.set_major_formatter(lambda step, _: f'{step / 1000:g}k' if abs(step) >= 1000 else f'{step:g}')
  _name(axes, 'step')
  axes.set_xlim(left=0)
  _quiet(axes, grid='both')
  return figure


def reliability(lines: Sequence[tuple[Side, Curve]]) -> Any:
  """A figure of how often what is predicted comes true, over its predicted probability; the diagonal is calibrated."""
  figure, axes = _figure(3.2)
  axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
  for side, curve in lines:
    axes.plot(curve.steps, curve.values, marker=MARKERS[side.place], color=RUN_COLOURS[side.place], **_line(side))
  axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))  # The ticks of both at the corner do not meet.
  _name(axes, 'predicted probability', 'observed frequency')
  _quiet(axes, grid='both')
  return figure


def differences(
  names: Sequence[str], marks: Sequence[tuple[Side, Sequence[Mark]]], *, metric: Metric, reference: str
) -> Any:
  """A figure with a row for each name, the first on top, and in it a mark for each side: its difference in the metric.

  Args:
    names: `n` of them.
    marks: for each side `n` marks; intervals are lines, parts small dots.
    metric: gives scale and direction.
    reference: what the sides are compared with.
  """
  figure, axes = _figure(0.75 + len(names) * (0.1 + 0.14 * len(marks)))
  scale = 100 if metric.percent else 1
  for place, (side, those) in enumerate(marks):
    colour, marker = RUN_COLOURS[side.place], MARKERS[side.place]
    for row, mark in enumerate(those):
      y = row + (place - (len(marks) - 1) / 2) * 0.7 / len(marks)
      dots = scale * np.array(mark.parts, float)
      axes.plot(dots, np.full(len(dots), y), 'o', color=colour, alpha=0.45, markersize=3.2, markeredgewidth=0)
      if mark.interval:
        axes.plot(scale * np.array(mark.interval), [y, y], color=colour, linewidth=1.8, solid_capstyle='butt')
      if mark.value is not None:
        axes.plot(scale * mark.value, y, marker, color=colour, markersize=4.2, markeredgewidth=0)
  axes.axvline(0, color=INK, linewidth=1)
  # Names come from data sets: they are text, never formulas.
  axes.set_yticks(range(len(names)), [name.replace('_', ' ') for name in names], parse_math=False)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.margins(x=0.08)
  axes.xaxis.set_major_formatter(lambda value, _: f'{value:+g}'.replace('-', '\N{MINUS SIGN}') if value else '0')
  better = 'right' if metric.higher_is_better else 'left'
  unit = ', points' if metric.percent else ''
  _name(axes, f'{metric.phrase} less that of {reference}{unit} ({better} is better)')
  _quiet(axes, grid='x')
  axes.spines['left'].set_visible(False)
  return figure


def scatter(
  points: Sequence[Point],
  *,
  names: Sequence[str],
  joined: Sequence[Point] = (),
  origin: str = '',
  log: bool = False,
) -> Any:
  """A figure of points.

  Args:
    points: what is drawn.
    names: of both axes.
    joined: those of them that are joined by a line, from left to right.
    origin: what lies at 0, where lines are drawn; empty for none.
    log: whether the first axis is logarithmic.
  """
  figure, axes = _figure(WIDTH_INCHES * 0.85)
  if origin:
    axes.axhline(0, color=GRID, linewidth=1.2)
    axes.axvline(0, color=GRID, linewidth=1.2)
    axes.plot(0, 0, '+', color=INK, markersize=9)
  lines: list[tuple[Any, Any]] = []  # Their ends in both directions, which labels avoid.
  for one in points:
    colour, marker = RUN_COLOURS[one.side.place], MARKERS[one.side.place]
    across, along = one.intervals
    own = [(across, (one.y, one.y))] * bool(across) + [((one.x, one.x), along)] * bool(along)
    for ends in own:
      axes.plot(*ends, color=colour, linewidth=1, alpha=0.5, solid_capstyle='butt')
    lines += own
    axes.plot(one.x, one.y, marker, color=colour, markersize=5.5, markeredgewidth=0, gid=f'{SAYS}{one.says}')
  if joined:
    x, y = zip(*sorted((one.x, one.y) for one in joined), strict=True)
    axes.plot(x, y, color=RUN_COLOURS[joined[0].side.place], linewidth=1.4, zorder=1.5)
    lines += [(x[i : i + 2], y[i : i + 2]) for i in range(len(x) - 1)]
  if log:
    axes.set_xscale('log')
  _name(axes, *names)
  _quiet(axes, grid='both')
  labels = [(origin, 0.0, 0.0)] * bool(origin) + [(one.label, one.x, one.y) for one in points]
  _label(axes, labels, lines)
  return figure


def _label(axes: Any, points: Sequence[tuple[str, float, float]], lines: Sequence[tuple[Any, Any]]) -> None:
  """Writes labels beside their points, each where it covers least; those far from their point with a line to it.

  Args:
    axes: with all else in them.
    points: label, x and y of each; an empty label is none, but the point is not to be covered.
    lines: the two x and the two y of lines that are not to be covered either.
  """
  if not any(label for label, *_ in points):
    return
  axes.figure.draw_without_rendering()  # Where points are is known once all is laid out.
  pixel = axes.figure.dpi / 72
  at = axes.transData.transform([point[1:] for point in points])
  ends = [axes.transData.transform(np.transpose(line)) for line in lines]
  along = [np.linspace(first, last, 40) for first, last in ends]
  # Left, bottom, right and top of what is not to be covered.
  taken = [np.hstack([at - 4 * pixel, at + 4 * pixel]), *(np.hstack([one - pixel, one + pixel]) for one in along)]
  directions = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)])
  pointer = {'arrowstyle': '-', 'color': INK, 'linewidth': 0.4, 'shrinkA': 0, 'shrinkB': 2}
  for (label, *point), center in zip(points, at, strict=True):
    if not label:
      continue
    style = {'ha': 'center', 'va': 'center', 'fontsize': 7.5, 'color': INK, 'parse_math': False}
    text = axes.annotate(label, point, (0, 0), textcoords='offset points', arrowprops=pointer, **style)
    text.set_in_layout(False)
    half = np.array(text.get_window_extent().size) / 2
    moves = np.concatenate([directions * (distance * pixel + half) for distance in LABEL_DISTANCES])  # The near first.
    boxes = np.hstack([center + moves - half, center + moves + half])
    outside = 4 * half.prod() - _shared(boxes, axes.bbox.extents[None])
    best = int((outside + _shared(boxes, np.concatenate(taken))).argmin())
    text.set_position(moves[best] / pixel)
    text.arrow_patch.set_visible(best >= len(directions))
    taken.append(boxes[[best]])


def _shared(boxes: Float[np.ndarray, 'b 4'], others: Float[np.ndarray, 'o 4']) -> Float[np.ndarray, ' b']:
  """The area that each box shares with others, summed."""
  low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
  return np.clip(high - low, 0, None).prod(-1).sum(-1)


def heat_map(
  values: Float[np.ndarray, 'k k'], names: Sequence[str], *, above: Bool[np.ndarray, 'k k'], label: str
) -> Any:
  """A figure with a row for each source and a column for each target; those within noise are faint, the diagonal empty.

  Args:
    values: NaN leaves a gap.
    names: of the tasks, in the order of rows and columns.
    above: which entries are above noise.
    label: of the colours.
  """
  from matplotlib import cm, colormaps, colors, ticker

  num = len(names)
  shown = np.where(np.eye(num, dtype=bool), np.nan, values)
  limit = float(np.nanmax(np.abs(shown), initial=0)) or 1.0
  width = max(WIDTH_INCHES, 1.4 + INCHES_A_TASK * num)
  figure, axes = _figure(width * 1.02, width)
  scale = cm.ScalarMappable(colors.Normalize(-limit, limit), colormaps['RdBu'])
  strength = np.where(above, 1.0, FAINT)[..., None]  # Of colours over white, also on a dark page.
  cells = scale.to_rgba(shown)
  cells[..., :3] = 1 - strength * (1 - cells[..., :3])
  axes.imshow(cells, interpolation='nearest')
  text = {'fontsize': float(np.clip(100 / num, 6.5, 8.5)), 'color': INK, 'parse_math': False}
  labels = [(name.partition('/')[2] or name).replace('_', ' ') for name in names]
  axes.set_xticks(range(num), labels, rotation=90, **text)
  axes.set_yticks(range(num), labels, **text)
  axes.tick_params(length=0, pad=1.5)
  for spine in axes.spines.values():
    spine.set_visible(False)
  for row, column in zip(*np.nonzero(np.isfinite(shown)), strict=True) if num <= MAX_NUMBERS else ():
    dark = above[row, column] and abs(shown[row, column]) > 0.6 * limit
    number = f'{shown[row, column]:.2g}'.replace('-', '\N{MINUS SIGN}')
    axes.text(column, row, number, ha='center', va='center', fontsize=7, color='white' if dark else '#333333')
  _name(axes, 'target', 'source')
  bar = figure.colorbar(scale, ax=axes, orientation='horizontal', shrink=0.7, aspect=30, pad=0.02)
  bar.locator = ticker.MaxNLocator(4, symmetric=True)
  bar.formatter = ticker.FuncFormatter(lambda value, _: f'{value:g}'.replace('-', '\N{MINUS SIGN}'))
  bar.update_ticks()
  bar.set_label(label, fontsize=8.5, color=INK)
  bar.ax.tick_params(labelsize=7, colors=INK)
  bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
  return figure


def thinned(values: np.ndarray) -> np.ndarray:
  """At most `MAX_POINTS` values `[m]`: means of neighbours, which also calms a noisy loss."""
  window = -(-len(values) // MAX_POINTS)
  if window <= 1:
    return values
  padded = np.pad(values, (0, -len(values) % window), mode='edge')
  return padded.reshape(-1, window).mean(-1)


def to_svg(figure: Any, *, name: str) -> str:
  """The figure as an `<svg>` element for a page: themed, with text as text, no outside address and ids by its name."""
  from matplotlib import rc_context

  stream = io.StringIO()
  with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'mtl_jax'}):
    unnamed = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(stream, format='svg', transparent=True, metadata=unnamed)
  figure.set_layout_engine('none')  # It is laid out now; to do so again for every format takes most of the time.
  svg = stream.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg).replace('xlink:href', 'href')
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r'font: ([\d.]+)px [^;"]*', r'font-size: \1px', svg)
  for i, colour in enumerate(RUN_COLOURS, 1):
    svg = svg.replace(colour, f'var(--run-{i})')
  svg = svg.replace(INK, 'currentColor').replace(GRID, 'var(--grid)')
  svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
  svg = re.sub(rf'<g id="{SAYS}([^"]*)"', r'<g class="says" data-says="\1"', svg)
  used = set(re.findall(r'#([\w-]+)', svg))
  svg = re.sub(r' id="([\w-]+)"', lambda match: match[0] if match[1] in used else '', svg)
  # Ids of a page must differ from chart to chart.
  prefix = 'c' + hashlib.sha256((name + svg).encode()).hexdigest()[:8]
  return re.sub(r'(id="|url\(#|href="#)', rf'\g<1>{prefix}-', svg)


def add_legend(figure: Any, heading: str, sides: Sequence[Side]) -> None:
  """Puts a heading and what the sides look like above a figure that is laid out; saved with a tight box it has room."""
  from matplotlib.lines import Line2D

  handles = []
  for side in sides if len(sides) > 1 else ():
    style: dict[str, Any] = {**_line(side), 'markersize': 4, 'marker': MARKERS[side.place]}
    handles.append(Line2D([], [], color=RUN_COLOURS[side.place], label=side.name, **style))
  place = {'loc': 'lower left', 'bbox_to_anchor': (0, 1), 'alignment': 'left', 'frameon': False}
  legend = figure.legend(handles=handles, title=heading, ncols=4, fontsize=8, labelcolor=INK, handlelength=2.8, **place)
  legend.get_title().set(color=INK, size=9.5, weight='bold', parse_math=False)
  for text in legend.get_texts():
    text.set_parse_math(False)


def _name(axes: Any, x: str, y: str = '') -> None:
  """Names the axes, in lines that are no longer than they, what is in brackets on a line of its own.

  Names come from data sets: they are text, never formulas.
  """
  for write, text, width in ((axes.set_xlabel, x, 54), (axes.set_ylabel, y, 44)):
    parts = text.replace(' (', '\n(').split('\n') if len(text) > width else [text]
    lines = [textwrap.fill(part, width, break_on_hyphens=False) for part in parts]
    write('\n'.join(lines), parse_math=False, size=8.5, color=INK)


def _line(side: Side) -> dict[str, Any]:
  dashes = DASHES[side.place]
  return {'linestyle': (0, dashes) if dashes else '-', 'linewidth': 1.5, 'markersize': 3}


def _figure(height: float, width: float = WIDTH_INCHES) -> tuple[Any, Any]:
  """An empty figure of that size in inches, and its axes."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.add_subplot()


def _quiet(axes: Any, *, grid: str) -> None:
  axes.grid(axis=grid, color=GRID, linewidth=0.7)
  axes.set_axisbelow(True)
  axes.tick_params(which='both', colors=INK, labelsize=8.5, length=0)
  for side in ('top', 'right'):
    axes.spines[side].set_visible(False)
  for side in ('left', 'bottom'):
    axes.spines[side].set_color(GRID)
