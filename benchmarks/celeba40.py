"""Every method in the protocol that papers compare in: CelebA's 40 attributes against 40 single-task models.

    python benchmarks/celeba40.py --workdir W --data data/celeba64 [--methods famo fairgrad] [--config.train.steps=300
    ...]

Runs the study of configs/celeba40_protocol.py, or what is left of it, and prints a table: Delta-m over the 40 F1 scores
with its interval over seeds and people, its median over attributes and that on average precision, all in per cent,
lower is better; the training time as a ratio to the plain sum; and the value that was published. Delta-m on F1 is led
by a few rare attributes. `--table` prints the table of a study that is done.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax import config as configs
from mtl_jax.studies import study

PROTOCOL = Path(__file__).parent.parent / 'configs' / 'celeba40_protocol.py'
# Delta-m on F1 in per cent, from the tables of FAMO, FairGrad, GO4Align and LDC-MTL (which trains at 1e-3, falling).
PUBLISHED = {
  'joint': 4.15,
  'scale_invariant': 7.20,
  'rlw': 1.46,
  'dwa': 3.20,
  'uncertainty': 3.23,
  'mgda': 14.85,
  'pcgrad': 3.17,
  'cagrad': 2.48,
  'imtl_g': 0.84,
  'nash_mtl': 2.84,
  'famo': 1.21,
  'fairgrad': 0.37,
  'go4align': 0.88,
  'ldc_mtl': -1.31,
}
SINGLE_F1 = (0.697, 0.691)  # Means over the 40 single-task models of FAMO's and of FairGrad's authors.
NOT_SOLVED = ' (inner solver does not converge at this rate)'


def main() -> None:
  parser = argparse.ArgumentParser(description='Every method in the protocol of CelebA-40.')
  parser.add_argument('--workdir', type=Path, required=True)
  parser.add_argument('--data', type=Path, help='a prepared set at 64x64')
  parser.add_argument('--methods', nargs='*', help='arms beside single and joint; all by default')
  parser.add_argument('--table', action='store_true', help='train nothing')
  options, rest = parser.parse_known_args()
  if options.table:
    found = json.loads((options.workdir / 'study.json').read_text())
  else:
    overrides = [f'data.dir={options.data}', *(one.removeprefix('--config.') for one in rest)]
    if options.methods is not None:
      overrides.append('study.arms=' + ','.join(['single', 'joint', *options.methods]))
    found = study.run(configs.load(PROTOCOL, overrides), options.workdir)
  print('\n'.join(table(found)))


def table(found: Mapping[str, Any]) -> list[str]:
  """Rows of Markdown, the best first."""
  arms = found['arms'][1:]
  compared = {arm: found['comparisons'][arm] if 'comparisons' in found else found for arm in arms}
  seconds = found['cost'][arms[0]]['seconds']
  f1 = {
    arm: sum(task['macro_f1'][arm]['mean'] for task in found['tasks'].values()) / len(found['tasks'])
    for arm in found['arms']
  }
  rows = [
    '| method | mean F1 | Δm F1, % (95 % over seeds, people) | median | Δm AP, % | median | time | published Δm F1 |',
    '|---|---|---|---|---|---|---|---|',
    f'| single | {f1[found["arms"][0]]:.3f} | 0 | 0 | 0 | 0 | {_ratio(found, found["arms"][0], seconds)} | '
    f'mean F1 {SINGLE_F1[0]}, {SINGLE_F1[1]} |',
  ]
  scored = {arm: one['delta_m']['per_metric'] for arm, one in compared.items()}
  for arm in sorted(arms, key=lambda arm: scored[arm]['f1']['mean'] or 0.0):
    on_f1, on_ap = scored[arm]['f1'], scored[arm]['ap']
    cells = [
      arm + (NOT_SOLVED if arm == 'sdmgrad' else ''),
      f'{f1[arm]:.3f}',
      _number(on_f1['mean']) + _span(on_f1['ci95_people'] or on_f1['ci95']),
      _number(on_f1['median']),
      _number(on_ap['mean']) + _span(on_ap['ci95_people'] or on_ap['ci95']),
      _number(on_ap['median']),
      _ratio(found, arm, seconds),
      _number(PUBLISHED.get(arm)),
    ]
    rows.append('| ' + ' | '.join(cells) + ' |')
  return rows


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.2f}'


def _span(interval: list[float] | None) -> str:
  return '' if interval is None else f' ({_number(interval[0])} to {_number(interval[1])})'


def _ratio(found: Mapping[str, Any], arm: str, seconds: float) -> str:
  return f'{found["cost"][arm]["seconds"] / seconds:.2f}' if seconds else ''


if __name__ == '__main__':
  main()
