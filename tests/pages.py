"""Fixed runs, studies, sweeps and affinity runs that were never trained, and pages read as text."""

import functools
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mtl_jax import tasks as task_kinds
from mtl_jax.configs import default
from mtl_jax.data.source import Record
from mtl_jax.data.store.writer import prepare
from mtl_jax.metrics import draws
from mtl_jax.run import goodput, workdir
from mtl_jax.run.workdir import DataFacts
from mtl_jax.studies import arms, scores, summary
from mtl_jax.studies.arms import Replica
from mtl_jax.studies.results import Result, ResultStore
from mtl_jax.sweeps import front
from mtl_jax.tasks import BinaryTask, DenseTask, LandmarkTask

GOLDEN = Path(__file__).parent / 'golden'
RATE = 1e-3
NUM_FACES = 20
POINTS = ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth')
LANDMARKS = LandmarkTask('landmarks', tuple(f'{point}_{axis}' for point in POINTS for axis in 'xy'))
ATTRIBUTES = BinaryTask('attributes', ('Bald', 'Smiling', 'Young'))
PARSING = DenseTask('parsing', ('parsing',), classes=('around', 'left', 'right'), size=(24, 20))
MANY = BinaryTask('attributes', tuple(f'Attribute_{i:02d}' for i in range(40)))


@functools.cache
def labels(task, num=60):
  """Labels `[n, k]` of a test split."""
  rng = np.random.default_rng(len(task.labels))
  if task.coordinates:
    face = np.array([0.3, 0.4, 0.7, 0.4, 0.5, 0.55, 0.35, 0.7, 0.65, 0.7])
    return face + rng.normal(0, 0.02, (num, 10))
  return (rng.random((num, len(task.labels))) < 0.4).astype(float)


class Faces:
  """A source of noise in which every image is a test image; its left half is of one class, a corner has no label."""

  name = 'faces'
  tasks = (ATTRIBUTES, LANDMARKS, PARSING)

  def records(self):
    parts = np.repeat([1.0, 2.0], [10, 10])[None].repeat(24, 0).astype(np.float32)
    parts[:4, :4] = np.nan
    points = np.array([0.3, 0.4, 0.7, 0.4, 0.5, 0.55, 0.35, 0.7, 0.65, 0.7], np.float32) * np.tile([20, 24], 5)
    for number in range(NUM_FACES):
      content = io.BytesIO()
      pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), np.uint8)
      Image.fromarray(pixels).save(content, 'png')
      labels = {'attributes': np.array([1, 0, np.nan], np.float32), 'landmarks': points, 'parsing': parts}
      yield Record(f'{number}.png', 'test', content.getvalue, labels)


def make_faces(directory):
  """A prepared set of them; returns its directory."""
  prepare(Faces(), directory, image_size=(24, 20), encoding='jpeg', log=lambda _: None)
  return directory


def of_faces(task):
  """Stand-ins for the labels of the faces when predictions are made up."""
  return np.zeros((NUM_FACES, *task.label_shape)) if task.dense else labels(task)[:NUM_FACES]


def predicted(task, truth, noise, rng):
  """Predictions `[n, outputs]` that are worse with more noise."""
  if task.coordinates:
    return truth + 0.03 * (1 + noise) * rng.normal(size=truth.shape)
  return np.clip(0.5 + 0.3 * (truth - 0.5) + (0.15 + 0.2 * noise) * rng.normal(size=truth.shape), 0, 1)


def make_run(folder, tasks, *, seed=0, steps=20, data='', truth=labels, ids=None, predict=predicted):
  """The folder of a run that was evaluated: configuration, log, evaluation and predictions."""
  config = default.get_config()
  config.tasks, config.data.dir, config.train.steps = ','.join(task.name for task in tasks), str(data), steps
  (folder / 'eval').mkdir(parents=True)
  workdir.begin(folder, config, DataFacts((64, 64), tuple(tasks), 'a0b1'))
  rng, found, constant = np.random.default_rng(seed), {}, {}
  arrays: dict[str, Any] = {'example_id': ids if ids is not None else np.arange(60)}
  for task in tasks:
    own = truth(task)
    arrays[f'{task.name}/pred'] = predict(task, own, 0.5, rng)
    given = {'mask': np.ones(own.shape, bool), 'source_size': np.tile([178, 218], (len(own), 1))}
    found[task.name] = task.metrics(arrays[f'{task.name}/pred'], own, **given)
    constant[task.name] = task.metrics(np.zeros_like(own) + own.mean(0), own, **given)
  evaluation = {'step': steps, 'split': 'test', 'num_examples': len(arrays['example_id']), 'device': 'some device'}
  workdir.write_json(folder / 'eval' / 'test.json', {**evaluation, 'tasks': found, 'baseline': constant})
  np.savez(folder / 'eval' / 'test.npz', **arrays)
  lines = []
  for step in range(1, 21):
    losses = {f'train/{task.name}/loss': 1 / step for task in tasks}
    lines.append({'step': step, 'epoch': step / 5, 'train/loss': 2 / step, 'images_per_sec': 100.0, **losses})
  main = {f'val/{task.name}/{task.main_metric}': 0.5 for task in tasks}
  lines.append({'step': 20, **main, 'val/nothing': float('nan'), 'new/key': 'text'})
  # The last line is what a run that was killed leaves.
  (folder / 'metrics.jsonl').write_text('\n'.join(json.dumps(line) for line in lines) + '\n{"step": 2')
  return folder


