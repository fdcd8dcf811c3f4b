"""Reports are written from the files of runs alone: the table, the verdicts, and a page that stands by itself."""

import html.parser
import io
import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtl_jax import metrics, reports
from mtl_jax.data.source import Record
from mtl_jax.data.store.writer import prepare
from mtl_jax.errors import CheckpointError, DataError
from mtl_jax.reports import scoreboard
from mtl_jax.reports.faces import MAX_FACES
from mtl_jax.run import goodput
from mtl_jax.tasks import BinaryTask

ATTRIBUTES = ('Smiling', 'Wearing_Hat', 'Young')
POINTS = ('lefteye', 'righteye', 'nose')
NUM_EXAMPLES = 20


def predictions(seed):
  """Labels and predictions `{task: (pred, label, mask)}` of a made-up test split."""
  random = np.random.default_rng(seed)
  labels = np.random.default_rng(0).random((NUM_EXAMPLES, 3)) < 0.4
  scores = np.clip(labels * 0.5 + 0.6 * random.random(labels.shape), 0, 1)
  points = np.tile([0.3, 0.4, 0.7, 0.4, 0.5, 0.6], (NUM_EXAMPLES, 1))
  masks = np.ones((NUM_EXAMPLES, 3), bool), np.ones((NUM_EXAMPLES, 6), bool)
  masks[1][3, :2] = False
  return {
    'attributes': (scores, labels.astype(float), masks[0]),
    'landmarks': (points + random.normal(0, 0.02, points.shape), points, masks[1]),
  }


def evaluate(values):
  """Metrics of one task from (pred, label, mask)."""
  pred, label, mask = values
  if pred.shape[1] == 6:
    size = np.tile([178, 218], (len(pred), 1))
    return metrics.landmarks(pred, label, mask=mask, points=POINTS, source_size=size)
  return metrics.binary(pred, label, mask=mask, names=ATTRIBUTES)


def evaluation(tasks, *, seed=0):
  arrays = predictions(seed)
  means = {task: (np.zeros_like(label) + label.mean(0), label, mask) for task, (_, label, mask) in arrays.items()}
  means['landmarks'] = (means['landmarks'][0] + 0.05, *means['landmarks'][1:])
  return {
    'step': 20,
    'split': 'test',
    'num_examples': NUM_EXAMPLES,
    'tasks': {task: evaluate(arrays[task]) for task in tasks},
    'baseline': {task: evaluate(means[task]) for task in tasks},
  }


def write_run(folder, tasks, *, seed=0, steps=20):
  (folder / 'eval').mkdir(parents=True)
  config = {
    'tasks': list(tasks),
    'train': {'steps': steps, 'batch_size': 4, 'seed': 0},
    'model': {'backbone': 'convnet'},
    'data': {'dir': str(folder.parent / 'data')},
    'objective': {'name': 'equal'},
  }
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'eval' / 'test.json').write_text(json.dumps(evaluation(tasks, seed=seed)))
  arrays: dict[str, Any] = {'example_id': np.arange(NUM_EXAMPLES, dtype=np.int32)}
  for task in tasks:
    arrays |= dict(zip((f'{task}/pred', f'{task}/label', f'{task}/mask'), predictions(seed)[task], strict=True))
  np.savez(folder / 'eval' / 'test.npz', **arrays)
  lines = []
  for step in range(1, 21):
    losses = {f'train/{task}/loss': 1 / step for task in tasks}
    lines.append({'step': step, 'epoch': step / 5, 'train/loss': 2 / step, 'images_per_sec': 100.0, **losses})
  lines.append({'step': 20, 'val/attributes/macro_accuracy': 0.8, 'val/landmarks/nme': float('nan'), 'new/key': 'text'})
  # The last line is what a run that was killed leaves.
  (folder / 'metrics.jsonl').write_text('\n'.join(json.dumps(line) for line in lines) + '\n{"step": 2')
  return folder


class Faces:
  """A source of noise in which every image is a test image."""

  name = 'faces'
  tasks = (BinaryTask('attributes', ('Smiling',)),)

  def records(self):
    for number in range(NUM_EXAMPLES):
      content = io.BytesIO()
      pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), np.uint8)
      Image.fromarray(pixels).save(content, 'png')
      yield Record(f'{number}.png', 'test', content.getvalue, {'attributes': np.ones(1, np.float32)})


