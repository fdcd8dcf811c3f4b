"""The contract of backbones: stages in a row, from images to a map, and a pooling of the last map to features."""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Images up to this many pixels a side get the small stem: the large one would leave maps of 2x2 and less.
SMALL_IMAGE = 96


def has_small_stem(stem: str, shape: tuple[int, ...]) -> bool:
  """True if `config.model.stem` is the small stem for images of this shape, `[b, h, w, 3]`."""
  return stem == 'small' or (stem == 'auto' and min(shape[1:3]) <= SMALL_IMAGE)


class Representation(NamedTuple):
  """The input of the heads.

  Attributes:
    features: `[b, f]`, pooled.
    maps: `[b, h, w, c]`, what the features were pooled from; None where no head reads it.
  """

  features: Float[Array, 'b f']
  maps: Float[Array, 'b h w c'] | None = None


class Backbone(nn.Module, kw_only=True):
  """A sequence of stages; a subclass gives `num_stages` and a compact `stage`, and may pool in its own way.

  Ways of sharing connect the stages of several backbones; a frozen backbone is cut between two stages. These fields are
  set from `config.model`; one that a subclass has not does not apply to it.

  Attributes:
    width: features of the first layer or stage.
    stem: the first layers, for large images (`imagenet`) or small ones; `auto` goes by the image.
    norm: see `normalization.make`.
    norm_rows: likewise.
    remat: compute each block again in the backward pass instead of keeping what is inside it.
    dtype: type of the computation; parameters are float32.
  """

  dtype: Any = jnp.float32

  num_stages: ClassVar[Any]  # How many there are: a number, or a property.

  # How parameters are called in torchvision: patterns and what takes their place, in turn, in `layer1_0.conv1.weight`.
  # None of them where torchvision has no such network.
  torchvision_names: ClassVar[tuple[tuple[str, str], ...] | None] = None
  # The same from names that older files have to today's.
  torchvision_old_names: ClassVar[tuple[tuple[str, str], ...]] = ()

  def from_torchvision(self, name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of torchvision's as parameter `name` of this shape: `[h, w, in, out]` and `[in, out]` here."""
    del name, shape
    return tensor.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim, range(tensor.ndim)))

  def stage(self, x: Float[Array, 'b h w c'], index: int, *, train: bool) -> Any:
    """Applies stage `index` to the last one's output; stage 0 takes normalised images `[b, h, w, 3]`."""
    raise NotImplementedError(f'{type(self).__name__} has no method stage(self, x, index, *, train)')

  def apply_stages(self, x: Any, *, first: int = 0, end: int | None = None, train: bool) -> Any:
    """Applies all stages, or those from `first` to before `end`, one after another."""
    for index in range(self.num_stages)[first:end]:
      x = self.stage(x, index, train=train)
    return x

  def pool(self, x: Any) -> Float[Array, 'b f']:
    """The last stage's output as features: the mean over the places of maps or tokens; features stay as they are."""
    return x.mean(axis=tuple(range(1, x.ndim - 1)))

  def maps(self, x: Any) -> Float[Array, 'b h w c']:
    """The last stage's output as a map, for spatial and dense heads."""
    return x

  def represent(self, x: Any, *, spatial: bool = False) -> Representation:
    """The last stage's output as heads read it, with the map if they are `spatial`."""
    return Representation(self.pool(x), self.maps(x) if spatial else None)

  def __call__(self, images: Float[Array, 'b h w 3'], *, train: bool) -> Float[Array, 'b f']:
    return self.pool(self.apply_stages(images, train=train))
