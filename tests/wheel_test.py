"""The wheel alone, in an empty folder: presets, data files and every verb that the README names."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import small_runs

ROOT = Path(__file__).parents[1]
SMALL = (
  '--config.data.dir=faces --config.model.backbone=convnet --config.model.width=2 --config.train.steps=2 '
  '--config.train.batch_size=8 --config.optimizer.warmup_steps=0 --config.study.num_seeds=2'
)
TRAINED_WHOLE = '--config.model.freeze= --config.model.trunk_features=() --config.study.learning_rates=1e-3,1e-2'
COMMANDS = f"""
prepare synthetic --out faces --num 60 --image_size 16 16
train --config celeba_joint --workdir runs/joint {SMALL}
eval --workdir runs/joint
predict --workdir runs/joint faces/source/img_align_celeba/000001.jpg --out drawn
export --workdir runs/joint --out exported
study --config study_celeba --workdir runs/study {SMALL} {TRAINED_WHOLE}
report --workdir runs/study
report --workdir runs/joint
doctor
"""


def test_a_wheel_in_an_empty_folder_runs_every_verb(tmp_path):
  shutil.copytree(ROOT / 'mtl_jax', tmp_path / 'source' / 'mtl_jax', ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, tmp_path / 'source')
  build = 'wheel --quiet --no-deps --no-build-isolation --wheel-dir dist ./source'
  subprocess.run([sys.executable, '-m', 'pip', *build.split()], check=True, cwd=tmp_path)
  (wheel,) = (tmp_path / 'dist').iterdir()
  with zipfile.ZipFile(wheel) as file:
    file.extractall(tmp_path / 'site')
  (tmp_path / 'empty').mkdir()
  code = (
    'import shlex, sys, mtl_jax\n'
    'from mtl_jax import cli\n'
    'assert mtl_jax.__file__.startswith(sys.argv[1]), mtl_jax.__file__\n'
    'for line in sys.argv[2].strip().splitlines():\n'
    '  assert cli.main(shlex.split(line)) == 0, line\n'
  )
  subprocess.run(
    [sys.executable, '-c', code, str(tmp_path / 'site'), COMMANDS],
    check=True,
    cwd=tmp_path / 'empty',
    env=small_runs.one_device() | {'PYTHONPATH': str(tmp_path / 'site')},
    stdout=subprocess.DEVNULL,
  )
