"""The main job from end to end: the demo learns, its figures are scikit-learn's, and its files keep their contract."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import small_runs
from sklearn import metrics as reference

from mtl_jax import cli, demo
from mtl_jax.configs import demo as demo_config
from mtl_jax.data.store.reader import open_store
from mtl_jax.evaluation import evaluate
from mtl_jax.training.progress import read_metrics


def reduced():
  """The demo's configuration with a narrower network and fewer steps."""
  config = demo_config.get_config()
  config.model.width = 8
  config.train.steps = 120
  config.optimizer.learning_rate = 6e-3
  config.optimizer.warmup_steps = 24
  config.eval.every_steps = 60
  return config


@pytest.fixture(scope='session')
def demo_dir(tmp_path_factory):
  """The demo, with fewer faces and steps, on one device as users have it: compiled sooner than for eight."""
  workdir = tmp_path_factory.mktemp('demo')
  code = (
    f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n'
    'import end_to_end_test, mtl_jax.demo, pathlib\n'
    f'workdir = pathlib.Path({str(workdir)!r})\n'
    'table = mtl_jax.demo.run(workdir, num_faces=1200, base=end_to_end_test.reduced())\n'
    "(workdir / 'table.txt').write_text(table)"
  )
  environment = {
    **small_runs.one_device(),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '0',
  }  # It takes its time to run, not to compile.
  subprocess.run([sys.executable, '-c', code], env=environment, check=True)
  return workdir


def result(directory, split='test'):
  return json.loads((directory / 'eval' / f'{split}.json').read_text())


@pytest.mark.parametrize('side', ['joint', 'attributes'])
def test_the_demo_learns_attributes(demo_dir, side):
  found = result(demo_dir / side)
  gain = found['tasks']['attributes']['macro_accuracy'] - found['baseline']['attributes']['macro_accuracy']
  assert gain >= 0.03


@pytest.mark.parametrize('side', ['joint', 'landmarks'])
def test_the_demo_learns_landmarks(demo_dir, side):
  found = result(demo_dir / side)
  assert found['tasks']['landmarks']['nme'] <= 0.6 * found['baseline']['landmarks']['nme']


def test_evaluation_equals_scikit_learn_on_the_dumped_predictions(demo_dir):
  found = result(demo_dir / 'joint')['tasks']['attributes']
  with np.load(demo_dir / 'joint' / 'eval' / 'test.npz') as arrays:
    label, mask = arrays['attributes/label'], arrays['attributes/mask']
    probability = arrays['attributes/pred'].astype(np.float64)
    example_id = arrays['example_id']
  store = open_store(demo_dir / 'data')
  np.testing.assert_array_equal(example_id, np.arange(store.splits['test'].start, store.splits['test'].stop))
  np.testing.assert_array_equal(label, store.labels['attributes'][example_id])
  assert mask.all()
  predicted = probability >= 0.5
  columns = range(label.shape[1])
  expected = {
    'macro_accuracy': np.mean([reference.accuracy_score(label[:, k], predicted[:, k]) for k in columns]),
    'macro_precision': reference.precision_score(label, predicted, average='macro', zero_division=0),
    'macro_recall': reference.recall_score(label, predicted, average='macro', zero_division=0),
    'macro_f1': reference.f1_score(label, predicted, average='macro', zero_division=0),
    'micro_f1': reference.f1_score(label, predicted, average='micro', zero_division=0),
    'macro_ap': np.mean(
      [reference.average_precision_score(label[:, k], probability[:, k]) for k in columns if label[:, k].any()]
    ),
    'macro_balanced_accuracy': np.mean(
      [reference.recall_score(label[:, k], predicted[:, k], labels=list(set(label[:, k])), average='macro',
                              zero_division=0) for k in columns]
    ),
  }  # fmt: skip
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_landmark_metrics_equal_a_plain_computation_in_source_pixels(demo_dir):
  found = result(demo_dir / 'joint')['tasks']['landmarks']
  with np.load(demo_dir / 'joint' / 'eval' / 'test.npz') as arrays:
    predicted = arrays['landmarks/pred'].astype(np.float64).reshape(-1, 5, 2) * [178, 218]
    true = arrays['landmarks/label'].astype(np.float64).reshape(-1, 5, 2) * [178, 218]
  eyes = np.linalg.norm(true[:, 0] - true[:, 1], axis=-1)
  each = (np.linalg.norm(predicted - true, axis=-1) / eyes[:, None]).mean(1)
  np.testing.assert_allclose(found['nme'], each.mean(), rtol=1e-6)
  np.testing.assert_allclose(found['failure_rate_10'], (each > 0.10).mean(), rtol=1e-9)
  np.testing.assert_allclose(found['mae'], np.abs(predicted - true).mean((0, 1)) @ [0.5 / 178, 0.5 / 218], rtol=1e-6)


