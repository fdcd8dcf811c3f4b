"""Sluice networks (Ruder et al. 2019): task nets that share halves of their layers, and skip connections to the heads.

After every stage the channels of each task's net fall into two halves, and all halves are mixed:
`x_{t,i} <- sum_{u,j} alpha[t, i, u, j] x_{u,j}`. A head reads a mixture of all depths:
`sum_s beta[t, s] P_s pooled(x_{t,s})`; `P_s` is linear, since stages of an image network differ in width (in the paper
they do not), and the last stage's is the identity. The halves of each layer's kernel are kept apart by
`orthogonality * sum |W_1' W_2|^2`. Maps, for heads that read them, are the last stage's.

Alpha begins as in cross-stitch networks, beta at the last stage. The default of `orthogonality` is ours.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.errors import ConfigError
from mtl_jax.models.backbone import Representation
from mtl_jax.models.sharing.cross_stitch import own_and_others
from mtl_jax.models.sharing.way import Sharing, copy_name, mixed, name_of, pooled


class Sluice(Sharing):
  """A representation for each task.

  Attributes:
    own: what a task's own half weighs in its mixture at the beginning; 1 begins as separate nets.
    orthogonality: weight of the penalty on kernels.
  """

  own: float = 0.9
  orthogonality: float = 1e-4

  @nn.compact
  def __call__(self, images, *, train: bool) -> dict[str, Representation]:
    nets = [self.copied(task) for task in self.tasks]
    each, depths = [images for _ in nets], [[] for _ in nets]
    for index in range(self.backbone.num_stages):
      each = [net.stage(x, index, train=train) for net, x in zip(nets, each, strict=True)]
      each = Halves(self.own, name=f'halves_{index}')(each)
      for depth, x in zip(depths, each, strict=True):
        depth.append(pooled(x))
    result = {}
    for task, net, x, depth in zip(self.tasks, nets, each, depths, strict=True):
      read = net.represent(x, spatial=self.spatial)
      skips = Skips(name=name_of('skips', task))
      result[task] = read._replace(features=skips(read.features, depth[:-1]))
    return result

  def penalty(self, params):
    nets = [params['shared'][copy_name(task)] for task in self.tasks]
    return self.orthogonality * sum(overlap(leaf) for leaf in jax.tree.leaves(nets))


class Halves(nn.Module):
  """Mixes the halves of the channels of all tasks' nets."""

  own: float

  @nn.compact
  def __call__(self, each: list[Float[Array, 'b ... c']]) -> list[Float[Array, 'b ... c']]:
    if each[0].shape[-1] % 2:
      raise ConfigError(f"config.model.sharing: sluice halves channels, and a stage's {each[0].shape[-1]} are odd")
    halves = [half for x in each for half in jnp.split(x, 2, axis=-1)]
    unit = self.param('unit', lambda _: own_and_others(len(halves), self.own))
    halves = [mixed(row, halves) for row in unit]
    return [jnp.concatenate(halves[i : i + 2], axis=-1) for i in range(0, len(halves), 2)]


class Skips(nn.Module):
  """Mixes a task's depths into what its head reads."""

  @nn.compact
  def __call__(self, features: Float[Array, 'b f'], earlier: list[Float[Array, 'b _']]) -> Float[Array, 'b f']:
    unit = self.param('unit', lambda _: jnp.zeros(len(earlier) + 1).at[-1].set(1.0))
    size, dtype = features.shape[-1], features.dtype
    each = [nn.Dense(size, dtype=dtype, use_bias=False, name=f'project_{i}')(x) for i, x in enumerate(earlier)]
    return mixed(unit, [*each, features])


def overlap(leaf: Array) -> Float[Array, ''] | float:
  """`|W_1' W_2|^2` of the halves of a kernel's columns; 0 for what is no kernel."""
  if leaf.ndim < 2 or leaf.shape[-1] % 2:
    return 0.0
  first, second = jnp.split(leaf.reshape(-1, leaf.shape[-1]), 2, axis=-1)
  return jnp.square(first.T @ second).sum()
