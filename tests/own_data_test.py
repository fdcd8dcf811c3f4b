"""The example of docs/own_data.md runs as it is printed, and mistakes in such a file are told in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl_jax import cli
from mtl_jax.data.sources.own import open_own
from mtl_jax.data.store.reader import open_store
from mtl_jax.evaluation.command import evaluate_workdir
from mtl_jax.training import loop

PAGE = Path(__file__).parents[1] / 'docs' / 'own_data.md'
EXAMPLE = re.search(r'```python\n(.*?)```', PAGE.read_text('utf-8'), re.DOTALL)[1]
SPLITS = ('train',) * 16 + ('val',) * 4 + ('test',) * 4


@pytest.fixture
def faces(tmp_path) -> Path:
  """A folder such as the page describes; row 3 has no age, row 5 nothing but its age."""
  rng = np.random.default_rng(0)
  lines = ['image,split,age,smiling,male']
  for row, split in enumerate(SPLITS):
    name = f'faces/{row}.png'
    (tmp_path / 'faces' / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(tmp_path / 'faces' / name)
    attributes = ',' if row == 5 else f'{row % 2},{row // 2 % 2}'
    lines.append(f'{name},{split},{"" if row == 3 else 20 + row},{attributes}')
  (tmp_path / 'faces' / 'labels.csv').write_text('\n'.join(lines) + '\n')
  return tmp_path / 'faces'


@pytest.fixture
def refused_code(faces, tmp_path, refused):
  """`refused_code(code)`: the one line with which a file of that code is refused."""

  def run(code: str) -> str:
    (tmp_path / 'mine.py').write_text(code)
    arguments = ['--source', faces, '--out', tmp_path / 'set', '--image_size', 8, 8]
    told = refused('prepare', tmp_path / 'mine.py', *arguments)
    assert not (tmp_path / 'set').exists()
    return told

  return run


def test_the_example_is_prepared_trained_and_evaluated(faces, tmp_path, tiny_config):
  (tmp_path / 'my_faces.py').write_text(EXAMPLE)
  out = tmp_path / 'set'
  arguments = ['--source', str(faces), '--out', str(out), '--image_size', '16', '16']
  assert cli.main(['prepare', str(tmp_path / 'my_faces.py'), *arguments]) == 0
  opened = open_store(out)
  assert (opened.schema['source'], len(opened.split('train')), len(opened.split('test'))) == ('my_faces', 16, 4)
  assert np.flatnonzero(~opened.mask['age'][:, 0]).tolist() == [3]
  assert np.flatnonzero(~opened.mask['attributes'].any(1)).tolist() == [5]
  assert opened.labels['age'][:3, 0].tolist() == [20, 21, 22]
  config = tiny_config('age,attributes', **{'data.dir': str(out), 'train.steps': 2})
  loop.train(config, tmp_path / 'run')
  found = evaluate_workdir(tmp_path / 'run', data=None, split='test', step=None, predictions=None)
  assert np.isfinite(found['tasks']['age']['mae'])
  assert 0 <= found['tasks']['attributes']['macro_accuracy'] <= 1


def test_the_example_is_as_short_as_is_said():
  assert len(EXAMPLE.splitlines()) <= 30


def test_images_can_be_bytes_that_are_read_late(faces, tmp_path):
  (tmp_path / 'mine.py').write_text(
    EXAMPLE.replace("self.directory / row['image'], l", 'path.read_bytes, l').replace(
      '        yield', "        path = self.directory / row['image']\n        yield"
    )
  )
  arguments = ['--source', str(faces), '--image_size', '20', '16', '--out']
  assert cli.main(['prepare', str(tmp_path / 'mine.py'), *arguments, str(tmp_path / 'late')]) == 0
  images = open_store(tmp_path / 'late').images
  for row in range(len(SPLITS)):
    np.testing.assert_array_equal(images[row], np.asarray(Image.open(faces / f'faces/{row}.png')))
  records = list(open_own(tmp_path / 'mine.py', faces).records())
  (faces / 'faces/7.png').write_bytes(b'no image')
  assert records[7].image() == b'no image'
  assert cli.main(['prepare', str(tmp_path / 'mine.py'), *arguments, str(tmp_path / 'set')]) == 2


LABELS_OF_AGE = "{'age': [number(row['age'])], 'attributes': [number(row['smiling']), number(row['male'])]}"


@pytest.mark.parametrize(
  ('before', 'after', 'said'),
  [
    ("row['age']", "row['years']", r"mine\.py failed: KeyError: 'years' \(line \d+\)"),
    ("'labels.csv'", "'none.csv'", r'mine\.py failed: FileNotFoundError: .*none\.csv.* \(line \d+\)'),
    ('return Faces(directory)', '1 / 0', r'mine\.py failed: ZeroDivisionError: division by zero \(line \d+\)'),
    ('return Faces(directory)', 'return 3', r'what open_source gives has no name; see Source'),
    ('return Faces(directory)', 'raise SystemExit', r'mine\.py failed: SystemExit'),
    ('def open_source', 'def open', r'mine\.py defines no function open_source'),
    (
      'import csv',
      'import no_such_module',
      r"failed: ModuleNotFoundError: No module named 'no_such_module' \(line 3\)",
    ),
    ('import csv', 'import csv (', r'mine\.py failed: SyntaxError'),
    ("{'age':", "{'aeg':", r"'faces/0\.png': labels: no choice 'aeg'; did you mean 'age'\?"),
    (LABELS_OF_AGE, '[1]', r"'faces/0\.png': labels must be a dictionary by task"),
    (LABELS_OF_AGE, "{'age': row['split']}", r"faces/0\.png: age: must be numbers.*'train'"),
    (LABELS_OF_AGE, "{'age': [1, 2]}", r'faces/0\.png: age: 2 labels, not 1'),
    (LABELS_OF_AGE, "{'age': [math.inf]}", r'faces/0\.png: age: a label is infinite'),
    (LABELS_OF_AGE, "{'attributes': [1, 2]}", r'faces/0\.png: attributes: Male is 2, not 0 or 1'),
    ("row['split']", "'dev'", r"'faces/0\.png': is in split 'dev', not one of train, val, test"),
    (', labels)', ')', r'failed: TypeError: .*missing 1 required positional argument'),
    ("yield Record(row['image'],", 'yield Record(3,', r'the name of a record must be text, not 3'),
    ("row['split'], self.directory", "row['split'], 3, labels) # ", r"'faces/0\.png': the image must be a Path, or a"),
    ("row['split'], self.directory", "row['split'], lambda: 3, labels) # ", r'must be bytes, not int'),
    ("row['split'], self.directory", "row['split'], lambda: 1 / 0, labels) # ", r'ZeroDivisionError: .* \(line \d+\)'),
    ('yield Record(', 'yield dict(record=(', r'failed: SyntaxError'),
    ('  tasks = (', "  tasks = ('age',) or (", r'tasks must be values of mtl_jax\.tasks, at least one'),
    ("BinaryTask('attributes'", "BinaryTask('age'", r"two tasks are named 'age'; rename one"),
    ("RegressionTask('age'", "RegressionTask('../age'", r"the task '\.\./age' must be named by letters, digits and _"),
    ("RegressionTask('age'", "RegressionTask('my/age'", r"the task 'my/age' must be named by letters, digits and _"),
    ('  tasks = (', "  tasks = RegressionTask('age', ('age',))  # (", r'tasks must be .* in a tuple'),
    ("('Smiling', 'Male')", "('Male', 'Male')", r"labels of task 'attributes' must be different names"),
  ],
)
def test_mistakes_are_told_in_one_line(refused_code, before, after, said):
  assert before in EXAMPLE
  message = refused_code(EXAMPLE.replace(before, after))
  assert re.search(said, message), message


def test_a_missing_file_is_named(tmp_path, capsys):
  arguments = ['--source', str(tmp_path), '--out', str(tmp_path / 'set')]
  assert cli.main(['prepare', str(tmp_path / 'none.py'), *arguments]) == 2
  assert capsys.readouterr().err.endswith('none.py; it must define open_source(directory)\n')


def test_a_source_that_needs_no_folder_is_prepared_without_one_and_others_are_told_to_name_it(faces, tmp_path, capsys):
  (tmp_path / 'mine.py').write_text(EXAMPLE)
  arguments = ['prepare', str(tmp_path / 'mine.py'), '--image_size', '8', '8', '--out', str(tmp_path / 'set')]
  assert cli.main(arguments) == 2
  assert '--source' in capsys.readouterr().err.splitlines()[-1]
  (tmp_path / 'mine.py').write_text(
    EXAMPLE.replace('open_source(directory)', 'open_source(directory=None)').replace(
      'Faces(directory)', f'Faces(__import__("pathlib").Path({str(faces)!r}))'
    )
  )
  assert cli.main(arguments) == 0
  assert open_store(tmp_path / 'set').schema['source'] == 'my_faces'


def test_a_file_in_the_home_folder_is_found_and_an_unknown_home_is_told_in_one_line(
  faces, tmp_path, capsys, monkeypatch
):
  (tmp_path / 'mine.py').write_text(EXAMPLE)
  monkeypatch.setenv('HOME', str(tmp_path))
  arguments = ['--source', str(faces), '--image_size', '8', '8', '--out', str(tmp_path / 'set')]
  assert cli.main(['prepare', '~/mine.py', *arguments]) == 0
  capsys.readouterr()
  assert cli.main(['prepare', '~no_such_user/mine.py', *arguments[:-1], str(tmp_path / 'other')]) == 2
  assert '~no_such_user' in capsys.readouterr().err.splitlines()[-1]
