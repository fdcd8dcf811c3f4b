"""CGC and PLE (Tang et al. 2020): experts of each task beside shared ones, in one level (CGC) or several (PLE).

A level is one stage of the backbone. At each, a task's gate mixes the task's own experts and the shared ones,
`x_t <- softmax(W_t u) [own experts; shared experts]`, and between levels a gate over all experts makes what the shared
experts of the next level read. Gates read the mean over places of what the experts do. In the paper experts are small
layers on given features; here the stages before the levels are shared by all.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.way import Sharing, mixed, name_of, pooled

SHARED = 'all_tasks'  # The group of the shared experts, among those of the tasks.


class Cgc(Sharing):
  """A representation for each task.

  Attributes:
    own_experts: how many each task has of its own.
    shared_experts: how many all share.
    levels: how many of the last stages have experts: 1 is CGC, more is PLE.
  """

  own_experts: int = 1
  shared_experts: int = 1
  levels: int = 1

  @nn.compact
  def __call__(self, images, *, train: bool) -> dict[str, Representation]:
    x = self.trunk(images, last=self.levels, option='levels', train=train)
    names = {task: [f'{task}_{i}' for i in range(self.own_experts)] for task in self.tasks}
    names[SHARED] = [f'{SHARED}_{i}' for i in range(self.shared_experts)]
    nets = {group: [self.copied(name) for name in members] for group, members in names.items()}
    inputs: dict[str, Any] = dict.fromkeys(nets, x)
    last = self.backbone.num_stages - 1
    for index in range(last + 1 - self.levels, last + 1):
      outputs = {group: [net.stage(inputs[group], index, train=train) for net in nets[group]] for group in nets}
      if index == last:
        outputs = {
          group: [net.represent(x, spatial=self.spatial) for net, x in zip(nets[group], outputs[group], strict=True)]
          for group in nets
        }
        nets.pop(SHARED)  # Nothing is left for the shared experts to read.
      everyone = [x for group in outputs for x in outputs[group]]
      seen = {group: outputs[group] + outputs[SHARED] for group in self.tasks} | {SHARED: everyone}
      inputs = {group: mixed(self._gate(group, index, inputs[group], len(seen[group])), seen[group]) for group in nets}
    return inputs

  def _gate(self, group: str, index: int, x, size: int):
    name = f'{name_of("gate", group)}_{index}'
    return nn.softmax(nn.Dense(size, use_bias=False, dtype=jnp.float32, name=name)(pooled(x)))


class Ple(Cgc):
  """CGC in several levels."""

  levels: int = 2
