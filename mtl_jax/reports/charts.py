"""Draws reports' charts: curves and bars as SVG that follows the page's colours, faces as JPEG data URIs."""

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from mtl_jax.reports.findings import Finding, named

# The light page's colours. Within a page CSS variables replace them, so that the same chart serves light and dark.
RUN_COLOURS = ('#0072b2', '#d55e00', '#00875f', '#a8487f', '#8a7400', '#555d66')
INK, GRID = '#1b1f24', '#dfe3e8'
DASHES = ('solid', (0, (6, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)), (0, (4, 4)), (0, (1, 3)))
SVG_DASHES = ('', '6 2', '2 1.5', '8 2 2 2', '4 4', '1 3')
# On photographs a colour needs no theme: bright ones, told apart with any kind of colour vision.
FACE_COLOURS = ('#56b4e9', '#ff9a3d', '#2ad4a0', '#f0a6d0', '#f0e442', '#ffffff')

WIDTH_INCHES = 4.6  # Narrow, so that the text stays readable when a phone shows the chart at its full width.
MAX_POINTS = 300
MARKERS = 'Dosv^p'
INCHES_A_TASK = 0.14  # Room for its name; maps of many tasks are wider than others, and scroll on a phone.
MAX_NUMBERS = 8  # Maps of up to so many tasks have their numbers written into them.
FAINT = 0.3  # How strongly entries within noise are drawn.

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


def curves(
  series: Series, *, run_numbers: Mapping[str, int], percent: bool, spread: Mapping[str, np.ndarray] | None = None
) -> Any:
  """A figure of one line per run over training steps.

  Args:
    series: for each run its steps `[m]` and values `[m]`; NaN leaves a gap.
    run_numbers: the number of each run, which gives its colour and dashes.
    percent: whether values are fractions to be shown in per cent.
    spread: half the height `[m]` of the band around each run's line, in the values' unit.
  """
  from matplotlib import ticker
  from matplotlib.figure import Figure

  figure = Figure(figsize=(WIDTH_INCHES, 2.5), layout='constrained')
  axes = figure.add_subplot()
  for run, (steps, values) in series.items():
    steps, values = thinned(steps), thinned(values) * (100 if percent else 1)
    number = run_numbers[run] % len(RUN_COLOURS)
    marker = 'o' if len(steps) < 12 else ''
    axes.plot(steps, values, color=RUN_COLOURS[number], linestyle=DASHES[number], marker=marker, markersize=3, lw=1.5)
    if spread:
      half = thinned(spread[run]) * (100 if percent else 1)
      axes.fill_between(steps, values - half, values + half, color=RUN_COLOURS[number], alpha=0.18, linewidth=0)
  everything = np.concatenate([values for _, values in series.values()])
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
  axes.set_xlabel('step')
  axes.set_xlim(left=0)
  quiet_axes(axes, grid='both')
  return figure


