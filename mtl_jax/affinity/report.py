"""The page of an affinity run: which tasks to train together first, then the maps, then what it all was made of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.affinity import plots
from mtl_jax.platform import address, atomic_write
from mtl_jax.report import template
from mtl_jax.report.page import FIELDS, field_text
from mtl_jax.report.runs import flat, read_json
from mtl_jax.run import workdir
from mtl_jax.study.plots import save

MAPS = {
  'affinity': ('Affinity: what a step on the source does to the loss of the target', 'share of the loss taken off'),
  'cosine': ('Cosine of the gradients at the shared parameters', 'cosine'),
  'transfer': ("Transfer: the source's frozen features for the target", "share of the own features' loss taken off"),
}
KEYS = ('tasks', 'order', 'affinity', 'cosine', 'transfer', 'groupings', 'looks')  # Of a file that is whole.
MOST_PARTNERS = 3
MAX_LISTED = 12  # Of more tasks, a group that holds over half of them is counted in the table, not listed.


def is_affinity(directory: Path) -> bool:
  """Whether a working directory holds an affinity run, finished or not."""
  return (directory / 'affinity.json').is_file() or (directory / 'looks').is_dir()


def write_report(directory: Path) -> None:
  """Writes `report.html`, and the maps into `plots/`, from `affinity.json` and `config.json`.

  Raises:
    UserError: for a file that is missing or damaged.
  """
  found = read_json(
    directory / 'affinity.json', make=f'mtl-jax affinity --config F.py --workdir {directory}', keys=KEYS
  )
  config, _ = workdir.read(directory)
  fields = flat(config.to_dict())
  own = [name for name in (*FIELDS, 'model.weights', 'model.freeze', 'objective.grain') if name in fields]
  own += [name for name in fields if name.startswith('affinity.')]
  page = template.render(
    'affinity.html',
    title=address.name(directory),
    found=found,
    chosen=found['groupings'][-1],
    maps=draw_maps(found, directory / 'plots'),
    partners=partners(found),
    max_listed=len(found['tasks']) // 2 if len(found['tasks']) > MAX_LISTED else len(found['tasks']),
    short=short,
    signed=signed,
    fields={name: field_text(fields[name]) for name in own if fields[name] not in ((), '')},
    facts=facts(found),
    config=json.dumps(config.to_dict(), indent=2, sort_keys=True, default=str),
  )
  atomic_write.write(directory / 'report.html', page)


def draw_maps(found: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
  """The heat maps there are, for the page; each also lies in the folder as PNG and SVG."""
  order = [found['tasks'].index(name) for name in found['order']]
  result = []
  for kind, (heading, label) in MAPS.items():
    matrix = found[kind]
    if matrix is None:
      continue
    values, above = (array(matrix[part])[np.ix_(order, order)] for part in ('mean', 'above_noise'))
    figure = plots.heat_map(values, found['order'], above=above.astype(bool), label=label)
    svg = template.drawing(figure)
    save(figure, folder, kind)
    off = ~np.eye(len(order), dtype=bool)
    known = np.isfinite(values) & off
    result.append(
      {
        'heading': heading,
        'svg': svg,
        'alt': f'{heading}: {len(order)} by {len(order)} tasks',
        'above': int((above.astype(bool) & off).sum()),
        'negative': int((above.astype(bool) & off & (np.nan_to_num(values) < 0)).sum()),
        'entries': int(known.sum()),
        'split_half': matrix.get('split_half'),
      }
    )
  return result


def partners(found: Mapping[str, Any]) -> list[dict[str, Any]]:
  """For each task the sources that help and hurt it most, of those above noise."""
  values, above = array(found['affinity']['mean']), array(found['affinity']['above_noise']).astype(bool)
  rows = []
  for j, name in enumerate(found['tasks']):
    ranked = sorted((i for i in range(len(values)) if i != j and above[i, j]), key=lambda i, j=j: -values[i, j])
    helped = [i for i in ranked if values[i, j] > 0][:MOST_PARTNERS]
    hurt = [i for i in ranked[::-1] if values[i, j] < 0][:MOST_PARTNERS]
    rows.append(
      {'name': name}
      | {
        side: [f'{short(found["tasks"][i])} ({signed(values[i, j])})' for i in those]
        for side, those in (('helped', helped), ('hurt', hurt))
      }
    )
  return rows


def facts(found: Mapping[str, Any]) -> dict[str, str]:
  """Data, versions, device, time."""
  looks, transfer = found['looks'], found['transfer']
  data = found.get('data', {})
  return {
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


def array(values: Any) -> np.ndarray:
  """A matrix of the JSON, NaN where it is not known."""
  return np.array(values, float)


def short(name: str) -> str:
  """A task's name as a reader wants it."""
  return (name.partition('/')[2] or name).replace('_', ' ')


def signed(value: float | None) -> str:
  """A small number with its sign."""
  return '—' if value is None else f'{value:+.2g}'.replace('-', '\N{MINUS SIGN}')