@pytest.fixture(scope='module')
def faces_dir(tmp_path_factory):
  """A prepared set of JPEGs."""
  directory = tmp_path_factory.mktemp('faces') / 'set'
  prepare(Faces(), directory, image_size=(24, 20), encoding='jpeg', log=lambda _: None)
  return directory


@pytest.fixture
def workdir(tmp_path, faces_dir):
  write_run(tmp_path / 'joint', ('attributes', 'landmarks'), seed=1)
  write_run(tmp_path / 'attributes', ('attributes',), seed=2)
  write_run(tmp_path / 'landmarks', ('landmarks',), seed=3)
  shutil.copytree(faces_dir, tmp_path / 'data')
  return tmp_path


class Page(html.parser.HTMLParser):
  """Checks that tags close in order, and gathers tags, attributes, text and the cells of tables."""

  VOID = frozenset({'meta', 'link', 'img', 'br', 'hr', 'input'})

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.text, self.rows = [], [], [], '', []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag == 'tr':
      self.rows.append([])
    elif tag in ('td', 'th'):
      self.rows[-1].append('')
    self.attributes += attrs
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data
    if {'td', 'th'} & set(self.open):
      self.rows[-1][-1] += data


def written(runs, tmp_path, **keywords):
  out = tmp_path / 'out' / 'report.html'
  reports.write_report(runs, out, **{'title': 'A report', **keywords})
  text = out.read_text('utf-8')
  return text, Page(text)


def test_table_puts_the_baseline_first_and_a_dash_for_a_task_that_a_run_lacks():
  evals = {'joint': evaluation(('attributes', 'landmarks'), seed=1), 'alone': evaluation(('landmarks',), seed=2)}
  table = reports.comparison(evals)
  assert [(column.task, column.metric) for column in table.columns] == [
    ('attributes', 'macro_accuracy'),
    ('attributes', 'macro_balanced_accuracy'),
    ('attributes', 'macro_f1'),
    ('attributes', 'macro_ap'),
    ('landmarks', 'nme'),
    ('landmarks', 'failure_rate_10'),
    ('landmarks', 'mae'),
  ]
  assert [row.name for row in table.rows] == ['majority class / mean face', 'joint', 'alone']
  baseline, joint, alone = table.rows
  assert baseline.values[4] == evals['joint']['baseline']['landmarks']['nme']
  assert joint.values[0] == evals['joint']['tasks']['attributes']['macro_accuracy']
  assert joint.cells[0] == f'{100 * evals["joint"]["tasks"]["attributes"]["macro_accuracy"]:.2f}%'
  assert alone.cells[:4] == ('—',) * 4
  assert alone.values[:4] == (None,) * 4
  assert alone.values[4] == evals['alone']['tasks']['landmarks']['nme']


def test_table_knows_split_tasks_and_other_kinds():
  scores = {'accuracy': 0.5, 'balanced_accuracy': 0.4, 'macro_f1': 0.3, 'confusion': [[1]], 'per_output': {}}
  tasks = {
    'age': {'mae': 5.25, 'rmse': 7.5, 'per_output': {}},
    'pose': scores,
    'attributes/Smiling': evaluation(('attributes',))['tasks']['attributes'],
    'unheard_of': {'something': 1.0},
  }
  table = reports.comparison({'run': {'tasks': tasks}})
  assert list(dict.fromkeys(column.task for column in table.columns)) == ['attributes/Smiling', 'age', 'pose']
  assert set(table.rows[0].cells) == {'—'}
  assert table.rows[1].cells[4:] == ('5.25', '7.5', '50.00%', '40.00%')


def test_text_table_is_aligned_and_fits_a_terminal():
  tasks = ('attributes', 'landmarks')
  evals = {'joint': evaluation(tasks, seed=1), 'landmarks': evaluation(('landmarks',), seed=2)}
  lines = reports.text_table(evals).splitlines()
  assert len(lines) == 5
  assert max(map(len, lines)) <= 110
  assert len({len(line) for line in lines[1:]}) == 1
  assert lines[2].startswith('majority class / mean face')
  wide = {'joint': {'tasks': {f'attributes/{i}': evals['joint']['tasks']['attributes'] for i in range(9)}}}
  lines = reports.text_table(wide).splitlines()
  assert max(map(len, lines)) <= 110
  assert sum(line.count('attributes/') for line in lines) == 9


