"""The page of a sweep: its best, the front of the tasks, how the best was confirmed, all trials, and the costs."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.platform import address
from mtl_jax.reports import charts, figures, page, verdicts
from mtl_jax.reports.charts import Point, Side
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Block, Cell, Charts, Column, Fold, Heading, Pairs, Row, Table, Text, table
from mtl_jax.run import workdir
from mtl_jax.studies import space
from mtl_jax.sweeps.front import nondominated

SIDES = {
  'weights': Side('fixed weights', 0),
  'method': Side('methods', 1),
  'best': Side('best', 2),
  'base': Side('as configured', -1),
}
MAX_CHARTS = 6


def write_report(found: Mapping[str, Any], directory: Path) -> None:
  """Writes `report.html`, and the charts into `plots/`, from the content of `sweep.json` and from `config.json`."""
  plots, config = directory / 'plots', workdir.read(directory)[0]
  sides = [Side(name, number) for number, name in enumerate(found['best']['confirmed']['arms'], -1)]
  body = best(found)
  if found['front']:
    heading, *tables = front(found)
    body += [heading, *_front_charts(found['front'], plots), *tables]
  body += verdicts.section(found['best']['confirmed'], sides[1], sides[0], plots)
  body += [*_searched(found, plots), *_trials(found), *_cost(found['cost'])]
  body += page.provenance(found, config.to_dict(), section='sweep', more={})
  num = sum(found['cost']['trials'].values())
  subtitle = (
    f'{num} trials; confirmed with {len(found["best"]["confirmed"]["seeds"])} seeds; {found.get("date", MISSING)}'
  )
  page.write(directory / 'report.html', body, title=f'Sweep: {address.name(directory)}', subtitle=subtitle)


def best(found: Mapping[str, Any]) -> list[Block]:
  """The best trial, and the rule that it is best by."""
  own = found['best']
  body: list[Block] = [
    Heading('The best'),
    table(
      'Best',
      ('Field', 'Value'),
      [(field, page.field_text(value)) for field, value in own['values'].items()],
      style='wrap',
    ),
    Text(
      f'By the rule: {own["rule"]}. Written as best.py, a configuration to train with. The figures below are of other '
      'seeds than those of the search, on the test split; what the search itself scored says too much.',
      'quiet',
    ),
  ]
  if found['diverged_arms']:
    body.append(Text(f'Diverged with every seed, and left out: {", ".join(found["diverged_arms"])}.', 'note'))
  if own['edges']:
    names = ', '.join(own['edges'])
    body.append(Text(f'{names}: best at an end of what was searched; widen it.', 'note'))
  return body


def front(found: Mapping[str, Any]) -> list[Block]:
  """Every arm's gains, the places of methods, and the hypervolumes."""
  drawn = found['front']
  goals = {goal['name']: _said(goal) for goal in drawn['goals']}
  heads = [Column('Arm', 'text'), *(Column(f'{said}, %', 'number') for said in goals.values())]
  heads += [Column(text) for text in ('Against the front', 'Gap, %', 'Adjusted p')] + [Column('Training, s', 'number')]
  rows, others = [], [one for one in drawn['points'] if one['kind'] in ('best', 'base')]
  for point in drawn['points']:
    place = drawn['positions'].get(point['arm'])
    gains = [point['gains'][goal] for goal in goals]
    shown = [MISSING] * 3
    if place:
      shown = [place['position'], figures.signed(place['gap']['mean'], 2), figures.p_text(place['p_adjusted'])]
    cells = [Cell(_gain(gain), value=gain['mean']) for gain in gains]
    cells += [*map(Cell, shown), Cell(f'{point["seconds"]:.3g}', value=point['seconds'])]
    note = space.in_words(point['values'], named=True)
    if point['kind'] == 'weights':
      note += ''.join(f'; the same as {one["arm"]}' for one in others if one['values'] == point['values'])
    rows.append(Row(point['arm'], cells, note=note))
  volumes = [
    (name, _volume(own['of_single']), _volume(own['beyond_single'])) for name, own in drawn['hypervolume'].items()
  ]
  return [
    Heading('The front'),
    Table('Front', heads, rows, sortable=True),
    Text(
      'Gains are over single-task models, in per cent of what these score on the test split, with 95% intervals over '
      f'{drawn["num_seeds"]} seeds. A method is above the front of fixed weights where it is beyond it even with '
      'straight lines between its points, below where one of its points is better in every goal; the gap says by how '
      'much, below 0: beyond. Tested over seeds, p-values adjusted over methods (Holm); without evidence at 5% it '
      'counts as on the front.',
      'quiet',
    ),
    table('Hypervolume', ('Hypervolume', 'of what single-task models have', 'beyond them'), volumes),
    Text(
      'Of all single-task models together it is 1; beyond them it is 0 where no point betters all of them. Of the mean '
      'points over seeds, with jackknife intervals.',
      'quiet',
    ),
  ]


def _said(goal: Mapping[str, Any]) -> str:
  """A goal's gain in words."""
  return f'{figures.name(goal["name"])}: gain in {figures.metric(goal["metric"]).phrase}'


def _gain(gain: Mapping[str, Any]) -> str:
  """A gain in per cent, with its interval."""
  interval = f' ({" to ".join(figures.signed(end, 2) for end in gain["ci95"])})' if gain['ci95'] else ''
  return figures.signed(gain['mean'], 2) + interval


def _volume(volume: Mapping[str, Any]) -> str:
  mean, *ends = map(figures.number, (volume['mean'], *(volume['ci95'] or ())))
  return f'{mean} ({" to ".join(ends)})' if ends else mean


