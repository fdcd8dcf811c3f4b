"""The model card of a published model, in Hugging Face's form, over what the run and its evaluation wrote."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mtl_jax import config as configs
from mtl_jax.config import parts
from mtl_jax.data.store import reader
from mtl_jax.errors import DataError
from mtl_jax.platform import address, atomic_write, json_file
from mtl_jax.reports import figures
from mtl_jax.reports.charts import Side
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Block, Heading, Table, Text, table
from mtl_jax.reports.runs import Evaluation, Run, score
from mtl_jax.reports.scoreboard import details, scoreboard
from mtl_jax.run import workdir
from mtl_jax.tasks import Task, plain

log = logging.getLogger('mtl_jax')

# What sets are, and what may be done with them, by the name in a prepared set; NO_PEOPLE show none.
SETS = {
  'celeba': 'CelebA (Liu et al. 2015), photos of celebrities from the web. Its agreement allows non-commercial research'
  ' only, of the images and of what is derived from them, as weights may be; images may not be passed on.',
  'mtfl': 'MTFL (Zhang et al. 2014), photos of people from the web and from AFLW, for non-commercial research.',
  'utkface': 'UTKFace (Zhang et al. 2017), photos of people from the web, for non-commercial research only.',
  'fairface': 'FairFace (Kärkkäinen and Joo 2021), photos of people from Flickr, CC BY 4.0.',
  'clothing': 'the Clothing Attributes Dataset (Chen, Gallagher and Girod 2012), photos of people from the web; its'
  ' terms are those of its page.',
  'cub': 'CUB-200-2011 (Wah et al. 2011), photos of birds from Flickr, for non-commercial research and education.',
  'synthetic': 'faces that mtl_jax has drawn: no photos, and nobody is on them.',
  'synthetic:expressions': 'faces that mtl_jax has drawn: no photos, and nobody is on them.',
}
COMMAND = 'mtl-jax eval --workdir RUN --slices attributes/Male,attributes/Young'
NO_PEOPLE = ('cub', 'synthetic', 'synthetic:expressions')
UNKNOWN = 'its terms are not known to mtl_jax: state them here before you publish.'
JUDGED = ('Attractive', 'Young', 'Big_Nose', 'Big_Lips', 'Pointy_Nose', 'Chubby', 'Double_Chin', 'Pale_Skin', 'Bald')
FIELDS = (
  'model.backbone', 'model.sharing', 'model.weights', 'model.freeze', 'objective.name', 'optimizer.name',
  'optimizer.learning_rate', 'train.steps', 'train.batch_size', 'train.seed',
)  # fmt: skip
# How an image is brought to the network's size, by `prepare --fit`.
FITS = {'squash': 'image.resize(', 'crop': 'ImageOps.fit(image, ', 'pad': 'ImageOps.pad(image, '}
# Hugging Face's names of what kinds of task are for, the first that is there first.
PIPELINES = {
  'image-classification': ('binary', 'categorical', 'ordinal'),
  'keypoint-detection': ('landmarks',),
  'image-segmentation': ('dense',),
}


def write(directory: Path, out: Path) -> None:
  """Writes README.md beside the config.json that `export` has written for a run."""
  import jinja2

  config, facts = workdir.read(directory)
  tasks, labels = facts.selected(config), {label for task in facts.selected(config) for label in task.labels}
  described = json_file.read(out / 'config.json', json_file.Fields, advice='export the run again')
  sets = [schema for place in config.data.dirs or [config.data.dir] if (schema := _schema(place))]
  if len(sets) == 1 and sets[0]['checksum'] != facts.checksum:
    sets = []  # Another set lies there by now.
  sources, (height, width) = [str(schema['source']) for schema in sets], described['image_size']
  evaluation, fields = _evaluation(directory, described['run']['step']), configs.flat(configs.to_json(config))
  side = Side('this model', 0)
  text = jinja2.Environment(
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
  )
  card = text.from_string(Path(__file__).with_suffix('.md').read_text('utf-8')).render(
    name=address.name(directory),
    config=config,
    described=described,
    height=height,
    width=width,
    loader='load_model' if 'backbone' in described else 'load',
    training=markdown([table('', ['Field', 'Value'], [(field, _shown(fields[field])) for field in FIELDS])]),
    sets=sets,
    sources=sources,
    terms=SETS,
    unknown=UNKNOWN,
    fits=FITS,
    pipeline=next((tag for tag, kinds in PIPELINES.items() if any(task.kind in kinds for task in tasks)), ''),
    results=_results(evaluation, tasks, ', '.join(sources) or 'not known'),
    evaluation=evaluation,
    metrics=markdown(_metrics(Run(side, directory, config, tasks, evaluation, log=[]))) if evaluation else '',
    command=COMMAND,
    people=not sources or not set(sources) <= set(NO_PEOPLE),
    judged=[label for label in JUDGED if label in labels],
    gender=next((label for label in ('Male', 'gender') if label in labels), ''),
  )
  atomic_write.write(out / 'README.md', card)


def _shown(value: Any) -> str:
  """A field's value without the folders of this machine."""
  return address.name(parts.title(str(value))) if value not in ('', None) else MISSING


