"""Hard sharing: one backbone, whose features all heads read (Caruana 1993)."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mtl_jax.models.backbone import Backbone, Representation


class Hard(nn.Module):
  """One representation for all tasks.

  Attributes:
    backbone: the network.
    tasks: names of the tasks.
    spatial: whether some head reads maps.
  """

  backbone: Backbone
  tasks: tuple[str, ...]
  spatial: bool = False

  def __call__(self, images: Float[Array, 'b h w 3'], *, train: bool) -> Representation:
    x: Any = images
    for index in range(self.backbone.num_stages):
      x = self.backbone.stage(x, index, train=train)
    return self.backbone.represent(x, spatial=self.spatial)
