"""No sharing: a backbone for each task, single-task models side by side in one program."""

import flax.linen as nn

from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.way import Sharing


class Separate(Sharing):
  """A representation for each task, of a backbone of its own; the tasks share the batch and the schedule alone."""

  @nn.compact
  def __call__(self, images, *, train: bool) -> dict[str, Representation]:
    nets = {task: self.copied(task) for task in self.tasks}
    return {
      task: net.represent(net.apply_stages(images, train=train), spatial=self.spatial) for task, net in nets.items()
    }
