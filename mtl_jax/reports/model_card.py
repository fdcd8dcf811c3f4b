"""The model card of a published model, in Hugging Face's form, over what the run and its evaluation wrote."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import parts
from mtl_jax.data.store import reader
from mtl_jax.errors import DataError
from mtl_jax.platform import address, atomic_write, json_file
from mtl_jax.reports import figures
from mtl_jax.reports.figures import MISSING
from mtl_jax.reports.page import Block, Heading, Table, Text, table
from mtl_jax.reports.runs import Evaluation, score
from mtl_jax.reports.slices import by_slice
from mtl_jax.run import workdir
from mtl_jax.tasks import Task, plain

log = logging.getLogger('mtl_jax')

# What sets are, and what may be done with them, by the name in a prepared set; those that show people stand in PEOPLE.
SETS = {
  'celeba': 'CelebA (Liu et al. 2015), photos of celebrities from the web. Its agreement allows non-commercial research'
  ' only, of the images and of what is derived from them, as weights may be; images may not be passed on.',
  'mtfl': 'MTFL (Zhang et al. 2014), photos of people from the web and from AFLW, for non-commercial research.',
  'utkface': 'UTKFace (Zhang et al. 2017), photos of people from the web, for non-commercial research only.',
  'fairface': 'FairFace (Kärkkäinen and Joo 2021), photos of people from Flickr, CC BY 4.0.',
  'cub': 'CUB-200-2011 (Wah et al. 2011), photos of birds from Flickr, for non-commercial research and education.',
  'synthetic': 'faces that mtl_jax has drawn: no photos, and nobody is on them.',
  'synthetic:expressions': 'faces that mtl_jax has drawn: no photos, and nobody is on them.',
}
NO_PEOPLE = ('cub', 'synthetic', 'synthetic:expressions')
UNKNOWN = 'its terms are not known to mtl_jax: state them here before you publish.'
JUDGED = ('Attractive', 'Young', 'Big_Nose', 'Big_Lips', 'Pointy_Nose', 'Chubby', 'Double_Chin', 'Pale_Skin', 'Bald')
GROUPS = ('attributes/Male', 'attributes/Young')
FIELDS = (
  'train.steps',
  'train.batch_size',
  'train.seed',
  'optimizer.name',
  'optimizer.learning_rate',
  'objective.name',
)
# Hugging Face's names of what kinds of task are for, the first that is there first.
PIPELINES = {
  'image-classification': ('binary', 'categorical', 'ordinal'),
  'keypoint-detection': ('landmarks',),
  'image-segmentation': ('dense',),
}
EVALUATE = 'mtl-jax eval --workdir RUN --slices ' + ','.join(GROUPS)


def write(directory: Path, out: Path) -> None:
  """Writes README.md beside the config.json that `export` has written for a run."""
  config, facts = workdir.read(directory)
  tasks = facts.selected(config)
  described = json_file.read(out / 'config.json', json_file.Fields, advice='export the run again')
  schemas = [schema for place in config.data.dirs or [config.data.dir] if (schema := _schema(place))]
  evaluation = _evaluation(directory, described['run']['step'])
  sources = [str(schema['source']) for schema in schemas]
  name = address.name(directory)
  pipelines = [tag for tag, kinds in PIPELINES.items() if any(task.kind in kinds for task in tasks)]
  head = {
    'license': 'other',
    'license_name': 'not-stated',
    'license_link': 'README.md#data-and-licence',
    'library_name': 'mtl_jax',
    'tags': ['jax', 'multi-task-learning', *sorted({task.kind for task in tasks})],
    'datasets': sources,
    **({'pipeline_tag': pipelines[0]} if pipelines else {}),
    'model-index': [{'name': name, 'results': _results(evaluation, tasks, ', '.join(sources) or 'not known')}],
  }
  body = [
    *_use(name, described),
    *_training(config, described),
    *_data(schemas, config),
    *_metrics(evaluation, tasks),
    *_limits(tasks, sources, evaluation),
  ]
  lines = [f'{key}: {json.dumps(value)}' for key, value in head.items()]  # YAML reads JSON.
  atomic_write.write(out / 'README.md', '\n'.join(['---', *lines, '---', '', markdown(body)]))


def _schema(place: str) -> reader.Schema | None:
  """What a prepared set says of itself; None where it is not at hand."""
  try:
    return None if address.is_address(place) else reader.read_schema(Path(place))
  except DataError as error:
    log.warning('warning: the card cannot describe the data: %s', error)
    return None


def _evaluation(directory: Path, step: int) -> Evaluation | None:
  """The evaluation of this step on the test split; None where there is none."""
  path, command = directory / 'eval' / 'test.json', EVALUATE.replace('RUN', str(directory))
  found = json_file.read(path, Evaluation, advice=command) if path.exists() else None
  if found and found.get('step') == step:
    return found
  log.warning(
    'warning: the card has no metrics: step %d was not evaluated; do it with %s, then export again', step, command
  )
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


def _use(name: str, described: Mapping[str, Any]) -> list[Block]:
  height, width = described['image_size']
  module, needs = ('load_model', 'jax, numpy and safetensors')
  if 'backbone' not in described:
    module, needs = 'load', 'jax, numpy and flatbuffers'
  tasks = [f'`{task["name"]}` ({len(task["names"])}: {task["unit"]})' for task in described['tasks']]
  code = [
    '```python',
    'import numpy as np',
    'from PIL import Image',
    '',
    f'from {module} import load  # {module}.py of this folder',
    '',
    f'image = Image.open("face.jpg").convert("RGB").resize(({width}, {height}), Image.Resampling.BILINEAR)',
    'predict, description = load()',
    'predictions = predict(np.asarray(image)[None])  # {task: [1, outputs]}',
    '```',
  ]
  return [
    Heading(name, 1),
    Text(f'Predicts from an RGB image of {width} x {height} pixels: {"; ".join(tasks)}.'),
    Text('\n'.join(code)),
    Text(f'The loader needs {needs}; `config.json` names the outputs in their order. To train on from these weights: '
         f'`mtl-jax train ... --config.model.weights=FOLDER`.'),
  ]  # fmt: skip


def _training(config: ConfigDict, described: Mapping[str, Any]) -> list[Block]:
  run, fields = described['run'], configs.flat(configs.to_json(config))
  rows = {
    'backbone': run['backbone'],
    'sharing': run['sharing'],
    'weights it began with': address.name(config.model.weights) if config.model.weights else 'random ones',
    **{field: parts.title(str(fields[field])) for field in FIELDS},
    'step of these weights': run['step'],
  }
  return [Heading('Training'), table('', ['Field', 'Value'], [(field, str(value)) for field, value in rows.items()])]


def _data(schemas: Sequence[reader.Schema], config: ConfigDict) -> list[Block]:
  body: list[Block] = [Heading('Data and licence')]
  for schema in schemas:
    source, counts = str(schema['source']), schema.get('counts', {}).get('masked', {})
    images = ', '.join(f'{end - begin} {split}' for split, (begin, end) in schema['splits'].items())
    missing = ', '.join(f'{number} of {task}' for task, number in counts.items() if number)
    lacking = f' Labels that are missing: {missing}.' * bool(missing)
    body.append(Text(f'**{source}**: {SETS.get(source, UNKNOWN)} Images: {images}.{lacking}'))
  if not schemas:
    body.append(Text(f'The prepared set was not at hand; {UNKNOWN}'))
  if rule := config.data.keep_labels:
    body.append(Text(f'In training labels were dropped by the rule `{rule}`.'))
  said = 'The licence of these weights is not stated: state one that the terms of the data allow before you publish.'
  return [*body, Text(said)]


def _metrics(evaluation: Evaluation | None, tasks: Sequence[Task]) -> list[Block]:
  body: list[Block] = [Heading('Metrics')]
  if evaluation is None:
    return [*body, Text('This step has not been evaluated on the test split.')]
  rows, outputs = [], []
  for task in tasks:
    found, floor = (evaluation.get(side, {}).get(task.name) for side in ('tasks', 'baseline'))
    intervals = evaluation.get('intervals', {}).get(task.name, {})
    for metric in task.shown:
      name = f'{task.name}: {figures.metric(metric).phrase} {figures.arrow(metric)}'
      levels = [figures.level(score(side, metric), metric) for side in (floor, found)]
      rows.append((name, *levels, _ends(intervals.get(metric), metric)))
    if isinstance(each := (found or {}).get('per_output'), dict) and len(each) > 1:
      outputs += [Heading(f'{task.name}, one by one', 3), _per_output(task, each, intervals.get('per_output') or {})]
  said = f'On the {evaluation.get("num_examples")} images of the test split, beside the constant prediction that the '
  said += 'labels of the train split suggest.'
  if 'intervals' in evaluation:
    said += (
      ' Intervals are of 95%, over resamples of people; how much another training run would differ is not in them.'
    )
  columns = ['Metric', 'constant prediction', 'this model', '95% interval']
  body += [Text(said), table('', columns, rows), *outputs]
  return [*body, *by_slice(evaluation, tasks)]


def _per_output(task: Task, each: Mapping[str, Any], intervals: Mapping[str, Any]) -> Table:
  first = next(iter(each.values()))
  metrics = [plain(metric) for metric in task.shown if plain(metric) in first]
  rates = ['positive_rate'] * ('positive_rate' in first)
  main = metrics[0] if metrics else ''
  columns = ['Output', 'labels', *(['positive'] if rates else []), *(figures.metric(m).phrase for m in metrics)]
  rows = [
    (
      name,
      str(found.get('num_labels', MISSING)),
      *(figures.percent(found[rate]) for rate in rates),
      *(figures.level(found.get(metric), metric) for metric in metrics),
      _ends((intervals.get(name) or {}).get(main), main),
    )
    for name, found in each.items()
  ]
  return table('', [*columns, f'95% interval of {figures.metric(main).phrase}'], rows)


def _ends(interval: Any, metric: str) -> str:
  return ' to '.join(figures.level(end, metric) for end in interval) if interval else MISSING


def _limits(tasks: Sequence[Task], sources: Sequence[str], evaluation: Evaluation | None) -> list[Block]:
  said = ['Measured on images of the same origin as those it was trained on; on others it will be worse.']
  if not sources or not set(sources) <= set(NO_PEOPLE):
    labels = {label for task in tasks for label in task.labels}
    if judged := [label for label in JUDGED if label in labels]:
      said.append(f'Labels such as {", ".join(judged[:3])} are judgements of those who looked at a photo, not facts.')
    if {'Male', 'gender'} & labels:
      said.append(
        "`Male` or `gender` is one of two values, guessed from looks; it is nobody's own word on their gender."
      )
    slices = (
      'see the tables above' if evaluation and evaluation.get('slices') else f'not measured here; `{EVALUATE}` does'
    )
    said += [
      'A label says what somebody, or a program, saw in a photo. A prediction says no more, and often less.',
      f'Errors differ between groups of people: {slices}. Groups that the data do not name were not looked at.',
      'Not for identifying people, for decisions about them, or for finding out what they have not told.',
    ]
  return [Heading('Limits'), Text('\n'.join(f'- {one}' for one in said))]


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
  return '\n\n'.join(parts) + '\n'
