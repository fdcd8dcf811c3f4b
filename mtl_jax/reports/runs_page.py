"""The page of evaluated runs: a table of metrics, curves, pictures, every output, configuration."""

import collections
import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import mtl_jax
from mtl_jax.config import flat
from mtl_jax.data.input import mixture
from mtl_jax.errors import CheckpointError
from mtl_jax.platform import address, npz
from mtl_jax.reports import charts, curves, figures, page, pictures
from mtl_jax.reports.charts import Mark, Side
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Block, Cell, Charts, Heading, Pairs, Row, Text, table
from mtl_jax.reports.runs import Run, baseline, load, reliability, score, tasks_of
from mtl_jax.reports.scoreboard import BASELINE, BETTER, SAME, WORSE, details, not_better, outcomes, scoreboard
from mtl_jax.run import goodput
from mtl_jax.tasks import Task, plain

MAX_SAID = 5  # Tasks whose metrics disagree.
PACKAGES = ('jax', 'flax', 'optax', 'numpy')


def write_report(folders: Mapping[str, Path], out: Path, *, title: str = '', show_pictures: bool = False) -> None:
  """Writes one HTML file that needs nothing else.

  Args:
    folders: for each run's name its folder, which holds `config.json`, `dataset.json`, `metrics.jsonl` and
      `eval/test.json`.
    out: the file to write.
    title: of the page; empty: the runs and what they learn.
    show_pictures: whether to show test images with what is predicted in them. They come from the prepared set, which
      may hold photos of real people, so they are shown only when asked for.

  Raises:
    UserError: for a file that is missing or damaged; the message says which command makes it.
  """
  runs = load(folders)
  sides = [run.side for run in runs]
  by_side = {run.side: run for run in runs}
  written = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
  body: list[Block] = [*(Text(note, 'note') for note in _notes(runs)), *_metrics(runs)]
  for run in runs:
    body += details(run.evaluation, run.tasks, name=run.side.name)
  note = 'Validation is of the main metric.'
  body += curves.training(tasks_of(runs), sides, lambda side, key: by_side[side].curve(key), note=note)
  body += _pictures(runs) if show_pictures else []
  body += _calibration(runs)
  for group in dict.fromkeys(task.group for task in tasks_of(runs)):
    body += _outputs(runs, group)
  logged = dict.fromkeys(key for run in runs for line in run.log for key in line)
  body += curves.gradients(logged, sides, lambda side, key: by_side[side].curve(key))
  body += _configurations(runs)
  devices = {run.evaluation.get('device') for run in runs} - {None}
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  body.append(
    Pairs({'mtl_jax': mtl_jax.__version__, **versions, 'device': ', '.join(map(str, devices)), 'written': written})
  )
  steps = ', '.join(f'{run.side.name} at step {run.evaluation.get("step", MISSING)}' for run in runs)
  num = runs[0].evaluation.get('num_examples', MISSING)
  groups = ', '.join(dict.fromkeys(figures.name(task.group) for task in tasks_of(runs)))
  names = 'Joint and single-task training' if _compared(runs) else ' and '.join(folders)
  subtitle = f'{address.name(out.parent)}: {steps}; {num} test examples; written {written}'
  page.write(out, body, title=title or f'{names}: {groups}', subtitle=subtitle)


