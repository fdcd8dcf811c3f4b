"""Learning to branch (Guo et al. 2020): a tree of stages, in which every node learns which node above it to read.

Each stage but the first has several nodes, copies of it. Node j reads `sum_i d_ji x_i` over the nodes of the stage
before, heads likewise, and `d_j = softmax((logits_j + Gumbel noise) / temperature)` is drawn anew at each step; the
temperature falls, so that choices harden. In evaluation each node reads the one of the largest logit: a tree. Nodes
that no head comes to are still computed. Steps are counted with the batch statistics; the schedule is ours.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.way import Sharing, mixed

LEAST_TEMPERATURE = 0.1


class Branch(Sharing):
  """A representation for each task.

  Attributes:
    branches: how many nodes a stage has, though never more than there are tasks.
    temperature: at the first step.
    halving_steps: steps in which the temperature halves, down to 0.1.
  """

  branches: int = 3
  temperature: float = 5.0
  halving_steps: int = 500

  @nn.compact
  def __call__(self, images, *, train: bool) -> dict[str, Representation]:
    steps = self.variable('batch_stats', 'steps', jnp.zeros, (), jnp.float32)
    warmth = self.temperature * 0.5 ** (steps.value / self.halving_steps) if train else None
    if train and not self.is_initializing():
      steps.value += 1
    nets = [self.copied(f'branch_{i}') for i in range(min(self.branches, len(self.tasks)))]
    nodes = [self.backbone.stage(images, 0, train=train)]
    for index in range(1, self.backbone.num_stages):
      chosen = self._chosen(f'stage_{index}', len(nets), nodes, warmth)
      nodes = [net.stage(x, index, train=train) for net, x in zip(nets, chosen, strict=True)]
    read = [net.represent(x, spatial=self.spatial) for net, x in zip(nets, nodes, strict=True)]
    return dict(zip(self.tasks, self._chosen('heads', len(self.tasks), read, warmth), strict=True))

  def _chosen(self, name: str, children: int, parents: list, warmth: Array | None) -> list:
    """Mixes the parents' maps for each child."""
    logits = Choices(children, len(parents), name=f'choices_{name}')()
    if warmth is None:
      choices = jax.nn.one_hot(logits.argmax(-1), len(parents))
    else:
      noise = jax.random.gumbel(self.make_rng('sharing'), logits.shape)
      choices = nn.softmax((logits + noise) / jnp.maximum(warmth, LEAST_TEMPERATURE))
    return [mixed(row, parents) for row in choices]


class Choices(nn.Module):
  """The logits of each child's choice."""

  children: int
  parents: int

  @nn.compact
  def __call__(self) -> Float[Array, 'children parents']:
    return self.param('logits', nn.initializers.zeros, (self.children, self.parents))
