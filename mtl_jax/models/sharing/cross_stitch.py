"""Cross-stitch networks (Misra et al. 2016): a backbone for each task, mixed after every stage.

`x_t <- sum_u unit[t, u] * x_u`, a number for each pair of tasks and each channel. A task's own weight begins at 0.9,
the others' share 0.1, as the paper found best. (The paper also learns the units with a rate 100 to 1000 times that of
the nets, and begins from trained single-task nets; neither is done here.)
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.way import Sharing


class CrossStitch(Sharing):
  """A representation for each task.

  Attributes:
    own: what a task's own features weigh at the beginning; 1 begins as separate nets.
  """

  own: float = 0.9

  @nn.compact
  def __call__(self, images, *, train: bool) -> dict[str, Representation]:
    nets = [self.copied(task) for task in self.tasks]
    each = [images for _ in nets]
    for index in range(self.backbone.num_stages):
      each = [net.stage(x, index, train=train) for net, x in zip(nets, each, strict=True)]
      each = Stitch(self.own, name=f'stitch_{index}')(each)
    return {task: net.represent(x, spatial=self.spatial) for task, net, x in zip(self.tasks, nets, each, strict=True)}


class Stitch(nn.Module):
  """One cross-stitch unit: mixes the tasks' outputs of a stage, channel by channel."""

  own: float

  @nn.compact
  def __call__(self, each: list[Float[Array, 'b ... c']]) -> list[Float[Array, 'b ... c']]:
    channels = each[0].shape[-1]
    first = own_and_others(len(each), self.own)
    unit = self.param('unit', lambda _: jnp.tile(first[..., None], channels)).astype(each[0].dtype)
    return [sum((unit[t, u] * x for u, x in enumerate(each)), jnp.zeros_like(each[0])) for t in range(len(each))]


def own_and_others(num_tasks: int, own: float) -> Float[Array, 't t']:
  """A matrix with `own` on its diagonal, whose rows sum to 1 (of a single task: to `own`)."""
  others = (1 - own) / max(num_tasks - 1, 1)
  return jnp.where(jnp.eye(num_tasks, dtype=bool), own, others)
