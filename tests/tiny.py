"""A model that compiles in no time, and a batch for it, for tests of the step and of its gradients."""

from typing import Any

import flax.linen as nn
import numpy as np

from mtl_jax.models.backbone import Representation
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.models.network import Network
from mtl_jax.tasks import BinaryTask, LandmarkTask, Task

SIZE = (8, 8)
TASKS = (
  BinaryTask('attributes', ('Smiling', 'Male', 'Young')),
  LandmarkTask('landmarks', ('lefteye_x', 'lefteye_y', 'righteye_x', 'righteye_y')),
)


class Shared(nn.Module):
  """A convolution with batch norm, if `norm`, and a dense layer; with `names`, a representation for each of them."""

  names: tuple[str, ...] = ()
  norm: bool = True

  @nn.compact
  def __call__(self, images, *, train: bool) -> Any:
    x = nn.Conv(4, (3, 3), strides=2, name='conv')(images)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, name='norm')(x) if self.norm else x)
    x = nn.tanh(nn.Dense(6, name='dense')(x.reshape(len(x), -1)))
    if not self.names:
      return Representation(x)
    return {name: Representation(nn.Dense(5, name=f'own_{name}')(x)) for name in self.names}

  def penalty(self, params):
    """None: parameters are free."""


def make_model(tasks: tuple[Task, ...] = TASKS, *, soft: bool = False, norm: bool = True) -> Network:
  """Hard sharing, or a representation for each task."""
  outputs = tuple((task.name, task.num_outputs) for task in tasks)
  names = tuple(name for name, _ in outputs) if soft else ()
  return Network(MultiTaskModel(Shared(names, norm), outputs, head_features=5))


def make_batch(tasks: tuple[Task, ...] = TASKS, *, rows: int = 16, seed: int = 0, labelled: float = 0.8) -> dict:
  """Random images and labels; a share of the labels is there."""
  random = np.random.default_rng(seed)
  labels = {}
  for task in tasks:
    shape = (rows, len(task.labels))
    binary = isinstance(task, BinaryTask)
    drawn = random.integers(0, 2, shape) if binary else random.uniform(0.2, 0.8, shape)
    labels[task.name] = drawn.astype(np.float32)
  return {
    'image': random.integers(0, 256, (rows, *SIZE, 3), dtype=np.uint8),
    'labels': labels,
    'mask': {name: random.random(values.shape) < labelled for name, values in labels.items()},
    'example_id': np.arange(rows, dtype=np.int32),
  }


def label_stats(batch: dict, tasks: tuple[Task, ...] = TASKS) -> dict:
  """Of the batch itself."""
  return {t.name: t.stats(batch['labels'][t.name], mask=batch['mask'][t.name], standardize=True) for t in tasks}


def binary_tasks(num: int) -> tuple[Task, ...]:
  """So many tasks of one attribute each."""
  return tuple(BinaryTask(f'attributes/a{i}', (f'a{i}',)) for i in range(num))
