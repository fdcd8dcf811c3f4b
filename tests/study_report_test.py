"""A study's page says what its figures say and no more, stands by itself, and sorts and filters in a real browser."""

import dataclasses
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
from mtl_jax.run import workdir
from mtl_jax.run.workdir import DataFacts
from mtl_jax.study import arms, overview, report, scores, summary, words
from mtl_jax.study.replicas import Replica, Result
from mtl_jax.study.shelf import Shelf
from mtl_jax.study.words import Finding
from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, RegressionTask, higher_is_better

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
  shelf, compared = Shelf(directory / 'replicas'), arms.from_config(config, chosen)
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
        shelf.put(program, Result(replica, -0.5, 800, history(own, seed), found, 2.0, 300 if away else 0), made_by='')
        predictions[arm][seed] |= found
      for rate in grid:
        shelf.put(program, Result(Replica(arms.TUNING_SEED, rate), -rate, 800, {}, {}, 2.0, 0), made_by='')
  study = summary.summarize(
    {task.name: scored(task, predictions, labels(task)) for task in chosen},
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


def words_of(text):
  """What a reader sees of a page, cells apart by a blank."""
  text = re.sub(r'<(style|script)>.*?</\1>', '', text, flags=re.DOTALL)
  return ' '.join(html.unescape(re.sub(r'<[^>]*>', ' ', text)).split())


@pytest.fixture(scope='module')
def grouped(tmp_path_factory):
  """Forty attributes as one task, and landmarks, which joint training helps; ten seeds."""
  directory = tmp_path_factory.mktemp('grouped')
  study = made(directory, (MANY, LANDMARKS), gains={'landmarks': 0.3}, num_seeds=10, grid=(RATE, 3e-3))
  return directory, study, *written(directory)


# --- the sentence -----------------------------------------------------------------------------------------------------


def finding(name, verdict, *, delta=0.01, p=0.01, metric='macro_accuracy', doubt=None, seen=0.004):
  return Finding(
    name,
    metric,
    higher_is_better(metric),
    arm={'mean': 0.9 + delta},
    reference={'mean': 0.9},
    delta=delta,
    ci95=[delta - 0.005, delta + 0.005],
    p_value=p,
    p_adjusted=p,
    num_pairs=5,
    verdict=verdict,
    disagreement=doubt,
    detectable=seen,
  )


def said(*found, arm='joint', reference='single', num_seeds=5):
  return words.sentence(found, arm=arm, reference=reference, num_seeds=num_seeds)


def test_the_sentence_gives_each_tasks_figures_and_what_could_have_been_seen():
  found = (
    finding('landmarks', 'helps', delta=-0.0045, metric='nme', p=0.002),
    finding('attributes', 'no evidence', p=0.4),
  )
  assert said(*found) == (
    'Joint training helps landmarks (NME 89.55% against 90.00%, \N{MINUS SIGN}0.45 points, 95% interval '
    '\N{MINUS SIGN}0.95 to +0.05, adjusted p = 0.002) and there is no evidence either way for attributes (accuracy '
    '91.00% against 90.00%, +1.00 points, 95% interval +0.50 to +1.50, adjusted p = 0.4); with these 5 seeds a '
    'difference of about 0.4 points in accuracy would have been seen with 80% power.'
  )


def test_no_evidence_is_never_called_equal():
  text = said(finding('attributes', 'no evidence', p=0.4))
  assert text.startswith('It is open whether joint training helps or hurts: there is no evidence either way for')
  assert not re.search(r'\b(same|equal|no difference|helps attributes)\b', text)


def test_many_tasks_are_counted_and_only_those_that_differ_are_named():
  helped = [finding(f'a{i}', 'helps', p=0.001 * (i + 1), doubt='here' if i < 2 else None) for i in range(6)]
  unsure = [finding(f'b{i}', 'no evidence', p=0.5, seen=0.01 * (i + 1)) for i in range(30)]
  assert said(*unsure, finding('c', 'hurts', delta=-0.1), *helped) == (
    'Joint training helps 6 of 37 tasks (a0, a1, a2, a3 and 2 more; 2 of them with a reservation that stands below), '
    'hurts 1 of 37 tasks (c) and there is no evidence either way for 30 of 37 tasks; with these 5 seeds a difference '
    'of about 16 points in accuracy (the median of 30 tasks) would have been seen with 80% power.'
  )


def test_what_could_have_been_seen_is_said_with_the_seeds_that_came_through():
  found = [dataclasses.replace(finding(f'a{i}', 'no evidence', p=0.5), num_pairs=3 + i) for i in range(2)]
  assert 'with these 3 to 4 seeds' in said(*found)


def test_a_doubt_about_other_images_stands_in_the_sentence():
  assert '; found on these test images' in said(finding('a', 'helps', doubt='found on these test images'))


def test_another_arm_and_another_reference_are_named():
  assert said(finding('a', 'hurts'), arm='joint_again', reference='joint').startswith(
    'Compared with joint training, the arm joint_again hurts a ('
  )


def test_figures_have_as_many_decimals_as_their_interval_is_wide():
  assert finding('a', 'helps').difference() == '+1.00 points'
  assert words.signed(0.00012, 'nme', words.decimals(0.00003, 'nme')) == '+0.0120'
  assert words.signed(-5.25, 'mae', words.decimals(0.5, 'mae')) == '\N{MINUS SIGN}5.25'
  assert words.size(1.234, 'nme') == '120 points'
  assert words.signed(-1e-9, 'nme', 2) == '0.00'
  assert words.level(None, 'nme') == '—'
  assert words.p_text(0.0004) == '< 0.001'


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_says_every_verdict_with_its_figures(grouped):
  _, study, text, _ = grouped
  text = words_of(text)
  for task, metric in (('attributes', 'macro_accuracy'), ('landmarks', 'nme')):
    entry = study['tasks'][task][metric]
    for arm in ('single', 'joint'):
      assert f'{100 * entry[arm]["mean"]:.2f}%' in text
    assert f'{100 * entry["delta"]["mean"]:+.2f} points'.replace('-', '\N{MINUS SIGN}') in text
  assert study['tasks']['landmarks']['nme']['verdict'] == 'helps'
  assert 'Joint training helps landmarks' in text
  assert 'no evidence either way for attributes' in text
  assert 'Negative transfer is not shown: joint hurts 0 of the 2 tasks tested' in text
  assert f'{study["delta_m"]["mean"]:+.2f}%'.replace('-', '\N{MINUS SIGN}') in text
  for name in MANY.labels:
    assert name.replace('_', ' ') in text
  for fact in ('train 500, val 70, test 60', 'a0b1', 'some device', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9', 'resnet18'):
    assert fact in text


def test_the_page_says_what_learning_rates_were_tried_and_what_that_took(grouped):
  text = words_of(grouped[2])
  assert '0.001: -0.001; 0.003: -0.003' in text
  assert 'The best learning rate of attributes, landmarks, joint lies at an end of the grid' in text
  assert 'Choosing took 12 s of training' in text


def test_the_page_says_what_each_arm_costs(grouped):
  text = words_of(grouped[2])
  assert 'Parameters 2 M 1 M (\N{MULTIPLICATION SIGN}0.50)' in text
  assert 'Choosing learning rates, s 8 4 (\N{MULTIPLICATION SIGN}0.50)' in text


def test_the_page_stands_by_itself(grouped):
  _, _, text, page = grouped
  references = [value for name, value in page.attributes if name in ('src', 'href', 'xlink:href', 'action', 'data')]
  assert all(value.startswith('#') for value in references)
  assert not re.search(r'https?://|url\((?!#)|@import', text)
  ids = [value for name, value in page.attributes if name == 'id']
  assert len(ids) == len(set(ids))
  assert {value[1:] for value in references} <= set(ids)
  assert {value for name, value in page.attributes if name == 'aria-labelledby'} <= set(ids)
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
  kept = report.record.read(directory, study)
  steps, mean, deviation = kept.curve('joint', 'val/landmarks/nme')
  assert steps.tolist() == [100.0 * (i + 1) for i in range(8)]
  np.testing.assert_allclose(mean, 0.809 + 0.01 * np.arange(10).mean())
  np.testing.assert_allclose(deviation, 0.01 * np.arange(10).std(ddof=1))
  assert kept.curve('joint', 'val/nothing') is None


def test_tasks_of_one_attribute_have_verdicts_in_one_table(tmp_path):
  study = made(tmp_path, (ATTRIBUTES, LANDMARKS), split='attributes/*,landmarks', gains={'attributes/Bald': 0.4})
  text = words_of(written(tmp_path)[0])
  assert 'attributes, one by one Each is a task of its own, tested and adjusted with all the others.' in text
  assert 'attributes 3 tasks' in text
  for name in ATTRIBUTES.labels:
    p_value = study['tasks'][f'attributes/{name}']['macro_accuracy']['delta']['p_value']
    assert words.p_text(p_value).removeprefix('= ') in text


def test_one_seed_is_said_to_show_nothing(tmp_path):
  made(tmp_path, (ATTRIBUTES, LANDMARKS), num_seeds=1)
  text = words_of(written(tmp_path)[0])
  assert 'With one seed nothing was tested: it is open whether joint training helps or hurts (attributes' in text
  assert 'One seed: nothing was tested.' in text
  assert 'not tested' in text


def test_replicas_that_diverged_are_told_and_left_out(tmp_path):
  study = made(tmp_path, (ATTRIBUTES, LANDMARKS), diverged=[('landmarks', 1)])
  text = words_of(written(tmp_path)[0])
  assert 'landmarks of single with seed 1 diverged at step 300; its seed is left out of the pairs.' in text
  assert study['tasks']['landmarks']['nme']['delta']['num_pairs'] == 4


def test_every_arm_has_a_section(tmp_path):
  made(tmp_path, (ATTRIBUTES, LANDMARKS), sides=('single', 'joint', 'joint_again'), gains={'landmarks': 0.3})
  text, page = written(tmp_path)
  for arm in ('joint', 'joint_again'):
    assert f'{arm} against single: the tests' in page.text
  assert 'All arms against single' in page.text
  assert 'Compared with training alone, the arm joint_again helps landmarks' in words_of(text)
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
  text = words_of(written(tmp_path)[0])
  assert 'mean absolute error' in text
  assert 'pose' in text


def test_hostile_names_are_only_text(tmp_path):
  name = '<script>alert("x")</script>$\\frac{'
  made(tmp_path, (BinaryTask('<i>&', (name, 'b')), LANDMARKS))
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
  assert 'Joint training helps landmarks' in (directory / 'report.html').read_text()


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
  assert 'Over the course of training' not in written(tmp_path)[1].text


# --- in a browser -----------------------------------------------------------------------------------------------------

BROWSER = next(
  (found for name in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(name))), ''
)
LISTEN = '<script>var problems = []; addEventListener("error", event => problems.push(event.message));</script>'
PROBE = """<script>
const table = document.querySelector('table.sortable'), filter = document.querySelector('.filter');
const names = () => [...table.tBodies[0].rows].filter(row => row.offsetHeight).map(row => row.cells[0].textContent);
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
  rows = overview.rows(study)
  assert [row['arm'] for row in rows] == sorted(
    ('joint', 'joint_again'), key=lambda arm: words.comparison(study, arm)['delta_m']['mean']
  )
  for row in rows:
    losses = {}
    for task, metric, sign in (('attributes', 'macro_accuracy', -1), ('landmarks', 'nme', 1)):
      found = study['tasks'][task][metric]
      losses[task] = 100 * sign * (found[row['arm']]['mean'] / found['single']['mean'] - 1)
    assert row['worst'] == max(losses, key=lambda task: losses[task])
    assert row['worst_loss'] == pytest.approx(max(losses.values()))
    assert row['seconds_ratio'] == 1
