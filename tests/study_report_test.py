"""A study's page says what its figures say and no more, stands by itself, and sorts and filters in a real browser."""

import functools
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from report_test import Page

from mtl_jax import cli
from mtl_jax.configs import default
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import CheckpointError
from mtl_jax.metrics import draws
from mtl_jax.reports import findings
from mtl_jax.reports import study_page as report
from mtl_jax.run import workdir
from mtl_jax.run.workdir import DataFacts
from mtl_jax.studies import arms, scores, summary
from mtl_jax.studies.arms import Replica
from mtl_jax.studies.results import Result, ResultStore, read_record
from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, RegressionTask

POINTS = ('lefteye', 'righteye', 'nose', 'leftmouth', 'rightmouth')
LANDMARKS = LandmarkTask('landmarks', tuple(f'{point}_{axis}' for point in POINTS for axis in 'xy'))
ATTRIBUTES = BinaryTask('attributes', ('Bald', 'Smiling', 'Young'))
MANY = BinaryTask('attributes', tuple(f'Attribute_{i:02d}' for i in range(40)))
NUM_IMAGES, RATE = 60, 1e-3


@functools.cache
def made_up(task):
  """Labels `[n, k]` of a test split."""
  rng = np.random.default_rng(len(task.labels))
  if task.kind == 'landmarks':
    face = np.array([0.3, 0.4, 0.7, 0.4, 0.5, 0.55, 0.35, 0.7, 0.65, 0.7])
    return face + rng.normal(0, 0.02, (NUM_IMAGES, 10))
  return (rng.random((NUM_IMAGES, len(task.labels))) < 0.4).astype(float)


def predicted(task, labels, noise, rng):
  """Predictions `[n, outputs]` that are worse with more noise."""
  if task.kind == 'landmarks':
    return labels + 0.03 * (1 + noise) * rng.normal(size=labels.shape)
  return np.clip(0.5 + 0.3 * (labels - 0.5) + (0.15 + 0.2 * noise) * rng.normal(size=labels.shape), 0, 1)


def made(
  directory,
  tasks,
  *,
  data=None,
  labels=made_up,
  split='',
  num_seeds=5,
  sides=('single', 'joint'),
  gains=(),
  grid=(),
  diverged=(),
):
  """The working directory of a study that was never run; returns the study's JSON.

  Args:
    tasks: of the prepared set.
    data: where it is; by default nowhere.
    labels: of a task's test split.
    split: the config's tasks; by default all as they are.
    gains: by task how much less noise the arms other than `single` have.
    grid: of learning rates.
    diverged: (program, seed) of replicas.
  """
  config = default.get_config()
  config.tasks = split or ','.join(task.name for task in tasks)
  config.study.arms, config.study.num_seeds, config.study.learning_rates = sides, num_seeds, grid
  config.data.dir = str(data or directory / 'faces')
  facts = DataFacts((64, 64), tuple(tasks), 'a0b1')
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
        found = {} if away else {t.name: predicted(t, labels(t), noise[t.name], rng) for t in own}
        replica = Replica(seed + side.first_seed, RATE)
        results.put(program, replica, Result(-0.5, 800, history(own, seed), 2.0, 300 if away else 0), found)
        predictions[arm][seed] |= found
      for rate in grid:
        results.put(program, Replica(arms.TUNING_SEED, rate), Result(-rate, 800, {}, 2.0), {})
  study = summary.summarize(
    [one for task in chosen for one in scored(task, predictions, labels(task))],
    arms=list(compared),
    seeds=list(range(num_seeds)),
  ) | {
    'cost': {
      arm: {'params': 1000000 * len(side.programs), 'flops_per_image': 2e8, 'seconds': 9.0, 'latency_ms': 1.5}
      | {'tuning_seconds': 4.0 * len(side.programs)}
      for arm, side in compared.items()
    },
    'learning_rates': dict.fromkeys((name for side in compared.values() for name in side.programs), RATE),
    'data': {
      'directory': config.data.dir,
      'checksum': 'a0b1',
      'splits': {'train': 500, 'val': 70, 'test': 60},
      'num_test': 60,
    },
    'device': 'some device',
    'versions': {'mtl_jax': '0.1.0', 'jax': '0.10'},
    'date': '2026-01-01',
  }
  workdir.write_json(directory / 'study.json', study)
  return study