def _front_charts(drawn: Mapping[str, Any], plots: Path) -> list[Block]:
  """A chart for each pair of goals, in gains."""
  found, present = [], [side for kind, side in SIDES.items() if any(one['kind'] == kind for one in drawn['points'])]
  for x, y in itertools.combinations(drawn['goals'], 2):
    points = [_point(one, x, y) for one in drawn['points']]
    fixed = [point for point in points if point.side == SIDES['weights']]
    on = nondominated(np.array([(one.x, one.y) for one in fixed])) if fixed else []
    names = [f'{_said(goal)} over single-task, % ({better} is better)' for goal, better in ((x, 'right'), (y, 'up'))]
    joined = [point for point, kept in zip(fixed, on, strict=True) if kept]
    figure = charts.scatter(points, names=names, joined=joined, origin='single-task')
    heading = f'{figures.name(x["name"])} against {figures.name(y["name"])}'
    alt = f'Gains over single-task models, {heading}; the figures are in the table.'
    beside = {'folder': plots, 'name': f'front-{x["name"]}-{y["name"]}', 'legend': present}
    found.append(page.chart(heading, figure, alt, **beside))
  note = (
    'Up and right is better. Thin lines are 95% intervals over seeds; the thick one is the front of fixed weights, '
    'through those that no other betters in both goals. Beside a point its method, or its weights. Touch a point to '
    'read it.'
  )
  more = [Fold(f'{len(found) - MAX_CHARTS} more', [Charts(found[MAX_CHARTS:])])] if len(found) > MAX_CHARTS else []
  return [Charts(found[:MAX_CHARTS], present), Text(note, 'quiet'), *more]


def _point(arm: Mapping[str, Any], x: Mapping[str, Any], y: Mapping[str, Any]) -> Point:
  """An arm's gains in two goals, labelled with its method or with its weights of the two."""
  gains = [arm['gains'][goal['name']] for goal in (x, y)]
  weights = [arm['values'].get(f'objective.weights.{goal["name"]}') for goal in (x, y)]
  label = arm['arm'] if arm['kind'] == 'method' else ''
  if arm['kind'] == 'weights' and None not in weights:
    label = ' : '.join(f'{weight:.2g}' for weight in weights)
  said = ', '.join(f'{goal["name"]} {_gain(gain)} %' for goal, gain in zip((x, y), gains, strict=True))
  return Point(
    SIDES[arm['kind']],
    *(gain['mean'] for gain in gains),
    intervals=tuple(gain['ci95'] for gain in gains),
    label=label,
    says=f'{arm["arm"]}: {said}; {space.in_words(arm["values"], named=True)}',
  )


def _searched(found: Mapping[str, Any], plots: Path) -> list[Block]:
  """The score over each field that has numbers."""
  trials = [
    one for one in found['trials'] if one['program'] == found['trials'][0]['program'] and one['score'] is not None
  ]
  side, drawn = Side('trials', 0), []
  for field in trials[0]['values'] if trials else ():
    values = [one['values'][field] for one in trials]
    if not all(type(value) in (int, float) for value in values) or len(set(values)) < 3:
      continue
    points = [
      Point(
        side,
        float(value),
        one['score'],
        says=f'{figures.number(one["score"])}: {space.in_words(one["values"], named=True)}',
      )
      for value, one in zip(values, trials, strict=True)
    ]
    log = min(values) > 0 and max(values) >= 10 * min(values)
    joined = points if len(trials[0]['values']) == 1 else ()
    figure = charts.scatter(points, names=(field, 'score on validation (up is better)'), joined=joined, log=log)
    alt = f'The score of trials over {field}; the figures are in the table.'
    drawn.append(page.chart(field, figure, alt, folder=plots, name=f'score-{field}'))
  note = 'Trials that diverged or were given up are left out. Touch a point to read it.'
  return [Heading('Scores of the search'), Charts(drawn[:MAX_CHARTS]), Text(note, 'quiet')] if drawn else []


def _trials(found: Mapping[str, Any]) -> list[Block]:
  """All trials, those of a program after another."""
  heads = [Column('Trial', 'text'), Column('Score', 'number'), Column('Goals'), Column('Seconds', 'number')]
  by_program: dict[str, list[Row]] = {}
  for one in found['trials']:
    score = figures.number(one['score']) if one['score'] is not None else _end(one)
    goals = ', '.join(f'{goal} {figures.number(value)}' for goal, value in one['goals'].items() if value is not None)
    cells = [Cell(score, value=one['score']), Cell(goals), Cell(f'{one["seconds"]:.3g}', value=one['seconds'])]
    row = Row(str(one['trial']), cells, note=space.in_words(one['values'], named=True))
    by_program.setdefault(one['program'], []).append(row)
  folds = [
    Fold(f'{program}: {len(rows)} trials', [Table(program, heads, rows, sortable=True)])
    for program, rows in by_program.items()
  ]
  return [Heading('Trials'), *folds]


def _end(trial: Mapping[str, Any]) -> str:
  at = trial['diverged_at'] or trial['pruned_at']
  return f'{"diverged" if trial["diverged_at"] else "given up"} at step {at}' if at else MISSING


def _cost(cost: Mapping[str, Any]) -> list[Block]:
  """The cost of the search, beside that of one run."""
  searched, confirmed = (sum(cost[key].values()) for key in ('search_seconds', 'confirm_seconds'))
  one = cost['seconds_a_trial']
  facts = {
    'searching, s': figures.quantity(searched, one),
    'confirming, s': figures.quantity(confirmed, one),
    'a trial, s': f'{one:.3g}',
    'FLOPs of the search': figures.quantity(cost['flops_of_the_search']),
    'FLOPs of a run': figures.quantity(cost['flops_a_run']),
    'compiled steps': str(cost['compiled_steps']),
  }
  return [Heading('Cost'), Pairs(facts), Text('In brackets: how many trials take as long.', 'quiet')]
