"""Charts of what was logged over training steps: losses, metrics, and what the gradients of the losses looked like."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mtl_jax.reports import charts, figures, page
from mtl_jax.reports.charts import Curve, Side
from mtl_jax.reports.page import Block, Chart, Charts, Fold, Heading, Text
from mtl_jax.tasks import Task

# The values that a side logged under a key.
CurveOf = Callable[[Side, str], Curve | None]

MAX_OPEN_PANELS = 8  # More charts than these are folded away.
MAX_GRADIENTS = 12
# What `objective.log` logs, by the beginning of its key, and what the page calls it; in this order.
GRADIENTS = {
  'conflicting_pairs': 'Share of pairs of losses whose gradients conflict',
  'least_cosine': 'Least cosine of two gradients',
  'cosine/': 'Cosine',
  'weight/': 'Weight',
  'gradient_norm/': 'Gradient norm',
}


def training(
  tasks: Sequence[Task], sides: Sequence[Side], curve_of: CurveOf, *, note: str, folder: Path | None = None
) -> list[Block]:
  """Training loss and main validation metric of each task; with a folder the charts also lie there."""
  wanted = []
  for task in tasks:
    wanted.append((f'{task.name}: training loss ↓', f'train/{task.name}/loss', 'loss'))
    wanted.append(
      (
        f'{task.name}: validation {figures.directed(task.main_metric)}',
        f'val/{task.name}/{task.main_metric}',
        task.main_metric,
      )
    )
  return _section('Training curves', note, _panels(wanted, sides, curve_of, folder=folder), sides)


def gradients(logged: Iterable[str], sides: Sequence[Side], curve_of: CurveOf) -> list[Block]:
  """Conflicts, cosines, weights and norms of the losses' gradients, of sides that logged them under these keys."""
  keys = [key.removeprefix('train/') for key in logged if key.startswith('train/')]
  wanted = [
    (f'{phrase}{": " * (key != kind)}{key.removeprefix(kind).replace("~", " and ")}', f'train/{key}', 'loss')
    for kind, phrase in GRADIENTS.items()
    for key in keys
    if key.startswith(kind)
  ]
  note = (
    "Means over the steps between log lines. A weight is what the objective gave the loss's gradient; a pair conflicts "
    'where its cosine is below 0.'
  )
  if len(wanted) > MAX_GRADIENTS:
    note += f" {len(wanted) - MAX_GRADIENTS} more are in the runs' metrics.jsonl."
  return _section('Gradients of the losses', note, _panels(wanted[:MAX_GRADIENTS], sides, curve_of), sides)


def _panels(
  wanted: Iterable[tuple[str, str, str]], sides: Sequence[Side], curve_of: CurveOf, *, folder: Path | None = None
) -> list[Chart]:
  """A chart for each heading, key and metric that some side has logged."""
  panels = []
  for heading, key, metric in wanted:
    lines = [(side, curve) for side in sides if (curve := curve_of(side, key))]
    if lines:
      ends = ', '.join(f'{side.name} ends at {figures.level(float(curve.values[-1]), metric)}' for side, curve in lines)
      figure = charts.curves(lines, percent=figures.metric(metric).percent)
      alt = f'{heading} over training steps: {ends}.'
      panels.append(page.chart(heading, figure, alt, folder=folder, name=f'curve-{key}', legend=sides))
  return panels


def _section(heading: str, note: str, panels: Sequence[Chart], sides: Sequence[Side]) -> list[Block]:
  """The charts under their heading, if there are any."""
  if not panels:
    return []
  body: list[Block] = [Heading(heading), Text(note, 'quiet'), Charts(panels[:MAX_OPEN_PANELS], sides)]
  if more := panels[MAX_OPEN_PANELS:]:
    body.append(Fold(f'{len(more)} more', [Charts(more)]))
  return body