def history(tasks, seed):
  steps = [100.0 * (i + 1) for i in range(8)]
  values = {'step': steps, 'train/loss': [1 / step for step in steps]}
  for task in tasks:
    values[f'train/{task.name}/loss'] = [(1 + seed) / step + len(task.name) for step in steps]
    values[f'val/{task.name}/{task.main_metric}'] = [0.8 + 0.01 * seed + 0.001 * len(task.name)] * 8
  return values


def scored(task, predictions, labels):
  num = len(labels)
  return scores.score_task(
    task,
    {arm: [by_task.get(task.name) for by_task in those] for arm, those in predictions.items()},
    labels,
    mask=np.ones(labels.shape, bool),
    source_size=np.tile([178, 218], (num, 1)),
    resampling=draws.draw(np.arange(num) // 2, num_resamples=50),
  )


def written(directory, **keywords):
  report.write_report(directory, **keywords)
  text = (directory / 'report.html').read_text('utf-8')
  return text, Page(text)


@pytest.fixture(scope='module')
def grouped(tmp_path_factory):
  """Forty attributes as one task, and landmarks, which joint training helps; ten seeds."""
  directory = tmp_path_factory.mktemp('grouped')
  study = made(directory, (MANY, LANDMARKS), gains={'landmarks': 0.3}, num_seeds=10, grid=(RATE, 3e-3))
  return directory, study, *written(directory)


def test_figures_have_as_many_decimals_as_their_interval_is_wide():
  assert findings.signed(0.00012, 'nme', findings.decimals(0.00003, 'nme')) == '+0.0120'
  assert findings.signed(-5.25, 'mae', findings.decimals(0.5, 'mae')) == '\N{MINUS SIGN}5.25'
  assert findings.size(1.234, 'nme') == '120 points'
  assert findings.signed(-1e-9, 'nme', 2) == '0.00'
  assert findings.level(None, 'nme') == '—'
  assert findings.p_text(0.0004) == '< 0.001'


# --- the page ---------------------------------------------------------------------------------------------------------


def test_every_verdict_stands_in_the_table_with_its_figures(grouped):
  _, study, _, page = grouped
  minus = '\N{MINUS SIGN}'
  for task, metric in (('attributes', 'macro_accuracy'), ('landmarks', 'nme')):
    entry = study['tasks'][task][metric]
    (row,) = [row for row in page.rows if row[0].startswith(task) and len(row) == 11]
    verdict, difference, interval, joint, single, *p_values = row[1:8]
    assert verdict == entry['verdict']
    assert difference == f'{100 * entry["delta"]["mean"]:+.{len(difference.partition(".")[2]) - 7}f} points'.replace(
      '-', minus
    )
    ends = [float(end.replace(minus, '-')) for end in interval.split(' to ')]
    np.testing.assert_allclose(ends, 100 * np.array(entry['delta']['ci95']), atol=0.05)
    assert [joint, single] == [f'{100 * entry[arm]["mean"]:.2f}%' for arm in ('joint', 'single')]
    assert p_values == [findings.p_text(entry['delta'][name]) for name in ('p_adjusted', 'p_value')]
    power = study['power']['tasks'][task]
    assert row[8] == '10'
    assert row[9:] == [
      findings.size(power[name], metric) for name in ('smallest_difference', 'smallest_difference_alone')
    ]
  assert study['tasks']['landmarks']['nme']['verdict'] == 'helps'
  assert [row[1] for row in page.rows if row[0] == 'all'] == [f'{study["delta_m"]["mean"]:+.2f}%'.replace('-', minus)]
  assert {name.replace('_', ' ') for name in MANY.labels} <= {row[0].split(' accuracy')[0] for row in page.rows}
  for fact in ('train 500, val 70, test 60', 'a0b1', 'some device', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9', 'resnet18'):
    assert fact in page.text


def test_the_page_gives_costs_and_learning_rates(grouped):
  rows = {row[0]: row[1:] for row in grouped[3].rows}
  assert rows['Parameters'] == ['2 M', '1 M (\N{MULTIPLICATION SIGN}0.50)']
  assert rows['Choosing learning rates, s'] == ['8', '4 (\N{MULTIPLICATION SIGN}0.50)']
  assert rows['joint'] == ['0.001, end of the grid', '0.001: -0.001; 0.003: -0.003']
  assert 'Choosing took 12 s of training' in grouped[3].text


def test_the_page_stands_by_itself(grouped):
  _, _, text, page = grouped
  references = [value for name, value in page.attributes if name in ('src', 'href', 'xlink:href', 'action', 'data')]
  assert all(value.startswith('#') for value in references)
  assert not re.search(r'https?://|url\((?!#)|@import', text)
  ids = [value for name, value in page.attributes if name == 'id']
  assert len(ids) == len(set(ids))
  assert {value[1:] for value in references} <= set(ids)
  assert len(text) < 500_000


def test_plots_lie_beside_the_page(grouped):
  stems = {path.stem for path in (grouped[0] / 'plots').iterdir()}
  assert {
    'intervals-nme',
    'intervals-macro_accuracy',
    'outputs-joint-attributes',
    'curve-landmarks-validation',
  } <= stems
  for stem in stems:
    assert (grouped[0] / 'plots' / f'{stem}.png').read_bytes().startswith(b'\x89PNG')
    assert '#d55e00' in (grouped[0] / 'plots' / f'{stem}.svg').read_text()


def test_curves_are_means_over_seeds_with_their_deviation(grouped):
  directory, study, *_ = grouped
  kept = read_record(directory, study)
  curve = kept.curve('joint', 'val/landmarks/nme')
  assert curve is not None
  steps, mean, deviation = curve
  assert steps.tolist() == [100.0 * (i + 1) for i in range(8)]
  np.testing.assert_allclose(mean, 0.809 + 0.01 * np.arange(10).mean())
  np.testing.assert_allclose(deviation, 0.01 * np.arange(10).std(ddof=1))
  assert kept.curve('joint', 'val/nothing') is None


def test_tasks_of_one_attribute_have_verdicts_in_one_table(tmp_path):
  study = made(tmp_path, (ATTRIBUTES, LANDMARKS), split='attributes/*,landmarks', gains={'attributes/Bald': 0.4})
  rows = {
    row[0].split(' accuracy')[0]: row for row in written(tmp_path)[1].rows if len(row) == 11 and row[1] != 'Verdict'
  }
  for name in ATTRIBUTES.labels:
    entry = study['tasks'][f'attributes/{name}']['macro_accuracy']
    assert rows[name][1] == entry['verdict']
    assert rows[name][7] == findings.p_text(entry['delta']['p_value'])


def test_one_seed_is_not_tested(tmp_path):
  made(tmp_path, (ATTRIBUTES, LANDMARKS), num_seeds=1)
  page = written(tmp_path)[1]
  assert 'One seed: nothing was tested.' in page.text
  assert {row[1] for row in page.rows if len(row) == 11 and row[1] != 'Verdict'} == {'not tested'}


def test_replicas_that_diverged_are_told_and_left_out(tmp_path):
  study = made(tmp_path, (ATTRIBUTES, LANDMARKS), diverged=[('landmarks', 1)])
  assert 'landmarks of single with seed 1 diverged at step 300' in written(tmp_path)[1].text
  assert study['tasks']['landmarks']['nme']['delta']['num_pairs'] == 4


def test_every_arm_has_a_section(tmp_path):
  made(tmp_path, (ATTRIBUTES, LANDMARKS), sides=('single', 'joint', 'joint_again'), gains={'landmarks': 0.3})
  text, page = written(tmp_path)
  for heading in (
    'joint against single: the tests',
    'joint_again against single: the tests',
    'All arms against single',
  ):
    assert heading in page.text
  ids = [value for name, value in page.attributes if name == 'id']
  assert len(ids) == len(set(ids))
  assert '--run-3' in text


def test_other_kinds_of_task_make_a_page(tmp_path):
  tasks = RegressionTask('age', ('age',)), CategoricalTask('pose', ('pose',), classes=('left', 'front', 'right'))

  def labels(task):
    return np.random.default_rng(0).integers(0, 3, (NUM_IMAGES, 1)).astype(float)

  def predict(task, labels, noise, rng):
    if task.kind == 'regression':
      return labels + rng.normal(size=labels.shape)
    return rng.dirichlet(np.ones(3), len(labels))

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(globals(), 'predicted', predict)
    made(tmp_path, tasks, labels=labels)
  rows = [row[0] for row in written(tmp_path)[1].rows if len(row) == 11 and row[1] != 'Verdict']
  assert rows == ['age mean absolute error ↓', 'pose accuracy ↑']


def test_hostile_names_are_only_text(tmp_path):
  name = '<script>alert("x")</script>$\\frac{'
  made(tmp_path, (BinaryTask('faces', (name, '<i>&')), LANDMARKS))
  text, page = written(tmp_path)
  assert page.tags.count('script') == 1
  assert 'i' not in page.tags
  assert '<script>alert' not in text
  assert name.replace('_', ' ') in page.text
  assert html.escape('<i>&') in text


def test_pictures_are_shown_only_when_asked_for(tmp_path, store_dir):
  store = open_store(store_dir)
  rows = list(store.split('test'))
  made(tmp_path, store.tasks, data=store_dir, labels=lambda task: store.labels[task.name][rows], num_seeds=2)
  assert 'img' not in written(tmp_path)[1].tags
  text, page = written(tmp_path, pictures=True)
  assert page.tags.count('img') == sum(min(len(rows), 8) for _ in store.tasks)
  assert all(value.startswith('data:image/jpeg;base64,') for name, value in page.attributes if name == 'src')
  assert 'mean error over its labels: joint off by' in text
  assert re.search(r' is [01]: joint off by [\d.]+, single off by', text)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_report_command_rebuilds_a_studys_page(grouped, capsys):
  directory = grouped[0]
  (directory / 'report.html').unlink()
  assert cli.main(['report', '--workdir', str(directory)]) == 0
  assert capsys.readouterr().out.strip() == str(directory / 'report.html')
  assert 'joint against single' in (directory / 'report.html').read_text()


def test_an_unfinished_study_is_told_how_to_go_on(tmp_path):
  made(tmp_path, (ATTRIBUTES, LANDMARKS), num_seeds=1)
  (tmp_path / 'study.json').unlink()
  assert report.is_study(tmp_path)
  with pytest.raises(CheckpointError, match=r'study\.json; make it with `mtl-jax study'):
    report.write_report(tmp_path)


@pytest.mark.parametrize('content', ['{"arms": ', '[]', '{}'])
def test_a_damaged_study_is_named(tmp_path, content):
  (tmp_path / 'study.json').write_text(content)
  with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / 'study.json'))):
    report.write_report(tmp_path)