def _schema(place: str) -> reader.Schema | None:
  """A prepared set's facts about itself; None where it is not at hand."""
  try:
    return None if address.is_address(place) else reader.read_schema(Path(place))
  except DataError as error:
    log.warning('warning: the card cannot describe the data: %s', error)
    return None


def _evaluation(directory: Path, step: int) -> Evaluation | None:
  """The evaluation of this step on the test split; None where there is none."""
  path = directory / 'eval' / 'test.json'
  found = json_file.read(path, Evaluation, advice=COMMAND) if path.exists() else None
  if found and found.get('step') == step:
    return found
  log.warning('warning: the card has no metrics: step %d was not evaluated; see %s', step, COMMAND)
  return None


def _results(evaluation: Evaluation | None, tasks: Iterable[Task], data: str) -> list[dict[str, Any]]:
  """The main metric of each task, as `model-index` has it."""
  return [
    {
      'task': {
        'type': next((tag for tag, kinds in PIPELINES.items() if task.kind in kinds), 'other'),
        'name': task.name,
      },
      'dataset': {'type': data, 'name': data, 'split': 'test'},
      'metrics': [{'type': task.main_metric, 'name': figures.metric(task.main_metric).phrase, 'value': value}],
    }
    for task in tasks
    if evaluation and (value := score(evaluation['tasks'].get(task.name), task.main_metric)) is not None
  ]


def _metrics(run: Run) -> list[Block]:
  """The run's metrics, every output of its tasks, and what its evaluation says besides."""
  body: list[Block] = [scoreboard([run])]
  for task in run.tasks:
    each, ends = (run.evaluation.get(side, {}).get(task.name, {}).get('per_output') for side in ('tasks', 'intervals'))
    if isinstance(each, dict) and len(each) > 1:
      ends = ends if isinstance(ends, dict) else {}
      body += [Heading(f'{task.name}, one by one', 3), _per_output(task, each, ends)]
  return body + details(run.evaluation, run.tasks)


def _per_output(task: Task, each: Mapping[str, Any], intervals: Mapping[str, Any]) -> Table:
  first = next(iter(each.values()))
  metrics = [plain(metric) for metric in task.shown if plain(metric) in first]
  rates = ['positive_rate'] * ('positive_rate' in first)
  main = metrics[0] if metrics else ''
  columns = ['Output', 'labels', *(['positive'] if rates else []), *(figures.metric(m).phrase for m in metrics)]
  rows = [
    (
      name,
      f'{found["num_labels"]:.0f}' if 'num_labels' in found else MISSING,
      *(f'{found[rate]:.1%}' for rate in rates),
      *(figures.level(found.get(metric), metric) for metric in metrics),
      _ends((intervals.get(name) or {}).get(main), main),
    )
    for name, found in each.items()
  ]
  return table('', [*columns, f'95% interval of {figures.metric(main).phrase}'], rows)


def _ends(interval: Any, metric: str) -> str:
  return ' to '.join(figures.level(end, metric) for end in interval) if interval else MISSING


def markdown(blocks: Iterable[Block]) -> str:
  """Headings, texts and tables as Markdown."""
  parts = []
  for block in blocks:
    if isinstance(block, Heading):
      parts.append(f'{"#" * block.level} {block.text}')
    elif isinstance(block, Text):
      parts.append(block.text)
    elif isinstance(block, Table):
      rows = [[column.text for column in block.columns], ['---'] * len(block.columns)]
      rows += [[row.name if row.cells else f'**{row.name}**', *(cell.text for cell in row.cells)] for row in block.rows]
      rows = [[*row, *[''] * (len(block.columns) - len(row))] for row in rows]
      parts.append('\n'.join(f'| {" | ".join(cell.replace("|", "&#124;") for cell in row)} |' for row in rows))
  return '\n\n'.join(parts)
