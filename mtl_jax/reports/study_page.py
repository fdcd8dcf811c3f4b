"""The page of a study: verdicts by arm, curves, cost, learning rates, pictures and where it all comes from."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.input import mixture
from mtl_jax.platform import address
from mtl_jax.reports import curves, figures, page, pictures, verdicts
from mtl_jax.reports.charts import Curve, Side
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Block, Column, Fold, Heading, Pairs, Text, folded, table
from mtl_jax.studies import arms, space
from mtl_jax.studies.results import Record, ResultStore, chosen_in, read_record
from mtl_jax.studies.space import Values

MAX_OPEN_ARMS = 5  # With more arms than these, each but the table of all is folded away.
MAX_PICTURED = 6  # Tasks.
COST = {
  'params': 'Parameters',
  'flops_per_image': 'FLOPs an image, forward',
  'seconds': 'Training a seed, s',
  'tuning_seconds': 'Choosing on validation, s',
  'latency_ms': 'Latency of one image, ms',
}


def write_report(study: Mapping[str, Any], directory: Path, *, show_pictures: bool = False) -> None:
  """Writes `report.html`, and the plots into `plots/`, from a study's JSON and its replicas in the directory.

  With `show_pictures` also the test images with the greatest errors, which may be photos of real people.
  """
  kept, plots = read_record(directory, study), directory / 'plots'
  sides = [Side(arm, number) for number, arm in enumerate(study['arms'], -1)]
  body: list[Block] = [Text(note, 'note') for note in _notes(study, kept)]
  body += [*verdicts.all_arms(study), *verdicts.intervals(study, sides, plots)]
  for side in sides[1:]:
    section = verdicts.section(study, side, sides[0], plots)
    body += [Fold(side.name, section)] if len(sides) > MAX_OPEN_ARMS + 1 else section
  band = ', and a band of one standard deviation to either side' if len(study['seeds']) > 1 else ''
  note = f'Mean over seeds{band}; replicas that diverged are left out.'
  tasks = sorted(kept.tasks, key=lambda task: '/' in task.name)  # Those of a group, which are many, come last.
  body += curves.training(tasks, sides, lambda side, key: _curve(kept, side, key), note=note, folder=plots)
  body += [*_cost(study, kept, sides), *_chosen(study, kept)]
  body += _pictures(directory, kept, sides) if show_pictures else []
  what = {side.name: (getattr(arms.ARMS.get(side.name), '__doc__', None) or '').split('\n')[0] for side in sides}
  body += [Heading('Arms'), Pairs({name: text for name, text in what.items() if text})]
  more = {'seeds': ', '.join(map(str, study['seeds']))}
  body += page.provenance(study, kept.config.to_dict(), section='study', more=more)
  reference, *others = study['arms']
  title = f'{", ".join(others)} against {reference}: {", ".join(dict.fromkeys(task.group for task in tasks))}'
  subtitle = (
    f'{address.name(directory)}: a study with {len(study["seeds"])} seeds; finished {study.get("date", MISSING)}'
  )
  page.write(directory / 'report.html', body, title=figures.name(title), subtitle=subtitle)


def _notes(study: Mapping[str, Any], kept: Record) -> list[str]:
  """Reservations that a reader must know before the verdicts."""
  notes = []
  if len(study['seeds']) < 2:
    notes.append('One seed: nothing was tested. Another seed may turn a difference around; set config.study.num_seeds.')
  diverged = kept.diverged()
  for one in diverged:
    notes.append(
      f'{one["program"]} of {one["arm"]} with seed {one["seed"]} diverged at step {one["step"]}; '
      'its seed is left out of the pairs.'
    )
  if study['dropped'] and not diverged:
    lost = ', '.join(f'{one["task"]} of {one["arm"]}, seed {one["seed"]}' for one in study['dropped'])
    notes.append(f'Without a test score, and left out: {lost}.')
  at_edge = [program for program, values in chosen_in(study).items() if _edges(kept, program, values)]
  if at_edge:
    notes.append(
      f'What was chosen for {", ".join(at_edge[:6])}{" and others" * (len(at_edge) > 6)} lies at an end of the grid: a '
      'wider config.study.learning_rates or config.study.grid might serve it better.'
    )
  return notes


def _curve(kept: Record, side: Side, key: str) -> Curve | None:
  found = kept.curve(side.name, key)
  return Curve(*found) if found else None


def _cost(study: Mapping[str, Any], kept: Record, sides: Sequence[Side]) -> list[Block]:
  """Figures by arm, each with what it is of the reference's."""
  models = [str(len(kept.arms[side.name].programs)) if side.name in kept.arms else MISSING for side in sides]
  rows = [('Models', *models)]
  for key, name in COST.items():
    first, *others = (study['cost'][side.name].get(key) for side in sides)
    if first or any(others):
      rows.append((name, figures.quantity(first), *(figures.quantity(one, first) for one in others)))
  columns = ['', *(Column(side.name, side=side) for side in sides)]
  note = 'Sums over the models of an arm, which answer for an image one after another; in brackets the ratio to '
  return [Heading('Cost'), table('Cost', columns, rows), Text(f'{note}{sides[0].name}.', 'quiet')]


