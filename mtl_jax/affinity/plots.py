"""Heat maps of sources and targets, in an order in which like tasks are neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mtl_jax.report.charts import INK, WIDTH_INCHES

MAX_NUMBERS = 8  # Maps of up to so many tasks have their numbers written into them.
FAINT = 0.3  # How strongly entries within noise are drawn.


def heat_map(
  values: Float[np.ndarray, 'k k'],
  names: Sequence[str],
  *,
  above: Bool[np.ndarray, 'k k'],
  label: str,
  keep_diagonal: bool = False,
) -> Any:
  """A figure with a row for each source and a column for each target; entries within noise are faint.

  Args:
    values: NaN leaves a gap.
    names: of the tasks, in the order of rows and columns.
    above: which entries are above noise.
    label: of the colours.
    keep_diagonal: draw what a task is to itself; the other entries alone set the colours' range.
  """
  from matplotlib.figure import Figure

  size = len(names)
  off = ~np.eye(size, dtype=bool)
  shown = np.where(off | keep_diagonal, values, np.nan)
  limit = float(np.nanmax(np.abs(np.where(off, values, np.nan)), initial=0)) or 1.0
  short = [name.partition('/')[2] or name for name in names]
  figure = Figure(figsize=(WIDTH_INCHES, WIDTH_INCHES * 1.02), layout='constrained')
  axes = figure.add_subplot()
  alpha = np.where(above, 1.0, FAINT)
  image = axes.imshow(shown, cmap='RdBu', vmin=-limit, vmax=limit, alpha=alpha, interpolation='nearest')
  font = float(np.clip(170 / size, 4.2, 8.5))
  text = {'fontsize': font, 'color': INK, 'parse_math': False}
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
  bar.set_label(label, fontsize=8.5, color=INK)
  bar.ax.tick_params(labelsize=7, colors=INK)
  bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
  return figure