def test_headlines_are_computed_from_the_figures():
  def run(accuracy, nme=None):
    tasks = {'attributes': {'macro_accuracy': accuracy}} if accuracy else {}
    return {'tasks': tasks | ({'landmarks': {'nme': nme}} if nme else {})}

  evals = {'joint': run(0.90, 0.04), 'a': run(0.91), 'l': run(None, 0.05)}
  evals['joint']['baseline'] = {'attributes': {'macro_accuracy': 0.905}, 'landmarks': {'nme': 0.2}}
  attributes, landmarks = scoreboard.headlines(evals)
  assert attributes['verdict'] == 'Joint training is worse: accuracy 1.00 points lower than training alone.'
  assert attributes['detail'] == 'joint 90.00% · a 91.00% · majority class 90.50%'
  assert attributes['caution'] == 'Not better than the baseline: joint.'
  assert landmarks['verdict'] == 'Joint training is better: NME 1.00 points lower than training alone.'
  assert (attributes['outcome'], landmarks['outcome'], landmarks['caution']) == ('worse', 'better', '')
  (same, _) = scoreboard.headlines({'joint': run(0.9, 0.04), 'a': run(0.900001)})
  assert same['verdict'] == 'Joint training and training alone score the same accuracy.'
  (alone,) = scoreboard.headlines({'run': run(0.9)})
  assert alone['verdict'] == 'Accuracy 90.00%'


def test_page_parses_and_refers_to_nothing_outside(workdir):
  text, page = written(reports.find_runs(workdir), workdir, pictures=True)
  references = [value for name, value in page.attributes if name in ('src', 'href', 'xlink:href', 'action', 'data')]
  assert references
  assert all(value.startswith(('data:image/jpeg;base64,', '#')) for value in references)
  assert 'url(http' not in text
  assert '@import' not in text
  assert page.tags.count('img') == MAX_FACES
  assert 'One seed: no statement about significance' in page.text
  assert 'differ in more than their tasks' not in page.text
  ids = [value for name, value in page.attributes if name == 'id']
  assert len(ids) == len(set(ids))
  assert {value[1:] for value in references if value[0] == '#'} <= set(ids)
  assert set(re.findall(r'url\(#([^)]*)\)', text)) <= set(ids)


def test_every_picture_has_a_text(workdir):
  _, page = written(reports.find_runs(workdir), workdir, pictures=True)
  texts = [value for name, value in page.attributes if name in ('alt', 'aria-label')]
  # Faces; bars; tables of metrics, two of outputs, and of fields; two losses and two validation metrics.
  assert len(texts) == MAX_FACES + 1 + 4 + 4
  assert any('3 true landmarks; joint off by' in value for value in texts)
  assert sum('2 true landmarks; joint off by' in value for value in texts) == 1


def test_page_without_pictures_needs_no_predictions_and_no_data(workdir):
  shutil.rmtree(workdir / 'data')
  for name in ('joint', 'landmarks'):
    (workdir / name / 'eval' / 'test.npz').unlink()
  (workdir / 'joint' / 'metrics.jsonl').unlink()
  text, page = written(reports.find_runs(workdir), workdir)
  assert 'img' not in page.tags
  assert 'data:' not in text


def test_the_page_says_what_the_time_of_a_run_went_into(workdir):
  spent = dict.fromkeys(goodput.HEADINGS, 0.0) | {'step': 75.0, 'compile': 20.0, 'eval': 5.0}
  (workdir / 'joint' / 'goodput.json').write_text(json.dumps({'step': 20, 'spent': spent}))
  (workdir / 'landmarks' / 'goodput.json').write_text('{"step": 20, "sp')
  _, page = written(reports.find_runs(workdir), workdir)
  assert '75.0 % of 100.0 s: step 75.0 s, compile 20.0 s, input 0.0 s, eval 5.0 s' in page.text
  assert page.text.count('% of 100.0 s') == 1


def test_runs_that_are_not_evaluated_are_left_out_and_said(workdir, said):
  (workdir / 'study').mkdir()
  (workdir / 'study' / 'config.json').write_text('{}')
  assert set(reports.find_runs(workdir)) == {'joint', 'attributes', 'landmarks'}
  assert said == [f'warning: {workdir / "study"} is left out: it has no eval/test.json']
  for name in ('joint', 'attributes', 'landmarks'):
    shutil.rmtree(workdir / name / 'eval')
  with pytest.raises(CheckpointError, match='is evaluated; do it with `mtl-jax eval --workdir'):
    reports.find_runs(workdir)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 cut short'])
def test_predictions_that_were_cut_short_say_how_to_make_them_again(workdir, content):
  (workdir / 'joint' / 'eval' / 'test.npz').write_bytes(content)
  with pytest.raises(CheckpointError, match='make it again with `mtl-jax eval'):
    written(reports.find_runs(workdir), workdir, pictures=True)