def _chosen(study: Mapping[str, Any], kept: Record) -> list[Block]:
  """The learning rate, and what else was searched, that each model was given, and those tried."""
  rows = [
    (program, space.in_words(values) + _edges(kept, program, values), '; '.join(_tried(kept, program)))
    for program, values in chosen_in(study).items()
  ]
  seconds = sum(one.seconds for tried in kept.tuning.values() for _, results in tried for one in results)
  said = (
    'Chosen on validation, on seeds that are not tested; the score of all that was tried, greater is better. '
    f'Choosing took {seconds:.3g} s of training.'
    if seconds
    else 'Not chosen: all models were given one.'
  )
  one = table('Learning rates', ('Model', 'Chosen', 'Tried'), rows, style='wrap')
  return [Heading('Learning rates and other values'), Text(said), folded('Model by model', one)]


def _edges(kept: Record, program: str, values: Values) -> str:
  """Says which values lie at an end of their grid."""
  programs = {name: config for arm in kept.arms.values() for name, config in arm.programs.items()}
  fields = arms.space_of(programs[program]).ends(values) if program in programs else []
  names = f' ({", ".join(field.rpartition(".")[2] for field in fields)})' * (len(values) > 1)
  return f', end of the grid{names}' if fields else ''


def _tried(kept: Record, program: str) -> Iterator[str]:
  for values, results in kept.tuning.get(program, ()):
    scores = [result.score for result in results if result.score is not None and not result.diverged_at]
    if results:
      reached = figures.number(sum(scores) / len(scores)) if len(scores) == len(results) else 'diverged'
      yield f'{space.in_words(values)}: {reached}'


def _pictures(directory: Path, kept: Record, sides: Sequence[Side]) -> list[Block]:
  """The test images that the compared arm gets most wrong, for each of the first tasks."""
  test = mixture.load_split(mixture.open_data(kept.config.data), 'test', kept.tasks)
  results, ordered = ResultStore(directory / 'replicas'), [sides[1], sides[0], *sides[2:]]
  body: list[Block] = [
    Heading('Worst test errors'),
    Text(
      f'The test images that {sides[1].name} gets most wrong, by the mean error over seeds; drawn is what the first '
      'seed predicts. They are chosen for being wrong and say nothing of how often that happens.'
    ),
  ]
  for task in kept.tasks[:MAX_PICTURED]:
    found: dict[Side, list[np.ndarray]] = {}
    shapes = {task.name: (len(test), *task.prediction_shape)}
    for side in ordered:
      tested = [(program, replica) for program, those in kept.tested[side.name].items() for replica in those]
      values = [own[task.name] for one in tested if (own := results.predictions(*one, shapes))]
      if values:
        found[side] = values
    if sides[1] in found:
      body += pictures.of_task(task, test, found, worst=True)
  return body