def test_the_table_and_the_report_show_all_sides(demo_dir):
  table = (demo_dir / 'table.txt').read_text()
  head, *rows = table.splitlines()
  assert all(side in head for side in ('joint', 'attributes', 'landmarks'))
  for start in ('attributes, constant prediction: majority class', 'landmarks, constant prediction: mean face', 'NME'):
    assert any(row.startswith(start) for row in rows), start

  class Images(HTMLParser):
    sources: tuple[str, ...] = ()

    def handle_starttag(self, tag, attrs):
      if tag == 'img':
        self.sources += (dict(attrs)['src'] or '',)

  page = Images()
  page.feed((demo_dir / 'report.html').read_text())
  assert len(page.sources) >= 10
  assert all(source.startswith('data:image') for source in page.sources)


def test_the_demo_started_again_trains_nothing(demo_dir, monkeypatch):
  before = {path: path.stat().st_mtime_ns for path in demo_dir.glob('*/checkpoints/*')}
  assert demo.run(demo_dir, base=reduced()) == (demo_dir / 'table.txt').read_text()
  assert before == {path: path.stat().st_mtime_ns for path in demo_dir.glob('*/checkpoints/*')}


def test_predictions_for_the_source_pictures_are_those_of_the_test_split(demo_dir, capsys, tmp_path):
  store = open_store(demo_dir / 'data')
  ids = list(store.splits['test'])[:3]
  files = [str(demo_dir / 'data' / 'source' / 'img_align_celeba' / store.names[i]) for i in ids]
  assert cli.main(['predict', '--workdir', str(demo_dir / 'joint'), *files, '--out', str(tmp_path)]) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [line['file'] for line in lines] == files
  assert len(list(tmp_path.glob('*.png'))) == 3
  with np.load(demo_dir / 'joint' / 'eval' / 'test.npz') as arrays:
    probabilities, points = arrays['attributes/pred'][:3], arrays['landmarks/pred'][:3]
  np.testing.assert_allclose([list(line['attributes'].values()) for line in lines], probabilities, atol=1e-4)
  pixels = [np.ravel(list(line['landmarks'].values())) for line in lines]
  np.testing.assert_allclose(pixels, points * np.tile([178, 218], 5), atol=0.05)


def test_evaluating_on_another_set_is_written_under_its_name(demo_dir, store_dir, tmp_path, capsys):
  assert cli.main(['eval', '--workdir', str(demo_dir / 'joint'), '--split', 'val', '--json']) == 0
  printed = json.loads(capsys.readouterr().out)
  assert printed == result(demo_dir / 'joint', 'val')
  assert printed['num_examples'] == len(open_store(demo_dir / 'data').splits['val'])
  last = read_metrics(demo_dir / 'joint' / 'metrics.jsonl')[-1]
  # Validation during the run and evaluation after it are one and the same.
  np.testing.assert_allclose(last['val/landmarks/nme'], printed['tasks']['landmarks']['nme'], rtol=1e-4)


def test_the_size_of_evaluation_batches_does_not_change_metrics(trained_dir, store_dir):
  """The last batch is padded; padding must not be seen."""
  from mtl_jax.data.input import mixture
  from mtl_jax.run import trained_model

  model = trained_model.restore(trained_dir)
  split = mixture.load_split(open_store(store_dir), 'train', model.tasks)
  found = []
  for batch_size in (8, 16, 40, 4096):
    evaluation = evaluate.evaluate_split(
      split,
      model.variables,
      model.label_stats,
      compiled_step=evaluate.compile_eval_step(model.model, model.tasks, model.mesh),
      mesh=model.mesh,
      batch_size=batch_size,
    )
    assert all(len(values) == len(split) for values in evaluation.predictions.values())
    found.append([*evaluation.losses.values(), *(values.sum() for values in evaluation.predictions.values())])
  np.testing.assert_allclose(found[1:], [found[0]] * 3, rtol=1e-5)