def make_runs(directory, **keywords):
  """A joint run and two of single tasks, with an account of the time of one."""
  made = {
    name: make_run(directory / name, tasks, seed=seed, **keywords)
    for seed, (name, tasks) in enumerate(
      {'joint': (ATTRIBUTES, LANDMARKS), 'attributes': (ATTRIBUTES,), 'landmarks': (LANDMARKS,)}.items()
    )
  }
  spent = dict.fromkeys(goodput.HEADINGS, 0.0) | {'step': 75.0, 'compile': 20.0, 'eval': 5.0}
  (made['joint'] / 'goodput.json').write_text(json.dumps({'step': 20, 'spent': spent}))
  (made['landmarks'] / 'goodput.json').write_text('{"step": 20, "sp')
  logged = {'conflicting_pairs': 0.5, 'cosine/attributes~landmarks': -0.1, 'weight/landmarks': 0.3}
  with (made['joint'] / 'metrics.jsonl').open('a') as file:
    for step in (1, 2):
      file.write('\n' + json.dumps({'step': step, **{f'train/{key}': value for key, value in logged.items()}}))
  return made


def make_study(
  directory, tasks, *, data=None, truth=labels, split='', num_seeds=5, sides=('single', 'joint'), gains=(), grid=(),
  diverged=(), predict=predicted,
):  # fmt: skip
  """The working directory of a study; returns the study's JSON.

  Args:
    directory: to write into.
    tasks: of the prepared set.
    data: where it is; by default nowhere.
    truth: the labels of a task's test split.
    split: the config's tasks; by default all as they are.
    num_seeds: of the study.
    sides: its arms.
    gains: by task how much less noise the arms other than `single` have.
    grid: of learning rates.
    diverged: (program, seed) of replicas.
    predict: predictions from task, labels, noise and a random generator.
  """
  config = default.get_config()
  config.tasks = split or ','.join(task.name for task in tasks)
  config.study.arms, config.study.num_seeds, config.study.learning_rates = sides, num_seeds, grid
  config.data.dir = str(data or directory / 'faces')
  facts = DataFacts((64, 64), tuple(tasks), 'a0b1')
  directory.mkdir(parents=True, exist_ok=True)
  workdir.begin(directory, config, facts)
  chosen, gains = facts.selected(config), dict(gains)
  results, compared = ResultStore(directory / 'replicas'), arms.from_config(config, chosen)
  predictions = {arm: [{} for _ in range(num_seeds)] for arm in compared}
  for arm, side in compared.items():
    for program, settings in side.programs.items():
      own = facts.selected(settings)
      for seed in range(num_seeds):
        rng = np.random.default_rng((seed + side.first_seed, len(program)))
        away = (program, seed) in diverged
        noise = {t.name: 0.5 - (gains.get(t.name, 0) if arm != 'single' else 0) for t in own}
        found = {} if away else {t.name: predict(t, truth(t), noise[t.name], rng) for t in own}
        replica = Replica.of(seed + side.first_seed, {arms.RATE: RATE})
        results.put(program, replica, Result(-0.5, 800, _history(own, seed), 2.0, 300 if away else 0), found)
        predictions[arm][seed] |= found
      for rate in grid:
        results.put(program, Replica.of(arms.TUNING_SEED, {arms.RATE: rate}), Result(-rate, 800, {}, 2.0), {})
  study = summary.summarize(
    [one for task in chosen for one in _scored(task, predictions, truth(task))],
    arms=list(compared),
    seeds=list(range(num_seeds)),
  ) | {
    'cost': {
      arm: {'params': 1000000 * len(side.programs), 'flops_per_image': 2e8, 'seconds': 9.0, 'latency_ms': 1.5}
      | {'tuning_seconds': 4.0 * len(side.programs)}
      for arm, side in compared.items()
    },
    'learning_rates': dict.fromkeys((name for side in compared.values() for name in side.programs), RATE),
    'data': {'directory': config.data.dir, 'checksum': 'a0b1', 'splits': {'train': 500, 'test': 60}, 'num_test': 60},
    'device': 'some device',
    'versions': {'mtl_jax': '0.1.0', 'jax': '0.10'},
    'date': '2026-01-01',
  }
  workdir.write_json(directory / 'study.json', study)
  return study


