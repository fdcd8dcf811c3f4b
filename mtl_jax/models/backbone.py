"""What every backbone is: stages in a row, from images to a map, and a pooling of the last map to features."""

from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float


class Representation(NamedTuple):
  """What heads read.

  Attributes:
    features: `[b, f]`, pooled.
    maps: `[b, h, w, c]`, what the features were pooled from; None where no head reads it.
  """

  features: Float[Array, 'b f']
  maps: Float[Array, 'b h w c'] | None = None


class Backbone(nn.Module):
  """Stages in a row; a subclass gives `num_stages` and a compact `stage`, and may pool in its own way.

  Ways of sharing connect the stages of several backbones; a frozen backbone is cut between two stages.
  """

  @property
  def num_stages(self) -> int:
    """How many stages there are."""
    raise NotImplementedError

  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Any:
    """What stage `index` makes of the last one's output; stage 0 takes normalised images `[b, h, w, 3]`."""
    raise NotImplementedError

  def pool(self, x: Any) -> Float[Array, 'b f']:
    """The last stage's output as features."""
    return x.mean(axis=(1, 2))

  def maps(self, x: Any) -> Float[Array, 'b h w c']:
    """The last stage's output as a map, for heads that ask where."""
    return x

  def represent(self, x: Any, *, spatial: bool = False) -> Representation:
    """The last stage's output as heads read it, with the map if they are `spatial`."""
    return Representation(self.pool(x), self.maps(x) if spatial else None)

  def __call__(self, images: Float[Array, 'b h w 3'], *, train: bool) -> Float[Array, 'b f']:
    x: Any = images
    for index in range(self.num_stages):
      x = self.stage(x, index, train=train)
    return self.pool(x)
