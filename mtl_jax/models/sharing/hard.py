"""Hard sharing: one backbone, whose features all heads read (Caruana 1993)."""

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.way import Sharing


class Hard(Sharing):
  """One representation for all tasks."""

  def __call__(self, images, *, train: bool) -> Representation:
    x = images
    for index in range(self.backbone.num_stages):
      x = self.backbone.stage(x, index, train=train)
    return self.backbone.represent(x, spatial=self.spatial)
