"""The seed project's recipe, three models over a frozen backbone: with features computed once, and plainly in PyTorch.

    python benchmarks/frozen.py [--data DIR --weights FILE] [--json benchmarks/results/frozen.json]

Joint, attributes, landmarks; both sides read the same prepared images. Ours is timed whole, from nothing to the third
model: opening, compiling, features, every step, validation, checkpoints. PyTorch's training steps alone are timed, a
number of them after a warm-up, and extrapolated to all; its validation is left out.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from reporting import Row, parser, report, row
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mtl_jax import config as configs
from mtl_jax.data.input.augment import MEAN, STD
from mtl_jax.data.input.mixture import load_split
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.prepare import prepare
from mtl_jax.data.store.reader import open_store
from mtl_jax.tasks import select
from mtl_jax.training import loop

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'tests'))
import torch_models  # noqa: E402  # pyright: ignore[reportMissingImports]

MODELS = {'joint': 'attributes,landmarks', 'attributes': 'attributes', 'landmarks': 'landmarks'}
QUICK = {'num': 64, 'size': 64, 'epochs': 1, 'batches': 2, 'warmup': 1}
TARGET = 10.0  # Times less wall time than PyTorch; 30 is the aim.


def main() -> None:
  options = flags().parse_args()
  if options.quick:
    vars(options).update(QUICK)
  with tempfile.TemporaryDirectory() as scratch:
    options.data = options.data or draw(Path(scratch) / 'faces', options)
    config = recipe(options)
    rows = train_torch(config, options)  # First: its loaders fork, which must not happen once JAX has threads.
    ours = train_ours(config, Path(scratch))
  whole = row('PyTorch, the three models, extrapolated', sum(one['value'] for one in rows), 's')
  rows += [whole, *ours, row('ours, the three models', sum(one['value'] for one in ours), 's', to=whole)]
  speedup = row('times faster', whole['value'] / rows[-1]['value'], 'x', target=TARGET)
  report([*rows, speedup], options)


def flags() -> argparse.ArgumentParser:
  made = parser(str(__doc__).splitlines()[0])
  made.add_argument('--data', type=Path, metavar='DIR', help='a prepared set; by default faces are drawn')
  made.add_argument('--num', type=int, default=2000, help='faces to draw')
  made.add_argument('--size', type=int, default=224, help='pixels a side of the faces drawn')
  made.add_argument('--backbone', choices=('mobilenet_v2', 'resnet18'), default='mobilenet_v2')
  made.add_argument('--weights', type=Path, metavar='FILE', help='of the backbone; by default they are random')
  made.add_argument('--epochs', type=int, default=10)
  made.add_argument('--batches', type=int, default=40, help='training steps of each PyTorch model to time')
  made.add_argument('--warmup', type=int, default=5, help='training steps before those')
  return made


def draw(out: Path, options: argparse.Namespace) -> Path:
  size = (options.size, options.size)
  prepare('synthetic', source=None, out=out, image_size=size, num=options.num, seed=0, log=lambda _: None)
  return out


def recipe(options: argparse.Namespace) -> ConfigDict:
  """The seed's configuration, its length in epochs of the data at hand, without an early stop."""
  overrides = [f'data.dir={options.data}', f'model.backbone={options.backbone}', 'eval.patience=0']
  overrides += [f'model.weights={options.weights}'] if options.weights else []
  config = configs.load(ROOT / 'configs' / 'seed_frozen3.py', overrides)
  epoch = max(1, len(open_store(options.data).splits['train']) // config.train.batch_size)
  with config.unlocked():
    config.train.steps = options.epochs * epoch
    config.eval.every_steps = config.checkpoint.every_steps = epoch
    config.train.log_every_steps = max(n for n in range(1, 65) if epoch % n == 0)
  return config


def train_ours(config: ConfigDict, scratch: Path) -> list[Row]:
  """Seconds of each model, the first with the features of all."""
  rows = []
  for name, tasks in MODELS.items():
    config.tasks = tasks
    began = time.perf_counter()
    loop.train(config.copy_and_resolve_references().lock(), scratch / 'runs' / name, name=name)
    rows.append(row(f'ours, {name}' + (', with the features' if not rows else ''), time.perf_counter() - began, 's'))
  return rows


class Faces(Dataset):
  """Normalised images `[3, h, w]` and their labels."""

  def __init__(self, split: Split):
    self.split = split

  def __len__(self) -> int:
    return len(self.split)

  def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    pixels = (self.split.images[index].astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(
      STD, np.float32
    )
    labels = {name: values[index] for name, values in self.split.labels.items()}
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), labels


def train_torch(config: ConfigDict, options: argparse.Namespace) -> list[Row]:
  """Seconds that the steps of each model would take, from those that were timed."""
  store, steps = open_store(options.data), config.train.steps
  rows = []
  for name, task_names in MODELS.items():
    tasks = select(store.tasks, task_names, attributes=config.data.attributes)
    split = load_split(store, 'train', tasks)
    secs = secs_a_step(split, {task.name: task.num_outputs for task in tasks}, config, options)
    rows.append(row(f'PyTorch, {name}: {options.batches} of {steps} steps timed', secs * steps, 's'))
  return rows


def secs_a_step(split: Split, outputs: dict[str, int], config: ConfigDict, options: argparse.Namespace) -> float:
  """Seconds of a training step, loading its batch included."""
  backbone = getattr(torch_models, options.backbone)()
  if options.weights:
    backbone.load_state_dict(torch.load(options.weights, weights_only=True))
  backbone.requires_grad_(False).eval()
  features, hidden = {'mobilenet_v2': 1280, 'resnet18': 512}[options.backbone], config.model.head_features
  heads = nn.ModuleDict(
    {name: nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, n)) for name, n in outputs.items()}
  )
  optimizer = torch.optim.Adam(heads.parameters(), lr=config.optimizer.learning_rate)
  losses = {'attributes': nn.BCEWithLogitsLoss(), 'landmarks': nn.MSELoss()}
  loader = DataLoader(Faces(split), config.train.batch_size, shuffle=True, num_workers=2, persistent_workers=True)
  began, done = 0.0, -options.warmup
  while True:
    for images, labels in loader:
      if done == 0:
        began = time.perf_counter()
      if done == options.batches:
        return (time.perf_counter() - began) / options.batches
      done += 1
      with torch.no_grad():
        read = backbone.forward_features(images)
      each = [config.objective.weights[name] * losses[name](head(read), labels[name]) for name, head in heads.items()]
      loss = torch.stack(each).sum()
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      loss.item()


if __name__ == '__main__':
  main()
