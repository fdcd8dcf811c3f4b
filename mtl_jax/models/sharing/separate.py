"""No sharing: a backbone for each task, single-task models side by side in one program."""

import flax.linen as nn

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.way import Sharing


class Separate(Sharing):
  """A representation for each task, of a backbone of its own; the tasks share the batch and the schedule alone."""

  @nn.compact
  def __call__(self, images, *, train: bool) -> dict[str, Representation]:
    result = {}
    for task in self.tasks:
      net, x = self.copied(task), images
      for index in range(net.num_stages):
        x = net.stage(x, index, train=train)
      result[task] = net.represent(x, spatial=self.spatial)
    return result
