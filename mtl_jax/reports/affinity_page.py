"""The page of an affinity run: which tasks to train together, then the maps, from `affinity.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.config import flat
from mtl_jax.platform import address
from mtl_jax.reports import charts, page
from mtl_jax.reports.page import Block, Card, Cards, Charts, Fold, Heading, Pairs, Text, folded, table
from mtl_jax.reports.runs import read_json
from mtl_jax.reports.scoreboard import MISSING
from mtl_jax.run import workdir

MAPS = {
  'affinity': ('Affinity: what a step on the source does to the loss of the target', 'share of the loss taken off'),
  'cosine': ('Cosine of the gradients at the shared parameters', 'cosine'),
  'transfer': ("Transfer: the source's frozen features for the target", "share of the own features' loss taken off"),
}
KEYS = ('tasks', 'order', 'affinity', 'cosine', 'transfer', 'groupings', 'looks')  # Of a file that is whole.
MOST_PARTNERS = 3
MAX_LISTED = 12  # Of more tasks, a group that holds over half of them is counted in the table, not listed.


def is_affinity(directory: Path) -> bool:
  """True for a working directory that holds an affinity run, finished or not."""
  return (directory / 'affinity.json').is_file() or (directory / 'looks').is_dir()


def write_report(directory: Path) -> None:
  """Writes `report.html`, and the maps into `plots/`, from `affinity.json` and `config.json`.

  Raises:
    UserError: for a file that is missing or damaged.
  """
  make = f'mtl-jax affinity --config F.py --workdir {directory}'
  found = read_json(directory / 'affinity.json', make=make, keys=KEYS)
  config = workdir.read(directory)[0].to_dict()
  looks = found['looks']
  body = [*_groups(found), *_maps(found, directory / 'plots'), *_partners(found), *_provenance(found, config)]
  subtitle = (
    f'Affinity between {len(found["tasks"])} losses; {looks["count"]} looks along {looks["steps"]} steps of joint '
    f'training; finished {found.get("date", MISSING)}'
  )
  page.write(directory / 'report.html', body, title=address.name(directory), subtitle=subtitle)


def _groups(found: Mapping[str, Any]) -> list[Block]:
  """The division suggested, and that of every number of networks."""
  chosen, size = found['groupings'][-1], found['looks']['step_size']
  several = len(chosen['groups']) > 1
  said = [
    f'{number}. {_listed(group)}'
    + (' (alone)' if len(group) == 1 else f' (still together in {sure:.0%} of resamples)' if several else '')
    for number, (group, sure) in enumerate(zip(chosen['groups'], chosen['sure'], strict=True), 1)
  ]
  step = size or 'the learning rate of the run'
  method = (
    'All divisions were looked at.'
    if chosen['method'] == 'exhaustive'
    else 'Found by local search: no single move or swap of tasks betters it, but another division might.'
  )
  detail = (
    'Expected: each step on the others of its group takes '
    f"{_share(chosen['expected_gain'])} of a task's loss off, on average; chosen on one half of the looks and measured "
    f'on the other, {_share(chosen["held_out_gain"])}. All in one network: {_share(found["together"])}. Each alone: 0. '
    f'{method} An affinity is of single steps of {step}; it orders divisions, and does not say '
    'what a finished model will score. That takes training the groups: mtl-jax study.'
  )
  networks = f'{chosen["networks"]} network{"s" * (chosen["networks"] != 1)}'
  most = len(found['tasks']) // 2 if len(found['tasks']) > MAX_LISTED else len(found['tasks'])
  rows = []
  for row in found['groupings']:
    other = 'all' if len(row['groups']) == 1 else 'the other'
    names = ' | '.join(_listed(group) if len(group) <= most else f'{other} {len(group)}' for group in row['groups'])
    rows.append((str(row['networks']), _share(row['expected_gain']), _share(row['held_out_gain']), names))
  body: list[Block] = [Cards([Card(f'Which to train together, with at most {networks}', said, detail)])]
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
  order = [found['tasks'].index(name) for name in found['order']]
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
    matrix = found[kind]
    if matrix is None:
      continue
    values, above = (_array(matrix[part])[np.ix_(order, order)] for part in ('mean', 'above_noise'))
    above = above.astype(bool)
    figure = charts.heat_map(values, found['order'], above=above, label=label)
    alt = f'{heading}: {len(order)} by {len(order)} tasks'
    half = matrix.get('split_half')
    said = (
      f'{(above & off).sum()} of {(np.isfinite(values) & off).sum()} entries are above noise, '
      f'{(above & off & (np.nan_to_num(values) < 0)).sum()} of them below 0'
      + (f'; split-half reliability {half:.3f}' if half is not None else '')
    )
    style = 'map wide' if len(order) > MAX_LISTED else 'map'
    body += [
      Charts([page.chart(heading, figure, alt, folder=folder, name=kind)], style=style),
      Text(said, 'quiet'),
    ]
  return body


def _partners(found: Mapping[str, Any]) -> list[Block]:
  """The sources above noise that help and hurt each task most, and the worth of untrained features."""
  values, above = _array(found['affinity']['mean']), _array(found['affinity']['above_noise']).astype(bool)
  names, rows = found['tasks'], []
  for j, name in enumerate(names):
    ranked = sorted((i for i in range(len(values)) if i != j and above[i, j]), key=lambda i, j=j: -values[i, j])
    sides = [i for i in ranked if values[i, j] > 0], [i for i in ranked[::-1] if values[i, j] < 0]
    cells = [', '.join(f'{_short(names[i])} ({_signed(values[i, j])})' for i in side[:MOST_PARTNERS]) for side in sides]
    rows.append((_short(name), *(cell or MISSING for cell in cells)))
  body: list[Block] = [
    Heading('Strongest partners of each task'),
    Text("Sources above noise, with the share of the target's loss that one step on them takes off.", 'quiet'),
    folded(f'{len(rows)} targets', table('Partners', ('Target', 'Helped by', 'Hurt by'), rows, style='wrap')),
  ]
  if found['transfer']:
    random = [(_short(name), _share(value)) for name, value in zip(names, found['transfer']['random'], strict=True)]
    body += [
      Heading('Features of an untrained network'),
      Text(
        "Beside the transfer map: the loss of heads on features of the first weights, less that on each task's own "
        "features, as a share of the latter. Where this is near 0, a task needs no features of its own, and the map's "
        'column says little.',
        'quiet',
      ),
      Fold(f'{len(names)} targets', [table('Untrained features', ('Target', 'Untrained features'), random)]),
    ]
  return body


def _provenance(found: Mapping[str, Any], config: Mapping[str, Any]) -> list[Block]:
  """Data, versions, device, time and configuration."""
  looks, transfer, data, fields = found['looks'], found['transfer'], found.get('data', {}), flat(config)
  own = [name for name in (*page.FIELDS, 'model.weights', 'model.freeze', 'objective.grain') if name in fields]
  own += [name for name in fields if name.startswith('affinity.')]
  facts = {
    'data': str(data.get('directory', '')),
    'checksum': str(data.get('checksum', '')),
    'images': ', '.join(f'{name} {count}' for name, count in data.get('splits', {}).items()),
    'looks': f'{looks["count"]}, one every {looks["every_steps"]} steps',
    'looking, s': f'{looks["seconds"]["all"]:.1f}; {looks["seconds"]["each"]:.3g} each',
    **({'transfer, s': f'{transfer["seconds"]:.1f}; {transfer["seconds_each"]:.3g} a source'} if transfer else {}),
    **found.get('versions', {}),
    'device': str(found.get('device', '')),
    'date': str(found.get('date', '')),
  }
  pairs = Pairs({name: page.field_text(fields[name]) for name in own if fields[name] not in ((), '')})
  return [
    Heading('Data, versions and configuration'),
    Pairs(facts),
    Fold('Configuration', [pairs, page.configuration(config)]),
  ]


def _array(values: Any) -> np.ndarray:
  """A matrix of the JSON, NaN where it is not known."""
  return np.array(values, float)


def _short(name: str) -> str:
  """A task's name without its group."""
  return (name.partition('/')[2] or name).replace('_', ' ')


def _listed(names: Sequence[str]) -> str:
  return ', '.join(map(_short, names))


def _signed(value: float | None) -> str:
  return MISSING if value is None else f'{value:+.2g}'.replace('-', '\N{MINUS SIGN}')


def _share(value: float | None) -> str:
  """A share of a loss, in per cent."""
  return MISSING if value is None else f'{_signed(100 * value)}%'