def _history(tasks, seed):
  steps = [100.0 * (i + 1) for i in range(8)]
  values = {'step': steps, 'train/loss': [1 / step for step in steps]}
  for task in tasks:
    values[f'train/{task.name}/loss'] = [(1 + seed) / step + len(task.name) for step in steps]
    values[f'val/{task.name}/{task.main_metric}'] = [0.8 + 0.01 * seed + 0.001 * len(task.name)] * 8
  return values


def _scored(task, predictions, truth):
  num = len(truth)
  return scores.score_task(
    task,
    {arm: [by_task.get(task.name) for by_task in those] for arm, those in predictions.items()},
    truth,
    mask=np.ones(truth.shape, bool),
    source_size=np.tile([178, 218], (num, 1)),
    resampling=draws.draw(np.arange(num) // 2, num_resamples=50),
  )


def make_sweep(directory):
  """The working directory of a sweep with a front of fixed weights and two methods; returns the sweep's JSON."""
  config, tasks = default.get_config(), (ATTRIBUTES, LANDMARKS)
  directory.mkdir(parents=True, exist_ok=True)
  workdir.begin(directory, config, DataFacts((64, 64), tasks, 'a0b1'))
  kinds = {'single': 'single', 'as configured': 'base', 'best': 'best'}
  kinds |= {f'fixed {i}': 'weights' for i in range(1, 5)} | {'uncertainty': 'method', 'cagrad': 'method'}
  predictions: dict[str, list[dict[str, Any]]] = {}
  for place, arm in enumerate(kinds):
    noise = {'attributes': 0.3 + 0.02 * place, 'landmarks': 0.5 - 0.04 * place}
    seeds = [np.random.default_rng((seed, place)) for seed in range(3)]
    predictions[arm] = [{t.name: predicted(t, labels(t), noise[t.name], rng) for t in tasks} for rng in seeds]
  scored = [one for task in tasks for one in _scored(task, predictions, labels(task))]
  drawn = front.summarize(scored, {arm: kind for arm, kind in kinds.items() if kind != 'single'}, reference='single')
  for place, point in enumerate(drawn['points']):
    weights = {'objective.weights.attributes': 2 - 0.2 * place, 'objective.weights.landmarks': 0.2 * place}
    point |= {'values': {arms.RATE: RATE, **(weights if point['kind'] != 'method' else {})}, 'seconds': 9.0}
  trial = {'program': 'joint', 'seconds': 2.0, 'diverged_at': 0, 'pruned_at': 0}
  trials = [
    {**trial, 'trial': i, 'values': {arms.RATE: rate}, 'score': -0.5 - i, 'goals': {'attributes/macro_accuracy': 0.8}}
    for i, rate in enumerate((1e-4, 1e-3, 1e-2))
  ]
  lost = {'score': None, 'goals': {'attributes/macro_accuracy': None}, 'diverged_at': 7}
  trials.append({**trial, 'trial': 3, 'values': {arms.RATE: 1.0}, **lost})
  found = {
    'trials': trials,
    'best': {
      'rule': 'greatest loss', 'values': {arms.RATE: 1e-4}, 'score_of_the_search': -0.5, 'edges': [arms.RATE],
      'confirmed': summary.summarize(scored, arms=['as configured', 'best'], seeds=[0, 1, 2]),
    },
    'front': drawn,
    'diverged_arms': ['mgda'],
    'cost': {
      'trials': {'joint': 4}, 'search_seconds': {'joint': 8.0}, 'confirm_seconds': {'joint': 9.0},
      'seconds_a_trial': 2.0, 'flops_a_run': 1e9, 'flops_of_the_search': 4e9, 'compiled_steps': 2,
    },
    'data': {'directory': '/faces', 'checksum': 'a0b1', 'splits': {'train': 500}},
    'versions': {'jax': '0.10'}, 'device': 'some device', 'date': '2026-01-01',
  }  # fmt: skip
  workdir.write_json(directory / 'sweep.json', found)
  return found


def make_affinity(directory):
  """The working directory of an affinity run."""
  config = default.get_config()
  directory.mkdir(parents=True, exist_ok=True)
  workdir.begin(directory, config, DataFacts((64, 64), (ATTRIBUTES, LANDMARKS), 'a0b1'))
  names = ['attributes/Bald', 'attributes/Smiling', 'attributes/Young', 'landmarks']
  mean = [[0.1, 0.02, -0.01, 0.0], [0.03, 0.2, 0.0, None], [-0.02, 0.01, 0.1, 0.0], [0.0, 0.0, 0.0, -0.1]]
  matrix = {'mean': mean, 'stderr': mean, 'above_noise': np.eye(4)[[1, 0, 2, 3]].astype(bool).tolist()}
  grouping = {'networks': 1, 'groups': [names], 'sure': [1.0], 'expected_gain': 0.01, 'held_out_gain': 0.005}
  found = {
    'tasks': names, 'order': names[::-1], 'grain': 'task', 'overshot': ['landmarks'], 'together': 0.01,
    'looks': {'count': 9, 'every_steps': 5, 'step_size': 0.0, 'steps': 45, 'seconds': {'all': 4.0, 'each': 0.5}},
    'affinity': {**matrix, 'split_half': 0.5}, 'cosine': {**matrix, 'split_half': None},
    'transfer': {**matrix, 'random': [0.0, 0.1, 0.2, None], 'seconds': 2.0, 'seconds_each': 0.5},
    'groupings': [
      {**grouping, 'method': 'exhaustive'},
      {**grouping, 'networks': 2, 'groups': [names[:2], names[2:3]], 'sure': [0.75, None], 'method': 'local search'},
    ],
    'date': '2026-01-01', 'device': 'some device', 'versions': {'jax': '0.10'},
    'data': {'directory': '/faces', 'checksum': 'a0b1', 'splits': {'train': 500}},
  }  # fmt: skip
  workdir.write_json(directory / 'affinity.json', found)
  return found


class Page(html.parser.HTMLParser):
  """Reads a page as lines of text, rows of tables, tags and attributes; checks that it stands by itself.

  Tags close in order, ids are unique and referred to from within alone, and nothing outside is referred to.
  """

  VOID = frozenset({'meta', 'link', 'img', 'br', 'hr', 'input'})
  BREAKS = frozenset({'p', 'tr', 'li', 'dd', 'summary', 'h1', 'h2', 'h3', 'figcaption', 'div', 'table'})
  MARKS: ClassVar = {'h1': '# ', 'h2': '\n## ', 'h3': '### ', 'summary': '> ', 'dd': ': ', 'td': ' | '}
  SILENT = frozenset({'style', 'script', 'pre', 'svg', 'select'})

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.text, self.rows = [], [], [], '', []
    self.feed(text)
    self.close()
    assert self.open == []
    assert not re.search(r'(src|href|action)="(https?:|//)|url\((?!#)|@import', text)
    references = [value for name, value in self.attributes if name in ('src', 'href', 'xlink:href', 'action', 'data')]
    assert all(value.startswith(('data:image/', '#')) for value in references)
    ids = [value for name, value in self.attributes if name == 'id']
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in references if value[0] == '#'} | set(re.findall(r'url\(#([^)]*)\)', text)) <= set(
      ids
    )

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag == 'tr':
      self.rows.append([])
    elif tag in ('td', 'th'):
      self.rows[-1].append('')
    self.attributes += attrs
    self.text += self.MARKS.get(tag, ' | ' if tag == 'th' and len(self.rows[-1]) > 1 else '')
    if alt := dict(attrs).get('alt') or (tag == 'figure' and dict(attrs).get('aria-label')):
      self.text += f'\n[{alt}]\n'
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag
    if tag in self.BREAKS:
      self.text += '\n'

  def handle_data(self, data):
    if not self.SILENT & set(self.open):
      self.text += data.replace('\xa0', ' ') if data.strip() else ''
    if {'td', 'th'} & set(self.open) and 'svg' not in self.open:
      self.rows[-1][-1] += data.replace('\xa0', ' ')

  def golden(self, directory):
    """The lines of the text, without what differs from day to day and place to place."""
    text = self.text.replace(str(directory), 'DIR')
    text = re.sub(r'(written:? )[-:\d UTC]+', r'\1NOW', text)
    text = re.sub(r'^(mtl_jax|jax|flax|optax|numpy): .*$', r'\1: VERSION', text, flags=re.M)
    lines = [line.strip() for line in text.splitlines()]
    return re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)).strip() + '\n'


def kinds():
  """A task of each kind, by its name."""
  classes = {'classes': ('around', 'left', 'right')}
  more = {'categorical': classes, 'ordinal': classes, 'dense': {**classes, 'size': (4, 4)}}
  own = {'landmarks': LANDMARKS.labels, 'binary': ('a', 'b')}
  return {
    kind: cls(f'some_{kind}', own.get(kind, ('label',)), **more.get(kind, {})) for kind, cls in task_kinds.KINDS.items()
  }
