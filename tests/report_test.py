"""Pages of runs, studies and affinity runs are made of their files alone, and say what those say."""

import difflib
import json
import os
import shutil

import numpy as np
import pages
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import (
  ATTRIBUTES,
  GOLDEN,
  LANDMARKS,
  NUM_FACES,
  PARSING,
  Page,
  make_affinity,
  make_faces,
  make_run,
  make_runs,
  make_study,
  make_sweep,
  of_faces,
)

from mtl_jax import cli, reports
from mtl_jax.errors import CheckpointError, UserError
from mtl_jax.reports import charts, figures, page, pictures, scoreboard
from mtl_jax.reports.charts import Side
from mtl_jax.reports.runs import load
from mtl_jax.tasks import BinaryTask


@pytest.fixture(scope='module')
def faces_dir(tmp_path_factory):
  return make_faces(tmp_path_factory.mktemp('faces') / 'set')


@pytest.fixture
def runs(tmp_path, faces_dir):
  make_runs(tmp_path / 'runs', data=faces_dir, truth=of_faces, ids=np.arange(NUM_FACES))
  return tmp_path / 'runs'


def written(directory, **keywords):
  text = reports.rebuild(directory, **keywords).read_text('utf-8')
  return text, Page(text)


@pytest.mark.parametrize('kind', ['runs', 'study', 'sweep', 'affinity'])
def test_a_page_is_as_it_was(tmp_path, kind):
  """Differences wanted? Write the pages anew: MTL_JAX_WRITE_GOLDEN=1 pytest tests/report_test.py -k as_it_was"""
  directory = tmp_path / 'here'
  if kind == 'runs':
    make_runs(directory)
    text = reports.terminal.of_runs(reports.find_runs(directory))
  elif kind == 'study':
    sides = ('single', 'joint', 'joint_again')
    make_study(directory, (ATTRIBUTES, LANDMARKS), sides=sides, gains={'landmarks': 0.3}, grid=(pages.RATE, 3e-3))
    text = reports.terminal.of_study(json.loads((directory / 'study.json').read_text()))
  elif kind == 'sweep':
    text = reports.terminal.of_sweep(make_sweep(directory))
  else:
    make_affinity(directory)
    text = reports.terminal.of_affinity(json.loads((directory / 'affinity.json').read_text()))
  text = written(directory)[1].golden(directory) + f'\n{text}\n'
  path = GOLDEN / f'{kind}.txt'
  if os.environ.get('MTL_JAX_WRITE_GOLDEN'):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  difference = difflib.unified_diff(path.read_text().splitlines(), text.splitlines(), 'before', 'now', lineterm='')
  assert not (lines := list(difference)), '\n'.join(lines)


# What a page says.


def test_scores_stand_by_task_after_the_baseline_with_a_dash_for_a_task_that_a_run_lacks(runs):
  found = load(reports.find_runs(runs))
  table = scoreboard.scoreboard(found)
  joint, attributes, landmarks = (run.evaluation for run in found)
  assert [column.text for column in table.columns[2:]] == ['joint', 'attributes', 'landmarks', 'joint less alone']
  (nme,) = [row for row in table.rows if row.name == 'NME ↓']
  scores = [one['landmarks']['nme'] for one in (joint['baseline'], joint['tasks'], landmarks['tasks'])]
  assert [cell.text for cell in nme.cells if cell.text != '—'][:3] == [figures.level(value, 'nme') for value in scores]
  assert nme.cells[2].text == '—'
  assert nme.cells[-1].text.endswith('better' if scores[1] < scores[2] else 'worse')
  (accuracy,) = [row for row in table.rows if row.name == 'accuracy ↑']
  values = [one['tasks']['attributes']['macro_accuracy'] for one in (joint, attributes)]
  assert [cell.style for cell in accuracy.cells[1:3]] == (['best', ''] if values[0] > values[1] else ['', 'best'])


