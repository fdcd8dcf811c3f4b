"""The study's own charts: where each difference lies, with its interval and its seeds."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.platform import atomic_write
from mtl_jax.report.charts import INK, RUN_COLOURS, WIDTH_INCHES, quiet_axes
from mtl_jax.study.words import Finding, named

MARKERS = 'Dosv^p'


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


def save(figure: Any, folder: Path, name: str) -> None:
  """Writes a figure as PNG and SVG, in the light page's colours, named after what it shows."""
  stem = re.sub(r'[^\w.-]+', '_', name)
  for kind in ('png', 'svg'):
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=160, facecolor='white')
    atomic_write.write(folder / f'{stem}.{kind}', content.getvalue())
    figure.set_layout_engine('none')  # It is laid out now; to do so again for every format takes most of the time.
