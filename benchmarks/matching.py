"""Coupled tasks on kept features: every arm over several seeds, each with labels of its own, in one program an arm.

A lighter twin of `mtl-jax study` for sweeps: the same step, labels and tables, but a fixed learning rate, no choice of
checkpoint and no cost. FEATURES is a study's cache, DATA the prepared set that it was computed from:

    python benchmarks/matching.py --data DATA --features FEATURES --config configs/study_expressions.py [--config.a.b=v]
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import config as configs
from mtl_jax import objectives
from mtl_jax.data import keep_labels, mixture
from mtl_jax.data.augment import Augmentation
from mtl_jax.models.backbone import Representation
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.objectives import matching
from mtl_jax.study import arms, statistics
from mtl_jax.study.scores import plain
from mtl_jax.tasks import select
from mtl_jax.training import optimizer
from mtl_jax.training.step import TrainState, predict_step, train_step


class Trunk(nn.Module):
  """Dense layers over features, for the tasks to share."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, features, *, train: bool) -> Representation:
    del train
    for width in self.widths:
      features = nn.relu(nn.Dense(int(width))(features))
    return Representation(features)

  def penalty(self, params):
    """None: parameters are free."""
    del params


def features_of(folder: Path, split: str) -> np.ndarray:
  """Kept features `[n, f]` of one split."""
  for path in folder.glob('*/key.json'):
    key = json.loads(path.read_text())
    if key['split'] == split:
      return np.memmap(path.with_name('features.bin'), np.dtype(key['dtype']), 'r', shape=tuple(key['shape']))
  raise SystemExit(f'{folder} holds no features of {split}')


def train_arm(config: Any, store: Any, features: dict[str, np.ndarray], seeds: Sequence[int]) -> dict[str, np.ndarray]:
  """Each task's main metric on the test split `[seeds]`."""
  tasks = select(store.tasks, config.tasks, attributes=config.data.attributes)
  whole, val, test = (mixture.load_split(store, name, tasks) for name in ('train', 'val', 'test'))
  stats = {
    task.name: task.stats(whole.labels[task.name], mask=whole.mask[task.name], standardize=True) for task in tasks
  }
  groups = [task.name for task in store.tasks]
  keep = partial(keep_labels.apply, whole, config.data.keep_labels, tasks=tasks, groups=groups)
  splits = [keep(seed=seed) for seed in seeds]
  # Given tables and those counted in validation are the same for all seeds; priors are of the first seed's labels.
  coupling = matching.from_config(config, tasks=tasks, known=store.tasks, train=splits[0], val=val)
  outputs = tuple((task.name, task.num_outputs) for task in tasks)
  trunk: Any = Trunk(tuple(config.model.trunk_features))
  model = MultiTaskModel(trunk, outputs, head_features=config.model.head_features)
  tx, objective = optimizer.from_config(config), objectives.from_config(config, [task.name for task in tasks])
  step = partial(
    train_step, model=model, tasks=tasks, tx=tx, objective=objective, ema_decay=0.0, seed=0, coupling=coupling,
    augmentation=Augmentation(**config.data.augment),
  )  # fmt: skip

  def train_one(seed: Any, labels: Any, mask: Any, images: Any, tested: Any) -> Any:
    key = jax.random.key(seed)
    variables = model.init(key, images[:1], train=False)
    state = TrainState(
      jnp.zeros((), jnp.int32), {**variables, 'batch_stats': {}}, None, tx.init(variables['params']),
      objective.init(len(tasks), {}), stats,
    )  # fmt: skip

    def one(state: TrainState, key: Any) -> Any:
      rows = jax.random.randint(key, (config.train.batch_size,), 0, len(images))
      batch = {'image': images[rows], 'labels': {n: v[rows] for n, v in labels.items()},
               'mask': {n: v[rows] for n, v in mask.items()}, 'example_id': rows}  # fmt: skip
      state, metrics = step(state, batch)
      return state, metrics['loss']

    state, _ = jax.lax.scan(one, state, jax.random.split(jax.random.fold_in(key, 1), config.train.steps))
    return predict_step(state.variables, stats, tested, model=model, tasks=tasks)[1]

  labels = {name: jnp.asarray(np.nan_to_num(values)) for name, values in whole.labels.items()}
  mask = {name: jnp.stack([split.mask[name] for split in splits]) for name in labels}
  train_all = jax.jit(jax.vmap(train_one, in_axes=(0, None, 0, None, None)))  # Features as constants compile for long.
  found = jax.device_get(train_all(np.asarray(seeds), labels, mask, features['train'], features['test']))
  result: dict[str, list[float]] = {task.name: [] for task in tasks}
  for task in tasks:
    for predictions in found[task.name]:
      metrics = task.metrics(
        predictions, test.labels[task.name], mask=test.mask[task.name], source_size=test.source_size
      )
      result[task.name].append(float(metrics[task.main_metric]))
      for extra in ('macro_ap', 'macro_f1'):
        if isinstance(metrics.get(extra), float):
          result.setdefault(f'{task.name} {plain(extra)}', []).append(metrics[extra])
  return {name: np.array(values) for name, values in result.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  for flag in ('--data', '--features', '--config'):
    parser.add_argument(flag, type=Path, required=True)
  parser.add_argument('--json', type=Path)
  options, rest = parser.parse_known_args()
  config = configs.load(options.config, [item.removeprefix('--config.') for item in rest])
  with config.unlocked():
    config.data.dir = str(options.data)
  store = mixture.open_data(config.data)
  tasks = select(store.tasks, config.tasks, attributes=config.data.attributes)
  features = {split: np.asarray(features_of(options.features, split)) for split in ('train', 'test')}
  seeds = list(range(config.train.seed, config.train.seed + config.study.num_seeds))
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, arm in arms.from_config(config, tasks).items():
    found[name] = {}
    for one in arm.programs.values():
      found[name] |= train_arm(one, store, features, seeds)
    print_arm(name, found)
  if options.json:
    options.json.write_text(
      json.dumps({a: {m: v.tolist() for m, v in ms.items()} for a, ms in found.items()}, indent=2)
    )


def print_arm(name: str, found: dict[str, dict[str, np.ndarray]]) -> None:
  """Its means, with the difference to the single-task and to the joint models and the p-value of each."""
  for metric, values in found[name].items():
    said = []
    for other in ('single', 'joint'):
      if other in found and other != name:
        difference, p = values - found[other][metric], statistics.paired_p_value(values, found[other][metric])
        said.append(f'{difference.mean():+.4f} to {other} (sd {difference.std(ddof=1):.4f}, p {float(p):.2g})')
    print(f'{name:20} {metric:26} {values.mean():.4f}  {"  ".join(said)}', flush=True)


if __name__ == '__main__':
  main()