def test_replicas_that_were_removed_leave_a_page_without_curves(tmp_path):
  made(tmp_path, (ATTRIBUTES, LANDMARKS), num_seeds=2)
  shutil.rmtree(tmp_path / 'replicas')
  assert 'Training curves' not in written(tmp_path)[1].text


# --- in a browser -----------------------------------------------------------------------------------------------------

BROWSER = next(
  (found for name in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(name))), ''
)
LISTEN = '<script>var problems = []; addEventListener("error", event => problems.push(event.message));</script>'
PROBE = """<script>
const table = document.querySelector('table.sortable'), filter = document.querySelector('.filter');
const shown = () => [...table.tBodies[0].rows].filter(row => row.offsetHeight);
const names = () => shown().map(row => row.cells[0].firstChild.textContent.trim());
const buttons = [...table.querySelectorAll('thead button')];
const found = {filterShown: filter.offsetHeight > 0, first: names(), tabs: buttons.map(button => button.tabIndex)};
const sorts = () => [...table.tHead.rows[0].cells].map(head => head.getAttribute('aria-sort'));
buttons[0].click(); found.byName = names(); found.byNameState = sorts();
buttons[0].click(); found.byNameDown = names();
buttons[1].click(); found.byDifference = names(); found.byDifferenceState = sorts();
const [search, says] = [filter.querySelector('input'), filter.querySelector('select')];
search.value = 'attribute 1'; search.dispatchEvent(new Event('input'));
found.searched = names(); found.status = filter.querySelector('[role=status]').textContent;
search.value = ''; search.dispatchEvent(new Event('input'));
says.value = 'includes 0'; says.dispatchEvent(new Event('change')); found.filtered = names();
says.value = ''; says.dispatchEvent(new Event('change')); found.all = names();
found.wider = document.documentElement.scrollWidth - innerWidth;
found.problems = problems;
document.body.innerHTML = '<pre id="found"></pre>';
document.getElementById('found').textContent = JSON.stringify(found);
</script>"""


