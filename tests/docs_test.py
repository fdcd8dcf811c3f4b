"""Every command of README and of the docs is one that the command line takes; a slow test runs them on tiny sets."""

import functools
import re
import shlex
import shutil
from pathlib import Path

import celeba_layout
import numpy as np
import pytest
import small_runs
from clothing_test import write_clothing
from mtfl_test import write_mtfl
from PIL import Image

import mtl_jax
from mtl_jax import cli, demo
from mtl_jax.data.synthetic.people import ATTRIBUTES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
ANY_FILE = {'F.py'}  # Stands for a file of the reader's own.

# The beginnings of commands that are not run here, each with its reason.
NOT_RUN = {
  'python -m venv': 'sets up an environment: .ci/run does',
  '. .venv': 'sets up an environment: .ci/run does',
  'pip install': 'downloads packages: .ci/run does',
  'pytest': 'is what runs this',
  '.ci/run': 'is what runs this',
  'python benchmarks/celeba40.py': 'trains 75 programs: benchmarks_test does at tiny size',
  'python benchmarks/': 'measures, on a quiet machine: benchmarks_test does at tiny size',
  'mtl-jax train --config F.py': 'needs a bucket: bucket_runs_test does, over a stand-in',
  'mtl-jax train --config celeba_joint_full --workdir /shared': 'needs two hosts: multiprocess_test has two processes',
  'benchmarks/run_all.sh': 'measures, on a quiet machine: benchmarks_test does at tiny size',
  'mtl-jax prepare celeba --source celeba --out gs://': 'needs a bucket: bucket_sets_test does, over a stand-in',
  'mtl-jax eval --workdir gs://': 'needs a bucket: bucket_runs_test does, over a stand-in',
  'mtl-jax train --config celeba_joint --workdir runs/tracked': 'needs a Weights & Biases client: trackers_test does',
  'launch/local.sh': 'starts two processes: launch_test does',
  'launch/tpu_vm.sh': 'needs a TPU slice: launch_test does, with a stand-in for gcloud',
  'sbatch': 'needs SLURM: launch_test does, with a stand-in for srun',
  'kubectl': 'needs Kubernetes',
  'sky': 'needs a cloud',
  'mpirun': 'needs Open MPI',
}

IMAGES = ['32', '32']
NUM_FACES = 64
# Fields of every run, below what the command says itself.
SMALL = {
  'model.backbone': 'convnet',
  'model.width': '4',
  'model.stem': 'auto',
  'model.head': 'linear',
  'model.trunk_features': '8',
  'train.steps': '4',
  'train.batch_size': '8',
  'train.log_every_steps': '1',
  'eval.every_steps': '2',
  'eval.batch_size': '16',
  'checkpoint.every_steps': '2',
  'optimizer.warmup_steps': '1',
  'study.num_seeds': '2',
  'study.learning_rates': '1e-3',
  'study.num_tuning_seeds': '1',
  'affinity.every_steps': '1',
  'affinity.transfer': 'False',
  'sweep.trials': '2',
  'sweep.confirm_seeds': '2',
}
# What stands in the place of what the command says.
SMALLER = {
  'train.steps': '8',
  'train.batch_size': '8',
  'optimizer.warmup_steps': '1',
  'eval.every_steps': '2',
  'model.weights=mobilenet_v2-b0353104.pth': 'runs/start',  # ImageNet's weights are 14 MB, its network takes long.
  'model.backbone=mobilenet_v2': 'convnet',
  'model.freeze=stage3': 'stage1',
  'study.num_seeds': '2',
  'study.learning_rates': '1e-3',
  'study.grid.optimizer.weight_decay': '0.01',
  'study.grid.objective.matching.distribution': '0.3',
  'study.grid.objective.matching.soft_co_annotation': '0.3',
  'study.grid.objective.matching.co_annotation': '0.3',
  'sweep.trials': '2',
  'sweep.methods': 'famo',
  'sweep.weight_steps': '3',
  'sweep.front_points': '2',
  'sweep.confirm_seeds': '2',
  'sweep.space.optimizer.learning_rate=1e-3,3e-3,1e-2': '1e-3,3e-3',
}
# Fewer arms of studies that have many.
ARMS = {
  'configs/study_methods.py': 'joint,famo',
  'configs/study_matching.py': 'joint,both',
  'configs/study_expressions.py': 'joint,both',
  'configs/study_mixture.py': 'joint,both',
  'study_clothing': 'joint,both,co_annotation',
}
MAKING = ('train', 'study', 'sweep', 'affinity')  # Verbs with a configuration.


