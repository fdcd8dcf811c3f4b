"""The same network, batch and methods in PyTorch, with torchjd for the gradients of each task."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_training import DEVICE, make_backbone, make_head, num_features
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward
from workload import Workload

from mtl_jax.tasks import LandmarkTask

AGGREGATORS: dict[str, Callable[[], Any]] = {
  'upgrad': aggregation.UPGrad,
  'cagrad': lambda: aggregation.CAGrad(c=0.4),
  'mgda': aggregation.MGDA,
  'pcgrad': aggregation.PCGrad,
  'aligned_mtl': aggregation.AlignedMTL,
}
CHUNK = 8  # Backward passes side by side on CPU, where all 40 at once would not fit; on a GPU torchjd takes all.


def ways(workload: Workload, *, methods: Sequence[str]) -> dict[str, Callable[[], tuple[Callable[[], int], None]]]:
  """`torch plain sum` and `torch <method>` for each method: what makes a step of each, on a network of its own."""
  made = {'torch plain sum': lambda: (make_step(workload, None), None)}
  return made | {f'torch {name}': partial(_with_aggregator, workload, name) for name in methods}


def _with_aggregator(workload: Workload, name: str) -> tuple[Callable[[], int], None]:
  return make_step(workload, AGGREGATORS[name]()), None


def make_step(workload: Workload, aggregator: Any) -> Callable[[], int]:
  """A step of AdamW, returning its images; on a GPU in bfloat16 and with channels last, as our own."""
  torch.manual_seed(0)
  tasks, batch = workload.tasks, workload.make_batch()
  backbone = make_backbone(workload).to(device=DEVICE, memory_format=torch.channels_last)
  heads = nn.ModuleList([make_head(num_features(workload), task.num_outputs) for task in tasks]).to(DEVICE)
  tx = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=1e-3, weight_decay=1e-4)
  images = torch.tensor(batch['image'], device=DEVICE).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
  labels = [torch.tensor(np.asarray(batch['labels'][task.name]), device=DEVICE) for task in tasks]

  def step() -> int:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == 'cuda'):
      features = backbone.forward_features(images.float() / 255)
      outputs = [head(features).float() for head in heads]
    losses = [
      F.mse_loss(out, label) if isinstance(task, LandmarkTask) else F.binary_cross_entropy_with_logits(out, label)
      for task, out, label in zip(tasks, outputs, labels, strict=True)
    ]
    if aggregator is None:
      torch.stack(losses).sum().backward()
    else:
      mtl_backward(losses, features=features, parallel_chunk_size=CHUNK if DEVICE == 'cpu' else None)
      jac_to_grad(backbone.parameters(), aggregator)
    tx.step()
    tx.zero_grad()
    if DEVICE == 'cuda':
      torch.cuda.synchronize()
    return workload.batch

  return step
