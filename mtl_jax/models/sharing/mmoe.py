"""MMoE (Ma et al. 2018): experts that all tasks share, and for each task a gate that mixes them, example by example.

`r_t = sum_i softmax(W_t u)_i expert_i(x)`. In the paper experts are small layers on given features. Here they are
copies of the backbone's last stages over shared earlier ones, and the gate's u is the mean over places of what they
read; with `expert_stages` as many as there are stages, experts are whole backbones, and u the image's mean colour.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.way import Sharing, mixed, name_of, pooled


class Mmoe(Sharing):
  """A representation for each task.

  Attributes:
    experts: how many there are (the paper's are 8, of one small layer each).
    expert_stages: how many of the last stages each expert has of its own.
  """

  experts: int = 4
  expert_stages: int = 1

  @nn.compact
  def __call__(self, images, *, train: bool) -> Mapping[str, Representation]:
    x = self.trunk(images, last=self.expert_stages, option='expert_stages', train=train)
    read = [self.expert(x, f'expert_{i}', train=train) for i in range(self.experts)]
    return {task: mixed(self.gate(task, x), read) for task in self.tasks}

  def expert(self, x, name: str, *, train: bool) -> Representation:
    """Applies one expert to the trunk's output."""
    net = self.copied(name)
    x = net.apply_stages(x, first=net.num_stages - self.expert_stages, train=train)
    return net.represent(x, spatial=self.spatial)

  def gate(self, task: str, x):
    """A task's weights of the experts, for each example `[b, e]`, or for all `[e]`."""
    logits = nn.Dense(self.experts, use_bias=False, dtype=jnp.float32, name=name_of('gate', task))(pooled(x))
    return nn.softmax(logits)