def _compared(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
  """`outcomes` of the tasks that were trained both jointly and alone."""
  return {task.name: found for task in tasks_of(runs) if (found := outcomes(runs, task))}


def _metrics(runs: Sequence[Run]) -> list[Block]:
  """The scoreboard, on how many tasks the joint run is better, and where metrics of a task say both."""
  compared = _compared(runs)
  counts = collections.Counter(
    found[task.main_metric][-1] for task in tasks_of(runs) if (found := compared.get(task.name))
  )
  said = [
    f'By main metrics joint training scored higher in this run on {counts[BETTER]} of the {counts.total()} tasks that '
    f'were also trained alone, lower on {counts[WORSE]}, the same on {counts[SAME]}; of errors, less is a higher score.'
  ]
  for task, found in compared.items():
    sides = {
      outcome: ', '.join(figures.metric(name).phrase for name, one in found.items() if one[-1] == outcome)
      for outcome in (BETTER, WORSE)
    }
    if all(sides.values()):
      said.append(f'Metrics disagree on {figures.name(task)}: better by {sides[BETTER]}; worse by {sides[WORSE]}.')
  return [
    Heading('Test metrics'),
    *map(Text, said[: MAX_SAID + 1] if compared else []),
    scoreboard(runs),
    Text(
      f"↑ higher is better, ↓ lower is better; bold is the best run. The {BASELINE} is what the training labels' means "
      'alone would score. NME is the distance from the true landmark over the distance between the eyes, or '
      "over what its task names; MAE of landmarks is a fraction of the image's sides. A dash: the run was not trained "
      'for this task.',
      'quiet',
    ),
  ]


def _calibration(runs: Sequence[Run]) -> list[Block]:
  """A reliability diagram for each task of probabilities."""
  drawn = []
  for task in tasks_of(runs):
    lines = [(run.side, curve) for run in runs if (curve := reliability(run.evaluation['tasks'].get(task.name)))]
    if lines:
      alt = f'{task.name}: frequency over predicted probability; the calibration error is in the table of metrics.'
      drawn.append(page.chart(task.name, charts.reliability(lines), alt))
  if not drawn:
    return []
  note = (
    'The share of positive labels among those of which a model predicts a probability, all outputs of a task together, '
    'in 15 bins. On the diagonal it is calibrated; below, its probabilities are too high.'
  )
  return [Heading('Calibration'), Text(note, 'quiet'), Charts(drawn, [run.side for run in runs])]


def _notes(runs: Sequence[Run]) -> list[str]:
  """Reservations that a reader must know before the comparison."""
  notes = [f'Not better than the {BASELINE} at {task}: {", ".join(names)}.' for task, names in not_better(runs).items()]
  if len(runs) < 2:
    return notes
  seeds = {run.config.train.seed for run in runs}
  notes.append(
    f'{"One seed" if len(seeds) == 1 else "One seed a run"}: no statement about significance. Another seed may turn '
    'a small difference around; repeat both sides with other train.seed before you believe it.'
  )
  differing = [field for field in _differing_fields(runs) if field != 'tasks']
  if differing:
    notes.append(
      f'The runs differ in more than their tasks ({", ".join(differing[:5])}{", …" if len(differing) > 5 else ""}), '
      'so a difference need not come from joint training.'
    )
  if len({(run.evaluation.get('split'), run.evaluation.get('num_examples')) for run in runs}) > 1:
    notes.append('The runs were evaluated on different examples: their figures cannot be compared.')
  return notes


def _outputs(runs: Sequence[Run], group: str) -> list[Block]:
  """Every output of a group of tasks by run: what each gains over the constant prediction, and a table."""
  tasks = [task for task in tasks_of(runs) if task.group == group]
  metric, floor = '', {}
  scores: dict[Side, dict[str, float]] = {run.side: {} for run in runs}
  for task in tasks:
    sources = [(floor, baseline(runs, task.name))]
    sources += [(scores[run.side], run.evaluation['tasks'].get(task.name)) for run in runs]
    for found, of_task in sources:
      outputs = (of_task or {}).get('per_output')
      for output, values in outputs.items() if isinstance(outputs, dict) else ():
        metric = metric or (plain(task.main_metric) if plain(task.main_metric) in values else next(iter(values), ''))
        found |= {output: value} if (value := score(values, metric)) is not None else {}  # pyright: ignore
  names = list(dict.fromkeys(output for values in scores.values() for output in values))
  if len(names) < 2:
    return []
  sides = [side for side, values in scores.items() if values]
  declared, sign = figures.metric(metric), 1 if figures.metric(metric).higher_is_better else -1
  gains = {side: {name: scores[side][name] - floor[name] for name in scores[side] if name in floor} for side in sides}
  ranked = sorted(names, key=lambda name: -sign * gains[sides[0]].get(name, 0.0))
  marks = [(side, [Mark(gains[side].get(name)) for name in ranked]) for side in sides]
  figure = charts.differences(ranked, marks, metric=declared, reference=f'the {BASELINE}')
  alt = f'{declared.phrase} of {len(names)} outputs less that of the {BASELINE}; the figures are in the table below.'
  columns = [group, tasks[0].baseline_name, *(side.name for side in sides)]
  rows = [
    (figures.name(name), *(figures.level(of.get(name), metric) for of in (floor, *(scores[s] for s in sides))))
    for name in names
  ]
  label = f'{declared.phrase} of each of {group}'
  return [
    Heading(f'{group}, one by one'),
    *([Charts([page.chart('', figure, alt)], sides)] if floor else []),
    page.folded(f'{label}, as a table', table(label, columns, rows)),
  ]


def _pictures(runs: Sequence[Run]) -> list[Block]:
  """Test images with the labels and predictions of tasks that can be drawn into them."""
  config, tasks = runs[0].config, tasks_of(runs)
  test = mixture.load_split(
    mixture.open_data(config.data), 'test', tasks, missing_ok=True, partial_ok=bool(config.data.dirs)
  )
  body: list[Block] = []
  for task in tasks:
    if task.name in test.labels and pictures.can_draw(task, test):
      those = [run for run in runs if task in run.tasks]
      found = {run.side: [_predictions(run, task, test.example_id)] for run in those}
      body += pictures.of_task(task, test, found, worst=False)
  note = 'Taken at even distances through the test split, not chosen.'
  return [Heading('Test images'), Text(note), *body] if body else []


def _predictions(run: Run, task: Task, example_ids: np.ndarray) -> np.ndarray:
  """The predictions `[n, ...]` of the run's evaluation for these examples."""
  path = run.folder / 'eval' / 'test.npz'
  make = f'make it with `mtl-jax eval --workdir {run.folder} --predictions {path}`'
  if not path.exists():
    raise CheckpointError(f'no {path}; {make}')
  found = npz.read(path, names=('example_id', f'{task.name}/pred'), advice=make, only=True)
  values = found[f'{task.name}/pred']
  if not np.array_equal(found['example_id'], example_ids) or values.shape != (len(example_ids), *task.prediction_shape):
    raise CheckpointError(f'{path}: is of other images than the test split of {run.config.data.dir}; {make}')
  return values


def _differing_fields(runs: Sequence[Run]) -> list[str]:
  configs = [flat(run.config.to_dict()) for run in runs]
  names = dict.fromkeys(name for config in configs for name in config)
  return [name for name in names if any(config.get(name) != configs[0].get(name) for config in configs)]


def _configurations(runs: Sequence[Run]) -> list[Block]:
  """The fields to show by run, bold where the runs differ, with speed and time; then whole configurations."""
  configs = [flat(run.config.to_dict()) for run in runs]
  differing = _differing_fields(runs)
  names = [name for name in page.FIELDS if any(config.get(name) not in (None, (), '') for config in configs)]
  rows: list[Row | tuple[str, ...]] = []
  for name in dict.fromkeys((*names, *differing)):
    cells = [Cell(page.field_text(config.get(name))) for config in configs]
    rows.append(Row(name, cells, style='differs' if name in differing else ''))
  logged = [run.curve('images_per_sec') for run in runs]
  speeds = [np.nanmedian(one.values) if one and np.isfinite(one.values).any() else None for one in logged]
  rows.append(('images/s in training (median)', *(MISSING if one is None else f'{one:,.0f}' for one in speeds)))
  accounts = [goodput.read(run.folder) for run in runs]
  rows.append(('where the time went', *(goodput.text(one['spent']) if one else MISSING for one in accounts)))
  body = [Heading('Configuration'), table('Configuration', ['Field', *(r.side.name for r in runs)], rows, style='wrap')]
  if len(runs) > 1:
    body.append(Text('Bold: the runs differ.', 'quiet'))
  name = 'Whole configuration of'
  return [*body, *(page.configuration(f'{name} {run.side.name}', run.config.to_dict()) for run in runs)]