def commands(page: Path) -> list[str]:
  """The commands of a page's shell blocks, one string each."""
  blocks = re.findall(r'```(?:sh|bash)\n(.*?)```', page.read_text(), re.DOTALL)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  without_comments = (re.sub(r'\s+#.*|^#.*', '', line) for line in lines)
  return [command.strip() for line in without_comments for command in line.split(' && ') if command.strip()]


def verbs(page: Path) -> list[str]:
  return [command for command in commands(page) if command.startswith('mtl-jax ')]


def not_run(command: str) -> bool:
  return any(command.startswith(beginning) for beginning in NOT_RUN)


@pytest.mark.parametrize('page', [page for page in PAGES if verbs(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_has_flags_and_fields_that_there_are(page, monkeypatch, capsys):
  def checked(options):
    if getattr(options, 'config', None) and options.config not in ANY_FILE and Path(options.config).parts[0] != 'runs':
      mtl_jax.get_config(str(options.config), options.overrides)
    return 0

  monkeypatch.setattr(cli, '_run', checked)
  monkeypatch.setattr(cli.processes, 'run', lambda run, *_, **__: run())  # Else waits for the other processes.
  monkeypatch.chdir(ROOT)
  for command in verbs(page):
    assert cli.main(shlex.split(command)[1:]) == 0, f'{command}\n{capsys.readouterr().err}'


def tiny(command: str) -> list[str]:
  """The arguments of a command at tiny size."""
  _, verb, *rest = shlex.split(command)
  if verb == 'prepare':
    if '--image_size' in rest:
      at = rest.index('--image_size')
      del rest[at : at + 3]
    if '--num' in rest:
      at = rest.index('--num')
      del rest[at : at + 2]
    return [verb, *rest, '--image_size', *IMAGES, '--num', str(NUM_FACES)]
  if verb not in MAKING:
    return [verb, *rest]
  flags = [argument for argument in rest if not argument.startswith('--config.')]
  said = dict(argument[len('--config.') :].split('=', 1) for argument in rest if argument.startswith('--config.'))
  config = rest[rest.index('--config') + 1]
  fields = {} if config.startswith('runs/') else SMALL
  if config in ARMS:
    fields = {**fields, 'study.arms': ARMS[config]}
  for name, value in said.items():
    fields = {**fields, name: SMALLER.get(f'{name}={value}', SMALLER.get(name, value))}
  return [verb, *flags, *(f'--config.{name}={value}' for name, value in fields.items())]


def run(command: str) -> int:
  return cli.main(tiny(command))


def code_of(page: str) -> dict[str, str]:
  """The Python files that a page of the docs shows, by the names that the text before each gives last."""
  text = (ROOT / 'docs' / page).read_text()
  files = {}
  for before, code in re.findall(r'(.*?)```python\n(.*?)```', text, re.DOTALL):
    files[re.findall(r'`(\w+\.py)`', before)[-1]] = code
  return files


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> Path:
  """A folder with all that commands read: raw and prepared sets, files of one's own, pictures, a trained run."""
  folder = tmp_path_factory.mktemp('docs')
  for name in ('configs', 'benchmarks', 'launch'):
    (folder / name).symlink_to(ROOT / name)
  write_mtfl(folder / 'mtfl', train=60, test=12)
  write_clothing(folder / 'clothing')
  (folder / 'utkface').mkdir()
  random = np.random.default_rng(0)
  for i in range(NUM_FACES):
    pixels = Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    pixels.save(folder / 'utkface' / f'{20 + i % 50}_{i % 2}_{i % 5}_20170109142408{i:03d}.jpg.chip.jpg')
  for name, text in {**code_of('own_data.md'), **code_of('own_parts.md')}.items():
    (folder / name).write_text(text)
  lines = ['image,split,age,smiling,male']
  for i in range(40):
    name = f'faces/{i}.png'
    (folder / 'my_faces' / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(folder / 'my_faces' / name)
    lines.append(f'{name},{("train", "train", "val", "test")[i % 4]},{20 + i},{i % 2},{i // 2 % 2}')
  (folder / 'my_faces' / 'labels.csv').write_text('\n'.join(lines) + '\n')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr('os.cpu_count', lambda: 1)  # Else faces come from processes of their own.
    patch.setattr(celeba_layout, 'ATTRIBUTES', ATTRIBUTES)
    celeba_layout.write_celeba(folder / 'celeba', splits=(0, 0, 0, 0, 1, 2, 0, 0) * (NUM_FACES // 8))
    for command in (
      'mtl-jax prepare celeba --source celeba --out data/celeba64',
      'mtl-jax prepare mtfl --source mtfl --out data/mtfl64',
      'mtl-jax prepare utkface --source utkface --out data/utkface64',
      'mtl-jax prepare clothing --source clothing --out data/clothing',
      'mtl-jax prepare synthetic:expressions --out data/expressions',
      'mtl-jax train --config celeba_joint --workdir runs/joint --config.data.dir=data/celeba64',
    ):
      assert run(command) == 0, command
  pictures = sorted((folder / 'celeba' / 'img_align_celeba').glob('*.jpg'))
  (folder / 'faces').mkdir()
  shutil.copy(pictures[0], folder / 'face.jpg')
  shutil.copy(pictures[1], folder / 'faces' / 'b.jpg')
  for name in ('data/celeba224', 'data/celeba32', 'data/celeba128', 'data/synthetic224'):
    shutil.copytree(folder / 'data/celeba64', folder / name)
  for name in ('data/mtfl128', 'data/utkface128'):
    shutil.copytree(folder / name.replace('128', '64'), folder / name)
  shutil.copytree(folder / 'runs/joint', folder / 'runs/start')
  return folder


def made_by(command: str) -> set[str]:
  """The folder that a command makes, if it makes one."""
  _, verb, *rest = shlex.split(command)
  flag = '--out' if verb in ('prepare', 'export') else '--workdir' if verb in MAKING else ''
  return {rest[rest.index(flag) + 1]} if flag else set()


# Pages whose commands run in seconds, with which a newcomer begins; `-m slow` runs the others, for three minutes.
QUICK = ('README.md', 'index.md', 'own_data.md', 'evaluate.md', 'export.md', 'models.md')


@pytest.mark.parametrize(
  'page',
  [
    pytest.param(page, marks=() if page.name in QUICK else pytest.mark.slow, id=page.name)
    for page in PAGES
    if commands(page)
  ],
)
def test_the_commands_of_a_page_run_in_their_order(page, world, tmp_path, monkeypatch, capsys):
  place = tmp_path / 'place'
  shutil.copytree(world, place, symlinks=True)
  monkeypatch.chdir(place)
  monkeypatch.setattr('os.cpu_count', lambda: 1)
  base = small_runs.make_config(Path('unused'), **{'train.steps': 2, 'eval.every_steps': 2})
  monkeypatch.setattr(demo, 'run', functools.partial(demo.run, num_faces=NUM_FACES, base=base))
  made: set[str] = set()
  for command in commands(page):
    if not not_run(command):
      assert command.startswith('mtl-jax '), f'{command} is neither run nor in NOT_RUN'
      for name in made_by(command) - made:
        shutil.rmtree(place / name, ignore_errors=True)
      made |= made_by(command)
      assert run(command) == 0, f'{command}\n{capsys.readouterr().err}'


def test_every_command_that_is_not_run_is_on_a_page():
  shown = [command for page in PAGES for command in commands(page)]
  assert [name for name in NOT_RUN if not any(command.startswith(name) for command in shown)] == []
