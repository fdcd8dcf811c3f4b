"""The interface of ways of sharing: a module from images to the heads' inputs, and perhaps a penalty on weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.errors import ConfigError
from mtl_jax.models.backbone import Backbone, Representation


class Sharing(nn.Module):
  """A way of sharing; the fields that a subclass adds are its options, whole numbers or real ones of at least 0.

  Backbones lie under names that begin with `backbone`, each with the parameters of those stages it runs. Parameters
  that mix nets or choose between them are named `unit`, `logits` or `scale`: those do not decay (see optimizer.py).

  Attributes:
    backbone: the network, of which there may be copies.
    tasks: names of the tasks.
    spatial: whether some head reads maps.
  """

  backbone: Backbone
  tasks: tuple[str, ...]
  spatial: bool = False

  def __call__(self, images: Float[Array, 'b ...'], *, train: bool) -> Representation | Mapping[str, Representation]:
    """Encodes images to the input of the heads: one representation for all tasks, or one for each by name."""
    raise NotImplementedError

  def penalty(self, params: Mapping[str, Any]) -> Float[Array, ''] | None:
    """The penalty on all parameters that is added to the total loss, by those ways that have a prior on them."""
    del params
    return None

  def copied(self, name: str) -> Backbone:
    """A backbone with parameters of its own. Called where the module computes."""
    return self.backbone.copy(name=copy_name(name))

  def trunk(self, images: Float[Array, 'b ...'], *, last: int, option: str, train: bool) -> Any:
    """Applies the stages before the last so many to images, in a backbone that all tasks share.

    Raises:
      ConfigError: where there are not so many stages; `option` is to blame.
    """
    num_stages = self.backbone.num_stages
    if last > num_stages:
      raise ConfigError(f'config.model.sharing_options.{option} is {last}, but the backbone has {num_stages} stages')
    return self.backbone.apply_stages(images, end=num_stages - last, train=train)


def name_of(part: str, owner: str) -> str:
  """Name of a task's or an expert's own part among the parameters: its gate, its copy of the backbone."""
  return f'{part}_{owner.replace("/", "_")}'


def copy_name(name: str) -> str:
  """Name of a task's or an expert's copy of the backbone among the parameters."""
  return name_of('backbone', name)


def pooled(x: Float[Array, 'b ... c']) -> Float[Array, 'b c']:
  """The mean over places: of maps `[b, h, w, c]`, tokens `[b, n, c]` or features `[b, c]`, for gates to read."""
  return x.astype(jnp.float32).mean(axis=tuple(range(1, x.ndim - 1)))


def mixed(weights: Float[Array, '... n'], parts: Sequence[Any]) -> Any:
  """`sum_i weights[..., i] parts[i]`, leaf by leaf, with one set of weights for all examples or one for each."""

  def of_leaf(*leaves: Array) -> Array:
    places = [1] * (leaves[0].ndim - (weights.ndim - 1))
    each = [weights[..., i].reshape(*weights.shape[:-1], *places).astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return sum((w * leaf for w, leaf in zip(each[1:], leaves[1:], strict=True)), each[0] * leaves[0])

  return jax.tree.map(of_leaf, *parts)
