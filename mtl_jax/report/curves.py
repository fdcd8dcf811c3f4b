"""Charts of what runs logged: losses and metrics over steps, and what their task gradients looked like."""

from collections.abc import Sequence
from typing import Any

from mtl_jax.report import charts, template
from mtl_jax.report.runs import Run, numbers, series
from mtl_jax.report.scoreboard import kinds_of
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


def curve_charts(runs: Sequence[Run]) -> dict[str, Any]:
  """Training loss and validation metric of each task over steps, and the tasks left out for their number."""
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
  return {'runs': [run.name for run in runs if run.log], 'panels': panels, 'left_out': len(kinds) - len(shown)}


def gradient_charts(runs: Sequence[Run]) -> dict[str, Any]:
  """Conflicts, cosines, weights and norms of task gradients over steps, of runs that logged them."""
  logged = dict.fromkeys(key for run in runs for line in run.log for key in line)
  wanted = [
    (f'{phrase}{": " * bool(name)}{name.replace("~", " and ")}', f'train/{kind}{name}')
    for kind, phrase in GRADIENTS.items()
    for name in (key.removeprefix(f'train/{kind}') for key in logged if key.startswith(f'train/{kind}'))
  ]
  panels = [_panel(runs, heading, key) for heading, key in wanted[:MAX_GRADIENT_PANELS]]
  return {'panels': panels, 'left_out': len(wanted) - len(panels)}


def _panel(runs: Sequence[Run], heading: str, key: str, *, percent: bool = False) -> dict[str, Any]:
  found = series(runs, key)
  ends = ', '.join(f'{name} ends at {values[-1]:.4g}' for name, (_, values) in found.items())
  figure = charts.curves(found, run_numbers=numbers(runs), percent=percent)
  return {'heading': heading, 'svg': template.drawing(figure), 'alt': f'{heading} over training steps: {ends}.'}
