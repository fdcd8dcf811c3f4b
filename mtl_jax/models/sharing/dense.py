"""Densely connected task nets: every stage of every task's net reads all earlier stages of all tasks' nets.

`x_{t,s} <- sum_u A_{tu} x_{u,s} + sum_{r<s} sum_u B_{tur} fit(x_{u,r})`: a 1x1 convolution of the concatenated outputs
of all nets, as NDDR-CNN fuses them (Gao et al. 2019), over all earlier depths as well, as in DenseNet (Huang et al.
2017); `fit` averages a larger map to the size of x. As in NDDR-CNN, A begins at `own` times the identity for the task's
own net and shares the rest among the others; B begins at 0. NDDR-CNN's batch norm after the fusion is left out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.cross_stitch import own_and_others
from mtl_jax.models.sharing.way import Sharing


class Dense(Sharing):
  """A representation for each task.

  Attributes:
    own: what a task's own features weigh at the beginning; 1 begins as separate nets.
  """

  own: float = 0.9

  @nn.compact
  def __call__(self, images, *, train: bool) -> dict[str, Representation]:
    nets = [self.copied(task) for task in self.tasks]
    each, earlier = [images for _ in nets], []
    for index in range(self.backbone.num_stages):
      each = [net.stage(x, index, train=train) for net, x in zip(nets, each, strict=True)]
      reached = jnp.concatenate(each, axis=-1)
      each = [Fusion(self.own, t, len(nets), name=f'fusion_{index}_{t}')(reached, earlier) for t in range(len(nets))]
      earlier.append(reached)
    return {task: net.represent(x, spatial=self.spatial) for task, net, x in zip(self.tasks, nets, each, strict=True)}


class Fusion(nn.Module):
  """Mixes for one task the maps of all nets at this depth and at all earlier ones."""

  own: float
  task: int
  num_tasks: int

  @nn.compact
  def __call__(
    self, reached: Float[Array, 'b ... tc'], earlier: list[Float[Array, 'b ... _']]
  ) -> Float[Array, 'b ... c']:
    channels = reached.shape[-1] // self.num_tasks
    shares = own_and_others(self.num_tasks, self.own)[self.task]

    def fused(key, shape, dtype):
      del key, shape
      return jnp.kron(shares[:, None], jnp.eye(channels)).astype(dtype)

    def dense(name, init):
      return nn.Dense(channels, use_bias=False, dtype=reached.dtype, kernel_init=init, name=name)

    result = dense('fuse', fused)(reached)
    for depth, x in enumerate(earlier):
      result += dense(f'skip_{depth}', nn.initializers.zeros)(fit(x, like=reached))
    return result


def fit(x: Float[Array, 'b ... d'], *, like: Float[Array, 'b ... c']) -> Float[Array, 'b ... d']:
  """A map averaged to the size of a deeper one; tokens, of which there are as many in all stages, as they are."""
  return jax.image.resize(x, (*like.shape[:-1], x.shape[-1]), 'linear')
