"""The same networks, losses and optimizer in PyTorch: steps of training and forward passes, eager and compiled."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flax import traverse_util
from torch import nn
from workload import OPTIMIZER, Workload

from mtl_jax.data.input.augment import MEAN, STD
from mtl_jax.models import own_weights, pretrained
from mtl_jax.models.backbone import has_small_stem

sys.path.append(str(Path(__file__).parents[1] / 'tests'))
import torch_models  # pyright: ignore[reportMissingImports]

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SIZES = {
  'resnet18': (torch_models.BasicBlock, (2, 2, 2, 2)),
  'resnet50': (torch_models.Bottleneck, (3, 4, 6, 3)),
}


class SmallStem(torch_models.ResNet):
  """A ResNet whose first convolution is 3x3, without the max-pool."""

  def __init__(self, block: Any, sizes: Any, width: int):
    super().__init__(block, sizes, width)
    self.conv1 = nn.Conv2d(3, width, 3, 2, 1, bias=False)

  def forward_features(self, x: Any) -> Any:
    x = self.bn1(self.conv1(x)).relu()
    return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


class MultiTask(nn.Module):
  """A backbone and a head for each task; uint8 images `[b, h, w, 3]` to outputs in float32."""

  def __init__(self, workload: Workload):
    super().__init__()
    self.backbone = make_backbone(workload)
    features = num_features(workload)
    self.heads = nn.ModuleDict({task.name: make_head(features, task.num_outputs) for task in workload.tasks})
    self.register_buffer('mean', torch.tensor(MEAN).view(3, 1, 1))
    self.register_buffer('std', torch.tensor(STD).view(3, 1, 1))

  def forward(self, images: Any) -> dict[str, Any]:
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
    features = self.backbone.forward_features(pixels.contiguous(memory_format=torch.channels_last))
    return {name: head(features).float() for name, head in self.heads.items()}


def make_head(features: int, outputs: int) -> nn.Module:
  return nn.Sequential(nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, outputs))


def make_backbone(workload: Workload) -> Any:
  """The network that ours is, without its classifier."""
  if workload.backbone == 'mobilenet_v2':
    made = torch_models.MobileNetV2()
  else:
    small = has_small_stem('auto', (1, workload.size, workload.size, 3))
    made = (SmallStem if small else torch_models.ResNet)(*SIZES[workload.backbone], workload.width or 64)
  made.fc = made.classifier = None
  return made


def num_features(workload: Workload) -> int:
  """What the heads read."""
  if workload.backbone == 'mobilenet_v2':
    return 1280
  return (workload.width or 64) * 8 * SIZES[workload.backbone][0].expansion


def variables_of(network: MultiTask, workload: Workload, like: Mapping[str, Any]) -> dict[str, Any]:
  """Its parameters and statistics as variables of our model."""
  tensors = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
  backbone = workload.model.module.shared.backbone
  loaded = {
    path: backbone.from_torchvision(path[-1], tensors[f'backbone.{pretrained.torchvision_name(backbone, path)}'], shape)
    for path, shape in (
      (path, leaf.shape) for path, leaf in pretrained.expected(backbone, (workload.size, workload.size)).items()
    )
  }
  placed = own_weights.place(like, own_weights.of_backbone(traverse_util.unflatten_dict(loaded)))
  params = dict(placed['params'])
  for task in workload.tasks:
    layers = {'hidden': f'heads.{task.name}.0', 'output': f'heads.{task.name}.2'}
    params[f'head_{task.name}'] = {
      layer: {'kernel': tensors[f'{name}.weight'].T, 'bias': tensors[f'{name}.bias']} for layer, name in layers.items()
    }
  return {**placed, 'params': params}


class TorchSteps:
  """Training steps on a constant batch, as `workload.Steps`; weights are drawn anew from one seed."""

  def __init__(self, workload: Workload, *, compiled: bool):
    torch.manual_seed(0)
    self.workload = workload
    self.network = MultiTask(workload).to(DEVICE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    self.losses: list[float] = []
    self._forward = torch.compile(self.network) if compiled else self.network
    self._autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=workload.dtype == 'bfloat16')
    self._parameters = list(self.network.parameters())
    kernels = [p for p in self._parameters if p.ndim > 1]
    others = [p for p in self._parameters if p.ndim <= 1]
    groups = [{'params': kernels, 'weight_decay': OPTIMIZER['weight_decay']}, {'params': others, 'weight_decay': 0.0}]
    self._tx = torch.optim.AdamW(groups, lr=OPTIMIZER['learning_rate'], fused=True)
    batch = workload.make_batch()
    self._images = torch.tensor(batch['image'], device=DEVICE)
    self._labels = {}
    for task in workload.tasks:
      labels = batch['labels'][task.name]
      if task.standardized:
        stats = workload.label_stats[task.name]
        labels = (labels - stats.mean) / stats.std
      self._labels[task.name] = torch.tensor(np.asarray(labels), device=DEVICE)

  def _step(self) -> Any:
    with self._autocast:
      outputs = self._forward(self._images)
    loss: Any = 0.0
    for task in self.workload.tasks:
      of = F.mse_loss if task.standardized else F.binary_cross_entropy_with_logits
      loss = loss + of(outputs[task.name], self._labels[task.name])
    self._tx.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._parameters, OPTIMIZER['clip_norm'])
    self._tx.step()
    return loss

  def advance(self, steps: int) -> int:
    """Takes steps to their end; returns how many images that were."""
    loss: Any = None
    for _ in range(steps):
      loss = self._step()
    self.losses.append(float(loss.detach()))  # Waits for the device.
    return steps * self.workload.batch


class TorchForward:
  """Forward passes of a backbone in evaluation, without gradients."""

  def __init__(self, workload: Workload, *, compiled: bool):
    torch.manual_seed(0)
    self.workload = workload
    backbone = make_backbone(workload).eval().to(DEVICE).to(memory_format=torch.channels_last)
    self._forward = torch.compile(backbone.forward_features) if compiled else backbone.forward_features
    self._autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=workload.dtype == 'bfloat16')
    images = torch.tensor(workload.make_batch()['image']).permute(0, 3, 1, 2).float() / 255
    self._images = images.to(DEVICE).contiguous(memory_format=torch.channels_last)
    self.advance(1)

  @torch.no_grad()
  def advance(self, passes: int) -> int:
    with self._autocast:
      for _ in range(passes):
        self.features = self._forward(self._images)
    float(self.features.sum())  # Waits for the device.
    return passes * self.workload.batch