@pytest.mark.parametrize(
  ('metric', 'joint', 'alone', 'outcome'),
  [('nme', 0.05, 0.04, 'worse'), ('nme', 0.04, 0.05, 'better'), ('macro_accuracy', 0.9, 0.900001, 'same')],
)
def test_a_difference_is_judged_by_the_direction_of_its_metric(tmp_path, metric, joint, alone, outcome):
  task = LANDMARKS if metric == 'nme' else ATTRIBUTES
  for name, tasks, value in (('joint', (ATTRIBUTES, LANDMARKS), joint), ('alone', (task,), alone)):
    file = make_run(tmp_path / name, tasks) / 'eval' / 'test.json'
    found = json.loads(file.read_text())
    found['tasks'][task.name][metric] = value
    file.write_text(json.dumps(found))
  assert scoreboard.outcomes(load(reports.find_runs(tmp_path)), task)[metric][-1] == outcome


def test_metrics_of_a_task_that_disagree_are_said(tmp_path):
  for name, tasks, f1 in (('joint', (ATTRIBUTES, LANDMARKS), 0.0), ('attributes', (ATTRIBUTES,), 1.0)):
    file = make_run(tmp_path / name, tasks) / 'eval' / 'test.json'
    found = json.loads(file.read_text())
    found['tasks']['attributes'] |= {'macro_f1': f1, 'macro_accuracy': 1 - f1}
    file.write_text(json.dumps(found))
  text = written(tmp_path)[1].text
  assert 'scored higher in this run on 1 of the 1 tasks' in text
  assert 'Metrics disagree on attributes' in text


def test_every_kind_of_task_has_its_metrics_on_the_page(tmp_path):
  rng = np.random.default_rng(0)
  tasks = pages.kinds()
  folder = make_run(tmp_path / 'run', ())
  config = json.loads((folder / 'config.json').read_text())
  config['tasks'] = ','.join(task.name for task in tasks.values())
  (folder / 'config.json').write_text(json.dumps(config))
  facts = json.loads((folder / 'dataset.json').read_text())
  facts['tasks'] = [task.to_json() for task in tasks.values()]
  (folder / 'dataset.json').write_text(json.dumps(facts))
  scores = {task.name: {metric.name: rng.random() for metric in task.measures} for task in tasks.values()}
  (folder / 'eval' / 'test.json').write_text(json.dumps({'tasks': scores}))
  rows = [tuple(row[:1] + row[2:3]) for row in written(folder)[1].rows]
  for task in tasks.values():
    for metric in task.shown:
      shown = figures.level(scores[task.name][metric], metric)
      assert (figures.directed(metric), shown) in rows


def test_tasks_of_one_output_make_one_chart_of_their_group(tmp_path):
  tasks = [ATTRIBUTES.subset((label,), field='', name=f'attributes/{label}') for label in ATTRIBUTES.labels]
  for name, own in {'joint': tasks, 'bald': tasks[:1]}.items():
    folder = make_run(tmp_path / name, (ATTRIBUTES,))
    config = json.loads((folder / 'config.json').read_text())
    config['tasks'] = ','.join(task.name for task in own)
    (folder / 'config.json').write_text(json.dumps(config))
    found = json.loads((folder / 'eval' / 'test.json').read_text())
    per_output = found['tasks']['attributes']['per_output']
    scores = {
      task.name: {**found['tasks']['attributes'], 'per_output': {label: per_output[label]}}
      for task in own
      for label in task.labels
    }
    (folder / 'eval' / 'test.json').write_text(json.dumps({'tasks': scores, 'baseline': scores}))
  text = written(tmp_path)[1].text
  assert text.count('attributes, one by one') == 1
  assert '0 of the 1 tasks' in text
  assert 'same on 1' in text


def test_runs_of_unlike_budgets_are_pointed_out(tmp_path):
  make_run(tmp_path / 'joint', (ATTRIBUTES, LANDMARKS))
  make_run(tmp_path / 'attributes', (ATTRIBUTES,), steps=40)
  assert '(train.steps)' in written(tmp_path)[1].text


def test_one_run_makes_a_page_without_comparison(runs):
  text = written(runs / 'joint')[1].text
  assert 'less alone' not in text
  assert 'significance' not in text


