"""Charts of what runs logged: losses and metrics over steps, and what their task gradients looked like."""

from collections.abc import Sequence

from mtl_jax.reports import charts, page
from mtl_jax.reports.page import Block, Chart, Charts, Heading, Side, Text
from mtl_jax.reports.runs import Run, numbers, series
from mtl_jax.reports.scoreboard import kinds_of
from mtl_jax.tasks import KINDS, METRICS

MAX_CURVE_TASKS = 6
MAX_GRADIENT_PANELS = 12
# What `objective.log` logs, by the beginning of its key, and what the page calls it; in this order.
GRADIENTS = {
  'conflicting_pairs': 'Share of pairs of losses whose gradients conflict',
  'least_cosine': 'Least cosine of two gradients',
  'cosine/': 'Cosine',
  'weight/': 'Weight',
  'gradient_norm/': 'Gradient norm',
}


def curve_charts(runs: Sequence[Run], sides: Sequence[Side]) -> list[Block]:
  """Training loss and validation metric of each task over steps, of the first tasks."""
  kinds = kinds_of(run.evaluation for run in runs)
  shown = list(kinds)[:MAX_CURVE_TASKS]
  panels = []
  wanted = [(f'{task}: training loss', f'train/{task}/loss', None) for task in shown]
  main = {task: KINDS[kinds[task]].main_metric for task in shown}
  wanted += [(f'{task}: validation', f'val/{task}/{main[task]}', main[task]) for task in shown]
  if len(kinds) > len(shown):
    wanted.insert(0, ('all tasks: training loss', 'train/loss', None))
  order = {task: i for i, task in enumerate(shown)}
  wanted.sort(key=lambda item: order.get(item[0].rpartition(': ')[0], -1))
  for heading, key, metric in wanted:
    if not series(runs, key):
      continue
    phrase, percent = (METRICS[metric].phrase, METRICS[metric].percent) if metric else ('', False)
    panels.append(_panel(runs, f'{heading} {phrase}'.strip(), key, percent=percent))
  legend = [side for side, run in zip(sides, runs, strict=True) if run.log]
  return _section('Training curves', panels, legend, left_out=len(kinds) - len(shown))


def gradient_charts(runs: Sequence[Run], sides: Sequence[Side]) -> list[Block]:
  """Conflicts, cosines, weights and norms of task gradients over steps, of runs that logged them."""
  logged = dict.fromkeys(key for run in runs for line in run.log for key in line)
  wanted = [
    (f'{phrase}{": " * bool(name)}{name.replace("~", " and ")}', f'train/{kind}{name}')
    for kind, phrase in GRADIENTS.items()
    for name in (key.removeprefix(f'train/{kind}') for key in logged if key.startswith(f'train/{kind}'))
  ]
  panels = [_panel(runs, heading, key) for heading, key in wanted[:MAX_GRADIENT_PANELS]]
  note = (
    "Means over the steps between log lines. A weight is what the objective gave the loss's gradient; a pair conflicts "
    'where its cosine is below 0.'
  )
  return _section('Gradients of the losses', panels, sides, left_out=len(wanted) - len(panels), note=note)


def _section(
  heading: str, panels: Sequence[Chart], legend: Sequence[Side], *, left_out: int, note: str = ''
) -> list[Block]:
  """The charts under their heading, if there are any."""
  if not panels:
    return []
  body: list[Block] = [Heading(heading), *([Text(note, 'quiet')] if note else []), Charts(panels, legend)]
  return [*body, Text(f"{left_out} more are in the runs' metrics.jsonl.", 'quiet')] if left_out > 0 else body


def _panel(runs: Sequence[Run], heading: str, key: str, *, percent: bool = False) -> Chart:
  found = series(runs, key)
  ends = ', '.join(f'{name} ends at {values[-1]:.4g}' for name, (_, values) in found.items())
  figure = charts.curves(found, run_numbers=numbers(runs), percent=percent)
  return page.chart(heading, figure, f'{heading} over training steps: {ends}.')
