"""Heat maps of sources and targets, in an order in which like tasks are neighbours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mtl_jax.report.charts import INK, WIDTH_INCHES

INCHES_A_TASK = 0.14  # Room for its name; maps of many tasks are wider than others, and scroll on a phone.
MAX_NUMBERS = 8  # Maps of up to so many tasks have their numbers written into them.
FAINT = 0.3  # How strongly entries within noise are drawn.


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
