"""The same network, batch and methods in PyTorch, with torchjd for the gradients of each task."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

from mtl_jax.tasks import LandmarkTask, Task

AGGREGATORS: dict[str, Callable[[], Any]] = {
  'upgrad': aggregation.UPGrad,
  'cagrad': lambda: aggregation.CAGrad(c=0.4),
  'mgda': aggregation.MGDA,
  'pcgrad': aggregation.PCGrad,
  'aligned_mtl': aggregation.AlignedMTL,
}
CHUNK = 8  # Backward passes side by side on CPU, where all 40 at once would not fit; on a GPU torchjd takes all.


class Block(nn.Module):
  """Two 3x3 convolutions and a shortcut, as in torchvision."""

  def __init__(self, inputs: int, features: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.shortcut = nn.Identity()
    if stride > 1 or inputs != features:
      self.shortcut = nn.Sequential(nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features))

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def make_network(tasks: Sequence[Task], width: int) -> tuple[Any, nn.ModuleList]:
  """ResNet-18 of a width, with the small stem (3x3 of stride 2, no pool), and a head for each task."""
  layers = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
  inputs = width
  for stage in range(4):
    for index in range(2):
      layers.append(Block(inputs, width * 2**stage, 2 if stage > 0 and index == 0 else 1))
      inputs = width * 2**stage
  network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
  heads = [nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, task.num_outputs)) for task in tasks]
  return network, nn.ModuleList(heads)


def steps(
  tasks: Sequence[Task], batch: dict[str, Any], *, methods: Sequence[str], width: int
) -> dict[str, tuple[Callable[[], None], None]]:
  """`torch plain sum` and `torch <method>` for each method: one step of each, on a network of its own."""
  found = {'torch plain sum': (make_step(tasks, batch, None, width=width), None)}
  return found | {
    f'torch {name}': (make_step(tasks, batch, AGGREGATORS[name](), width=width), None) for name in methods
  }


def make_step(tasks: Sequence[Task], batch: dict[str, Any], aggregator: Any, *, width: int) -> Callable[[], None]:
  """A step of AdamW; on a GPU in bfloat16 and with channels last, as our own."""
  torch.manual_seed(0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  network, heads = make_network(tasks, width)
  network, heads = network.to(device=device, memory_format=torch.channels_last), heads.to(device)
  tx = torch.optim.AdamW([*network.parameters(), *heads.parameters()], lr=1e-3, weight_decay=1e-4)
  images = torch.tensor(batch['image'], device=device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
  labels = [torch.tensor(np.asarray(batch['labels'][task.name]), device=device) for task in tasks]

  def step() -> None:
    with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
      features = network(images.float() / 255)
      outputs = [head(features).float() for head in heads]
    losses = [
      F.mse_loss(out, label) if isinstance(task, LandmarkTask) else F.binary_cross_entropy_with_logits(out, label)
      for task, out, label in zip(tasks, outputs, labels, strict=True)
    ]
    if aggregator is None:
      torch.stack(losses).sum().backward()
    else:
      mtl_backward(losses, features=features, parallel_chunk_size=CHUNK if device == 'cpu' else None)
      jac_to_grad(network.parameters(), aggregator)
    tx.step()
    tx.zero_grad()
    if device == 'cuda':
      torch.cuda.synchronize()

  return step