@pytest.mark.skipif(not BROWSER, reason='there is no Chromium here')
def test_the_page_sorts_and_filters_in_a_browser(grouped, tmp_path):
  _, study, text, _ = grouped
  page = tmp_path / 'page.html'
  page.write_text(text.replace('<head>', f'<head>{LISTEN}').replace('</body>', f'{PROBE}</body>'))
  flags = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--window-size=500,900')
  offline = f'--user-data-dir={tmp_path / "profile"}', '--host-resolver-rules=MAP * ~NOTFOUND'
  done = subprocess.run(
    [BROWSER, *flags, *offline, '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=120, check=True
  )
  found = json.loads(html.unescape(done.stdout.partition('<pre id="found">')[2].partition('</pre>')[0]))
  outputs = study['outputs']['attributes']
  gains = {name.replace('_', ' '): outputs[name]['accuracy']['delta']['mean'] for name in MANY.labels}
  names = sorted(gains)
  assert found['problems'] == []
  assert found['wider'] <= 0  # The page itself never scrolls sideways.
  assert found['filterShown']
  assert [gains[name] for name in found['first']] == sorted(gains.values(), reverse=True)
  assert found['tabs'] == [0] * 5  # Reached by the keyboard.
  assert found['byName'] == names
  assert found['byNameState'][:2] == ['ascending', None]
  assert found['byNameDown'] == names[::-1]
  assert [gains[name] for name in found['byDifference']] == sorted(gains.values())
  assert found['byDifferenceState'][:2] == [None, 'ascending']
  assert sorted(found['searched']) == [name for name in names if name.startswith('Attribute 1')]
  assert found['status'] == '10 of 40 shown'
  inside = {name for name in MANY.labels if (ci := outputs[name]['accuracy']['delta']['ci95'])[0] <= 0 <= ci[1]}
  assert set(found['filtered']) == {name.replace('_', ' ') for name in inside}
  assert len(found['all']) == 40


def test_arms_stand_in_one_table_least_loss_first_with_their_worst_task(tmp_path):
  study = made(tmp_path, (ATTRIBUTES, LANDMARKS), sides=('single', 'joint', 'joint_again'))
  rows = report.overview(study)
  assert [row['arm'] for row in rows] == sorted(
    ('joint', 'joint_again'), key=lambda arm: findings.comparison(study, arm)['delta_m']['mean']
  )
  for row in rows:
    losses = {}
    for task, metric, sign in (('attributes', 'macro_accuracy', -1), ('landmarks', 'nme', 1)):
      found = study['tasks'][task][metric]
      losses[task] = 100 * sign * (found[row['arm']]['mean'] / found['single']['mean'] - 1)
    assert row['worst'] == max(losses, key=lambda task: losses[task])
    assert row['worst_loss'] == pytest.approx(max(losses.values()))
    assert row['seconds_ratio'] == 1