def test_figures_have_as_many_decimals_as_their_interval_is_wide():
  assert figures.difference(0.00012, 'nme', (0.00009, 0.00015)) == ('+0.0120 points', '+0.0090 to +0.0150')
  assert figures.difference(-5.25, 'mae', (-5.75, -4.75)) == (
    '\N{MINUS SIGN}5.25',
    '\N{MINUS SIGN}5.75 to \N{MINUS SIGN}4.75',
  )
  assert figures.size(1.234, 'nme') == '120 points'
  assert figures.difference(-1e-9, 'nme', (-0.01, 0.01))[0] == '0.00 points'
  assert figures.level(None, 'nme') == '—'
  assert figures.p_text(0.0004) == '< 0.001'


@pytest.mark.parametrize('kind', ['runs', 'study'])
def test_hostile_names_are_only_text(tmp_path, kind):
  name = '<script>alert("x")</script>$\\frac{'
  task = BinaryTask('faces', (name, '<i>&', 'c'))
  if kind == 'runs':
    make_run(tmp_path / '<b>x', (task, LANDMARKS))
    make_run(tmp_path / 'other', (task,))
  else:
    make_study(tmp_path, (task, LANDMARKS))
  text, found = written(tmp_path)
  assert found.tags.count('script') == 1  # Our own.
  assert not {'i', 'b'} & set(found.tags)
  assert '<script>alert' not in text
  assert name.replace('_', ' ') in found.text


# Pictures.


def test_pictures_are_shown_only_when_asked_for(runs):
  assert 'img' not in written(runs)[1].tags
  found = written(runs, pictures=True)[1]
  assert found.tags.count('img') == pictures.MAX_IMAGES
  texts = [value for name, value in found.attributes if name == 'alt']
  assert all('(joint)' in text and '(landmarks)' in text for text in texts)


def test_a_page_without_pictures_needs_no_predictions_and_no_data(tmp_path):
  make_runs(tmp_path)
  for folder in tmp_path.iterdir():
    (folder / 'eval' / 'test.npz').unlink()
    (folder / 'metrics.jsonl').unlink()
  assert 'Test metrics' in written(tmp_path)[1].text


def test_a_mask_is_drawn_over_the_picture_beside_that_of_the_label(faces_dir, tmp_path):
  """White pictures: the label's two classes and none where nothing is labelled, then what each side predicts."""
  label, mask = np.repeat([1, 2], 10)[None].repeat(24, 0).astype(np.uint8), np.ones((24, 20), bool)
  mask[:6] = False
  predicted = {Side('a', 0): np.zeros_like(label), Side('b', 1): np.full_like(label, 2)}
  white = np.full((24, 20, 3), 255, np.uint8)
  drawn = np.asarray(pictures._draw(white, PARSING, label, mask, predictions=predicted))
  (height, width), colours = drawn.shape[:2], {}
  assert width == 3 * round(20 * height / 24)
  tiles = np.split(drawn, 3, axis=1)
  middle = height // 2
  colours = [tiles[0][middle, 20], tiles[0][middle, -20]]
  assert (tiles[0][: height // 5] == 255).all()
  assert not np.array_equal(*colours)
  assert (tiles[1] == 255).all()
  assert (tiles[2] == colours[1]).all()
  run = make_run(tmp_path / 'run', (PARSING,), data=faces_dir, truth=of_faces, ids=np.arange(NUM_FACES), predict=maps)
  found = written(run, pictures=True)[1]
  assert found.tags.count('img') == pictures.MAX_IMAGES
  assert 'off by 0.5' in found.text


def maps(task, truth, noise, rng):
  """The right class in the left half alone."""
  return np.ones(truth.shape, np.uint8)


def test_the_worst_images_of_a_study_are_shown(faces_dir, tmp_path):
  make_study(tmp_path, (ATTRIBUTES, LANDMARKS), data=faces_dir, truth=of_faces, num_seeds=2)
  found = written(tmp_path, pictures=True)[1]
  assert found.tags.count('img') == 2 * pictures.MAX_IMAGES
  assert 'the mean error over the labels' in found.text
  assert ' is 1: off by' in found.text


# Files that are not as they were written.


@pytest.mark.parametrize('missing', ['eval/test.json', 'eval/test.npz'])
def test_a_missing_file_is_named_with_the_command_that_makes_it(runs, missing):
  (runs / 'joint' / missing).unlink()
  with pytest.raises(CheckpointError) as caught:
    reports.rebuild(runs / 'joint', pictures=True)
  assert str(runs / 'joint' / missing) in str(caught.value)
  assert f'mtl-jax eval --workdir {runs / "joint"}' in str(caught.value)


@pytest.mark.parametrize('damage', [b'', b'PK\x03\x04 cut short', 'other images'])
def test_predictions_of_no_use_are_named(runs, damage):
  path = runs / 'joint' / 'eval' / 'test.npz'
  if isinstance(damage, bytes):
    path.write_bytes(damage)
  else:
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, 'example_id': arrays['example_id'][::-1]})
  with pytest.raises(CheckpointError, match=str(path)):
    reports.rebuild(runs, pictures=True)