def bars(
  names: Sequence[str],
  values: Mapping[str, Sequence[float]],
  *,
  run_numbers: Mapping[str, int],
  limits: tuple[float, float],
) -> Any:
  """A figure of horizontal bars, a group for each name with a bar per run, the first name on top.

  Args:
    names: of the groups, `n` of them.
    values: for each run `[n]` percentage points; NaN draws no bar.
    run_numbers: the number of each run, which gives its colour.
    limits: least and greatest value of the axis, so that charts side by side agree.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(WIDTH_INCHES, 0.5 + len(names) * (0.14 + 0.09 * len(values))), layout='constrained')
  axes = figure.add_subplot()
  rows = np.arange(len(names))
  thickness = 0.76 / max(len(values), 1)
  for i, (run, numbers) in enumerate(values.items()):
    offset = (i - (len(values) - 1) / 2) * thickness
    axes.barh(rows + offset, numbers, thickness * 0.9, color=RUN_COLOURS[run_numbers[run] % len(RUN_COLOURS)])
  axes.axvline(0, color=INK, linewidth=1)
  # Names come from data sets: they are text, never formulas.
  axes.set_yticks(rows, [name.replace('_', ' ') for name in names], parse_math=False)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.set_xlim(*limits)
  axes.xaxis.set_major_formatter(lambda points, _: f'{points:+g}' if points else '0')
  axes.set_xlabel('points above the majority class')
  quiet_axes(axes, grid='x')
  axes.spines['left'].set_visible(False)
  return figure


def face(image: np.ndarray, true: np.ndarray, predicted: Mapping[int, np.ndarray], *, size: int = 320) -> str:
  """A face with its landmarks as a JPEG data URI: a ring where a point is, a cross where a run puts it.

  Args:
    image: uint8 `[h, w, 3]`.
    true: `[p, 2]`, fractions of width and height; NaN draws nothing.
    predicted: for each run's number its `[p, 2]`; the runs' crosses are in turn diagonal and upright.
    size: pixels of the longer side of the picture.
  """
  height, width = image.shape[:2]
  scale = size / max(height, width)
  picture = Image.fromarray(np.asarray(image)).resize(
    (round(width * scale), round(height * scale)), Image.Resampling.BICUBIC
  )
  draw = ImageDraw.Draw(picture)
  extent = np.array(picture.size)
  for x, y in true[np.isfinite(true).all(-1)] * extent:
    for radius, colour, thickness in ((10, 'black', 4), (9, 'white', 2)):
      draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=thickness)
  for i, (number, points) in enumerate(predicted.items()):
    for x, y in points[np.isfinite(points).all(-1)] * extent:
      for colour, thickness in (('black', 4), (FACE_COLOURS[number % len(FACE_COLOURS)], 2)):
        _cross(draw, x, y, upright=i % 2 == 1, fill=colour, width=thickness)
  stream = io.BytesIO()
  picture.save(stream, 'JPEG', quality=88)
  return 'data:image/jpeg;base64,' + base64.b64encode(stream.getvalue()).decode()


def thinned(values: np.ndarray) -> np.ndarray:
  """At most `MAX_POINTS` values `[m]`: means of neighbours, which also calms a noisy loss."""
  window = -(-len(values) // MAX_POINTS)
  if window <= 1:
    return values
  padded = np.pad(values, (0, -len(values) % window), mode='edge')
  return padded.reshape(-1, window).mean(-1)


def to_svg(figure: Any) -> str:
  """The figure as an `<svg>` element for a page: themed, unnamed, with text as text and no outside address."""
  from matplotlib import rc_context

  stream = io.StringIO()
  with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'mtl_jax'}):
    unnamed = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(stream, format='svg', transparent=True, metadata=unnamed)
  svg = stream.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg).replace('xlink:href', 'href')
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(r'font: ([\d.]+)px [^;"]*', r'font-size: \1px', svg)
  for i, colour in enumerate(RUN_COLOURS, 1):
    svg = svg.replace(colour, f'var(--run-{i})')
  svg = svg.replace(INK, 'currentColor').replace(GRID, 'var(--grid)')
  svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
  used = set(re.findall(r'#([\w-]+)', svg))
  svg = re.sub(r' id="([\w-]+)"', lambda match: match[0] if match[1] in used else '', svg)
  return _with_own_ids(svg)


def _with_own_ids(svg: str) -> str:
  """Ids of a page must differ from chart to chart: what a chart refers to inside itself is named by its content."""
  prefix = 'c' + hashlib.sha256(svg.encode()).hexdigest()[:8]
  return re.sub(r'(id="|url\(#|href="#)', rf'\g<1>{prefix}-', svg)


def quiet_axes(axes: Any, *, grid: str) -> None:
  axes.grid(axis=grid, color=GRID, linewidth=0.7)
  axes.set_axisbelow(True)
  axes.tick_params(which='both', colors=INK, labelsize=8.5, length=0)
  axes.xaxis.label.set(color=INK, size=8.5)
  for side in ('top', 'right'):
    axes.spines[side].set_visible(False)
  for side in ('left', 'bottom'):
    axes.spines[side].set_color(GRID)


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float, *, upright: bool, fill: str, width: int) -> None:
  reach = 6 if upright else 5
  strokes = ((0, reach), (reach, 0)) if upright else ((reach, reach), (reach, -reach))
  for dx, dy in strokes:
    draw.line((x - dx, y - dy, x + dx, y + dy), fill=fill, width=width)


def intervals(by_arm: Mapping[str, Sequence[Finding]], *, numbers: Mapping[str, int], reference: str) -> Any:
  """A figure with a row for each task of one metric: the mean difference, its 95% interval, and the seeds' differences.

  Args:
    by_arm: for each arm the findings of the same tasks, all of one metric.
    numbers: of the arms, which give colours.
    reference: the arm that the others are compared with.
  """
  from matplotlib.figure import Figure

  first = next(iter(by_arm.values()))
  names = [finding.name for finding in first]
  metric, higher_is_better = first[0].metric, first[0].higher_is_better
  label, percent = named(metric)
  scale = 100 if percent else 1
  height = 0.75 + len(names) * (0.1 + 0.14 * len(by_arm))
  figure = Figure(figsize=(WIDTH_INCHES, height), layout='constrained')
  axes = figure.add_subplot()
  for place, (arm, found) in enumerate(by_arm.items()):
    colour = RUN_COLOURS[numbers[arm] % len(RUN_COLOURS)]
    for row, finding in enumerate(found):
      y = row + (place - (len(by_arm) - 1) / 2) * 0.7 / len(by_arm)
      seeds = scale * _seeds(finding)
      axes.plot(seeds, np.full(len(seeds), y), 'o', color=colour, alpha=0.45, markersize=3.2, markeredgewidth=0)
      if finding.ci95:
        axes.plot(scale * np.array(finding.ci95), [y, y], color=colour, linewidth=1.8, solid_capstyle='butt')
      if finding.delta is not None:
        axes.plot(
          scale * finding.delta,
          y,
          MARKERS[numbers[arm] % len(MARKERS)],
          color=colour,
          markersize=4.2,
          markeredgewidth=0,
        )
  axes.axvline(0, color=INK, linewidth=1)
  axes.set_yticks(range(len(names)), [name.replace('_', ' ') for name in names], parse_math=False)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.margins(x=0.08)
  axes.xaxis.set_major_formatter(lambda value, _: f'{value:+g}'.replace('-', '\N{MINUS SIGN}') if value else '0')
  side = 'right' if higher_is_better else 'left'
  points = ', points' if percent else ''
  axes.set_xlabel(f'{label} less that of {reference}{points} ({side} is better)', parse_math=False)
  quiet_axes(axes, grid='x')
  axes.spines['left'].set_visible(False)
  return figure


def _seeds(finding: Finding) -> np.ndarray:
  """Each seed's difference, of those that both arms have."""
  pairs = zip(finding.arm['values'], finding.reference['values'], strict=True)
  return np.array([arm - reference for arm, reference in pairs if arm is not None and reference is not None])


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
  from matplotlib import ticker
  from matplotlib.figure import Figure

  size = len(names)
  off = ~np.eye(size, dtype=bool)
  shown = np.where(off, values, np.nan)
  limit = float(np.nanmax(np.abs(shown), initial=0)) or 1.0
  short = [name.partition('/')[2] or name for name in names]
  side = max(WIDTH_INCHES, 1.4 + INCHES_A_TASK * size)
  figure = Figure(figsize=(side, side * 1.02), layout='constrained')
  axes = figure.add_subplot()
  alpha = np.where(above, 1.0, FAINT)
  image = axes.imshow(shown, cmap='RdBu', vmin=-limit, vmax=limit, alpha=alpha, interpolation='nearest')
  text = {'fontsize': float(np.clip(100 / size, 6.5, 8.5)), 'color': INK, 'parse_math': False}
  labels = [name.replace('_', ' ') for name in short]
  axes.set_xticks(range(size), labels, rotation=90, **text)
  axes.set_yticks(range(size), labels, **text)
  axes.tick_params(length=0, pad=1.5)
  for spine in axes.spines.values():
    spine.set_visible(False)
  if size <= MAX_NUMBERS:
    for row, column in zip(*np.nonzero(np.isfinite(shown)), strict=True):
      dark = above[row, column] and abs(shown[row, column]) > 0.6 * limit
      number = f'{shown[row, column]:.2g}'.replace('-', '\N{MINUS SIGN}')
      axes.text(column, row, number, ha='center', va='center', fontsize=7, color='white' if dark else '#333333')
  axes.set_xlabel('target', fontsize=8.5, color=INK)
  axes.set_ylabel('source', fontsize=8.5, color=INK)
  bar = figure.colorbar(image, ax=axes, orientation='horizontal', shrink=0.7, aspect=30, pad=0.02)
  bar.locator = ticker.MaxNLocator(4, symmetric=True)
  bar.formatter = ticker.FormatStrFormatter('%g')
  bar.update_ticks()
  bar.set_label(label, fontsize=8.5, color=INK)
  bar.ax.tick_params(labelsize=7, colors=INK)
  bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
  return figure
