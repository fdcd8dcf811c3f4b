"""Hard sharing: one backbone, whose features all heads read (Caruana 1993)."""

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.way import Sharing


class Hard(Sharing):
  """One representation for all tasks."""

  def __call__(self, images, *, train: bool) -> Representation:
    return self.backbone.represent(self.backbone.apply_stages(images, train=train), spatial=self.spatial)