def test_runs_that_are_not_evaluated_are_left_out_and_said(runs, said):
  assert list(reports.find_runs(runs)) == ['joint', 'attributes', 'landmarks']
  assert reports.find_runs(runs / 'landmarks') == {'landmarks': runs / 'landmarks'}
  shutil.rmtree(runs / 'attributes' / 'eval')
  assert list(reports.find_runs(runs)) == ['joint', 'landmarks']
  assert any(str(runs / 'attributes') in line for line in said)
  for name in ('joint', 'landmarks'):
    shutil.rmtree(runs / name / 'eval')
  with pytest.raises(CheckpointError, match='mtl-jax eval --workdir'):
    reports.find_runs(runs)
  with pytest.raises(CheckpointError, match='mtl-jax train'):
    reports.find_runs(runs / 'joint' / 'nothing')


JSON = st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=3) | st.integers(-2, 2),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                    max_leaves=5)  # fmt: skip


def spoilt(value, draw):
  """The same JSON with another value at some place in it."""
  if isinstance(value, dict | list) and value and draw(st.integers(0, 9)):
    copy = value.copy()
    place = draw(st.sampled_from(list(value))) if isinstance(value, dict) else draw(st.integers(0, len(value) - 1))
    copy[place] = spoilt(value[place], draw)
    return copy
  return draw(JSON)


@pytest.mark.parametrize(
  ('make', 'file'),
  [
    (make_runs, 'joint/eval/test.json'),
    (None, 'study.json'),
    (make_sweep, 'sweep.json'),
    (make_affinity, 'affinity.json'),
  ],
  ids=['eval', 'study', 'sweep', 'affinity'],
)
def test_any_json_makes_a_page_or_is_named_in_one_line(tmp_path, monkeypatch, make, file):
  make(tmp_path) if make else make_study(tmp_path, (ATTRIBUTES, LANDMARKS), num_seeds=2)
  monkeypatch.setattr(page, 'chart', lambda heading, figure, alt, **_: page.Chart(heading, '', alt))
  monkeypatch.setattr(charts, '_label', lambda *_: None)  # It lays the whole figure out.
  path = tmp_path / file
  whole = json.loads(path.read_text())

  @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
  @given(st.data())
  def check(data):
    path.write_text(json.dumps(spoilt(whole, data.draw)))
    told = str(path)
    try:
      reports.rebuild(tmp_path)
    except UserError as error:
      told = str(error)
    assert str(path) in told
    assert '\n' not in told

  for content in ('', '[]', '{}', '{"tasks": ', '[' * 100_000):
    path.write_text(content)
    with pytest.raises(CheckpointError, match=str(path)):
      reports.rebuild(tmp_path)
  check()


def test_the_report_command_prints_the_path_of_the_page(tmp_path, capsys):
  make_study(tmp_path, (ATTRIBUTES, LANDMARKS), num_seeds=1)
  assert cli.main(['report', '--workdir', str(tmp_path)]) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / 'report.html')
  (tmp_path / 'study.json').unlink()
  assert cli.main(['report', '--workdir', str(tmp_path)]) == 2  # Unfinished.
  assert str(tmp_path / 'study.json') in capsys.readouterr().err