def test_one_run_makes_a_page_without_comparison(workdir):
  _, page = written({'joint': workdir / 'joint'}, workdir)
  assert 'training alone' not in page.text
  assert 'significance' not in page.text
  assert 'Accuracy' in page.text


def test_runs_of_unlike_budgets_are_pointed_out(tmp_path):
  write_run(tmp_path / 'joint', ('attributes', 'landmarks'))
  write_run(tmp_path / 'attributes', ('attributes',), steps=40)
  _, page = written(reports.find_runs(tmp_path), tmp_path)
  assert 'differ in more than their tasks (train.steps)' in page.text


def test_hostile_names_are_only_text(workdir):
  name = '<script>alert("x")</script>$\\frac{'
  for run in ('joint', 'attributes'):
    path = workdir / run / 'eval' / 'test.json'
    path.write_text(path.read_text().replace('"attributes"', json.dumps(name)).replace('"Smiling"', json.dumps(name)))
  text, page = written({name: workdir / 'joint', 'b': workdir / 'attributes'}, workdir, title=name)
  assert 'script' not in page.tags
  assert '<script' not in text
  assert name in page.text


def test_split_tasks_make_one_chart_and_a_count(tmp_path):
  single = evaluation(('attributes',))['tasks']['attributes']
  tasks = {}
  for i in range(8):
    output = single['per_output']['Smiling']
    tasks[f'attributes/a{i}'] = {**single, 'per_output': {f'a{i}': output}}
  for run, names in (('joint', list(tasks)), ('a0', ['attributes/a0'])):
    folder = write_run(tmp_path / run, ('attributes',))
    chosen = {name: tasks[name] for name in names}
    (folder / 'eval' / 'test.json').write_text(json.dumps({'tasks': chosen, 'baseline': chosen}))
  _, page = written(reports.find_runs(tmp_path), tmp_path)
  assert 'better on 0, worse on 0 and the same on 1 of the 1 tasks' in page.text
  assert page.text.count('attributes, one by one') == 1


@pytest.mark.parametrize('missing', ['eval/test.json', 'eval/test.npz'])
def test_a_missing_file_is_named_with_the_command_that_makes_it(workdir, missing):
  (workdir / 'joint' / missing).unlink()
  with pytest.raises(CheckpointError) as caught:
    written(reports.find_runs(workdir / 'joint'), workdir, pictures=True)
  message = str(caught.value)
  assert str(workdir / 'joint' / missing) in message
  assert f'mtl-jax eval --workdir {workdir / "joint"}' in message
  assert '\n' not in message


@pytest.mark.parametrize('content', ['{"tasks": ', '[]', '{}'])
def test_a_damaged_evaluation_is_named(workdir, content):
  path = workdir / 'joint' / 'eval' / 'test.json'
  path.write_text(content)
  with pytest.raises(CheckpointError, match=re.escape(str(path))):
    written(reports.find_runs(workdir), workdir)


def test_missing_pictures_are_named_with_the_way_out(workdir):
  shutil.rmtree(workdir / 'data')
  with pytest.raises(DataError, match=r'data: no such folder of a prepared set; make one with: mtl-jax prepare'):
    written(reports.find_runs(workdir), workdir, pictures=True)


def test_find_runs_lists_joint_first(workdir):
  assert list(reports.find_runs(workdir)) == ['joint', 'attributes', 'landmarks']
  assert reports.find_runs(workdir / 'landmarks') == {'landmarks': workdir / 'landmarks'}
  with pytest.raises(CheckpointError, match='mtl-jax train'):
    reports.find_runs(workdir / 'data')


def test_logged_gradients_are_drawn_and_what_is_not_logged_is_not(workdir):
  _, page = written(reports.find_runs(workdir), workdir)
  assert 'Gradients of the losses' not in page.text
  logged = {'conflicting_pairs': 0.5, 'cosine/attributes~landmarks': -0.1, 'weight/landmarks': 0.3}
  lines = [json.dumps({'step': step, **{f'train/{key}': value for key, value in logged.items()}}) for step in (1, 2)]
  (workdir / 'joint' / 'metrics.jsonl').write_text('\n'.join(lines))
  _, page = written(reports.find_runs(workdir), workdir)
  for heading in ('gradients conflict', 'Cosine: attributes and landmarks', 'Weight: landmarks'):
    assert heading in page.text
  assert 'Gradient norm' not in page.text
