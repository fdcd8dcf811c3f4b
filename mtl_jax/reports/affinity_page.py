"""The page of an affinity run: which tasks to train together, then the maps, from `affinity.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.platform import address
from mtl_jax.reports import charts, page
from mtl_jax.reports.figures import MISSING, name, share
from mtl_jax.reports.page import Block, Charts, Heading, Text, folded, table
from mtl_jax.run import workdir

MAPS = {
  'affinity': ('Affinity: what a step on the source does to the loss of the target', 'share of the loss taken off'),
  'cosine': ('Cosine of the gradients at the shared parameters', 'cosine'),
  'transfer': ("Transfer: the source's frozen features for the target", "share of the own features' loss taken off"),
}
MOST_PARTNERS = 3
MAX_LISTED = 12  # Of more tasks, a group that holds over half of them is counted in the table, not listed.


def write_report(found: Mapping[str, Any], directory: Path) -> None:
  """Writes `report.html`, and the maps into `plots/`, from the content of `affinity.json` and from `config.json`."""
  looks, transfer = found['looks'], found['transfer']
  more = {
    'looks': f'{looks["count"]}, one every {looks["every_steps"]} steps',
    'looking, s': f'{looks["seconds"]["all"]:.1f}; {looks["seconds"]["each"]:.3g} each',
    **({'transfer, s': f'{transfer["seconds"]:.1f}; {transfer["seconds_each"]:.3g} a source'} if transfer else {}),
  }
  body = [*groups(found), *_maps(found, directory / 'plots'), *_partners(found)]
  body += page.provenance(found, workdir.read(directory)[0].to_dict(), section='affinity', more=more)
  subtitle = (
    f'{address.name(directory)}: {looks["count"]} looks along {looks["steps"]} steps of joint '
    f'training; finished {found.get("date", MISSING)}'
  )
  page.write(directory / 'report.html', body, title=f'Affinity between {len(found["tasks"])} losses', subtitle=subtitle)


def groups(found: Mapping[str, Any]) -> list[Block]:
  """The division suggested, and that of every number of networks."""
  chosen, size = found['groupings'][-1], found['looks']['step_size']
  networks = f'{chosen["networks"]} network{"s" * (chosen["networks"] != 1)}'
  groups = [
    (str(number), _listed(group), MISSING if sure is None else f'{sure:.0%}')
    for number, (group, sure) in enumerate(zip(chosen['groups'], chosen['sure'], strict=True), 1)
  ]
  method = (
    'All divisions were looked at.'
    if chosen['method'] == 'exhaustive'
    else 'Found by local search: no single move or swap of tasks betters it, but another division might.'
  )
  most = len(found['tasks']) // 2 if len(found['tasks']) > MAX_LISTED else len(found['tasks'])
  rows = []
  for row in found['groupings']:
    other = 'all' if len(row['groups']) == 1 else 'the other'
    names = ' | '.join(_listed(group) if len(group) <= most else f'{other} {len(group)}' for group in row['groups'])
    rows.append((str(row['networks']), share(row['expected_gain']), share(row['held_out_gain']), names))
  body: list[Block] = [
    Heading(f'Which to train together, with at most {networks}'),
    table('Groups', ('Network', 'Tasks', 'Still together in resamples'), groups, style='wrap'),
    Text(
      "Expected: the mean share of a task's loss that a step on the others of its group takes off; held out: chosen on "
      f'one half of the looks, measured on the other. All in one network: {share(found["together"])}. Each alone: 0. '
      f'{method} An affinity is of single steps of {size or "the learning rate of the run"}; it orders divisions, and '
      'does not say what a finished model will score. That takes training the groups: mtl-jax study.',
      'quiet',
    ),
  ]
  if found['overshot']:
    body.append(
      Text(
        f'The look-ahead step is too long for {_listed(found["overshot"])}: it raises their own loss, so their rows '
        'say nothing. Take a shorter one with --config.affinity.step_size, in another workdir.',
        'note',
      )
    )
  columns = ('At most', 'Expected', 'Held out', 'Groups')
  return [*body, Heading('By number of networks'), table('Groups by number of networks', columns, rows, style='wrap')]


def _maps(found: Mapping[str, Any], folder: Path) -> list[Block]:
  """The heat maps there are; each also lies in the folder as PNG and SVG."""
  order = [found['tasks'].index(task) for task in found['order']]
  off = ~np.eye(len(order), dtype=bool)
  body: list[Block] = [
    Heading('Maps'),
    Text(
      'A row is a source, a column a target; blue helps, red hurts. Like tasks (by the cosine of their gradients) are '
      'neighbours. Faint entries are within noise: t-tests over looks (of transfer: over people), at a false discovery '
      'rate of 5%. Noise is that of the batches along this one run; another seed may differ by more. The diagonal is '
      'left out.',
      'quiet',
    ),
  ]
  for kind, (heading, label) in MAPS.items():
    if (matrix := found[kind]) is None:
      continue
    values, above = (np.array(matrix[part], float)[np.ix_(order, order)] for part in ('mean', 'above_noise'))
    above = above.astype(bool)
    figure = charts.heat_map(values, found['order'], above=above, label=label)
    half = matrix.get('split_half')
    said = (
      f'{(above & off).sum()} of {(np.isfinite(values) & off).sum()} entries are above noise, '
      f'{(above & off & (np.nan_to_num(values) < 0)).sum()} of them below 0'
      + (f'; split-half reliability {half:.3f}' if half is not None else '')
    )
    alt, style = f'{heading}: {len(order)} by {len(order)} tasks', 'map wide' if len(order) > MAX_LISTED else 'map'
    body += [Charts([page.chart(heading, figure, alt, folder=folder, name=kind)], style=style), Text(said, 'quiet')]
  return body


def _partners(found: Mapping[str, Any]) -> list[Block]:
  """The sources above noise that help and hurt each task most, and the worth of untrained features."""
  values, above = np.array(found['affinity']['mean'], float), np.array(found['affinity']['above_noise'], bool)
  tasks, random, rows = found['tasks'], found['transfer'] and found['transfer']['random'], []
  for j, task in enumerate(tasks):
    ranked = sorted((i for i in range(len(values)) if i != j and above[i, j]), key=lambda i, j=j: -values[i, j])
    sides = [i for i in ranked if values[i, j] > 0], [i for i in ranked[::-1] if values[i, j] < 0]
    cells = [', '.join(f'{_short(tasks[i])} ({values[i, j]:+.2g})' for i in side[:MOST_PARTNERS]) for side in sides]
    rows.append((_short(task), *(cell or MISSING for cell in cells), *([share(random[j])] if random else [])))
  columns = ('Target', 'Helped by', 'Hurt by', *(['Untrained features'] if random else []))
  said = "Sources above noise, with the share of the target's loss that one step on them takes off."
  if random:
    said += (
      ' Untrained features: the loss of heads on features of the first weights, less that on the own features, as a '
      "share of the latter; where it is near 0, a task needs no features of its own, and the transfer map's column "
      'says little.'
    )
  return [
    Heading('Strongest partners of each task'),
    Text(said, 'quiet'),
    folded(f'{len(rows)} targets', table('Partners', columns, rows, style='wrap')),
  ]


def _short(task: str) -> str:
  """A task's name without its group."""
  return name(task.partition('/')[2] or task)


def _listed(tasks: Sequence[str]) -> str:
  return ', '.join(map(_short, tasks))
