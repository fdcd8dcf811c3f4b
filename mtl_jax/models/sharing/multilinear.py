"""Multilinear relationship networks (Long et al. 2017): hard sharing, and a tensor-normal prior on the heads' weights.

A layer that all heads have in the same shape is a tensor W `[inputs, outputs, tasks]` with the prior `N(0, S_inputs x
S_outputs x S_tasks)`, so `strength / 2 * vec(W)' (S_inputs x S_outputs x S_tasks)^-1 vec(W)` is added to the loss.
Each S is estimated from the weights, `S_m = W_(m) (the other S)^-1 W_(m)' + ridge I`, scaled to a mean diagonal of 1
and held constant in the gradient, as the paper alternates the two. There S goes on from step to step; here one round
starts at identities (tasks, then outputs, then inputs), so that nothing need be remembered. Heads must have a layer
in common: `mlp` heads have their hidden one. Strength (that of a usual weight decay) and ridge are ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, Float

from mtl_jax.errors import ConfigError
from mtl_jax.models.sharing.hard import Hard
from mtl_jax.models.sharing.way import name_of

RIDGE = 0.1  # Of a mean diagonal of 1: without it an S of few samples has no inverse.


class Multilinear(Hard):
  """One representation for all tasks.

  Attributes:
    strength: of the prior.
  """

  strength: float = 1e-4

  def penalty(self, params):
    heads = [params[name_of('head', task)] for task in self.tasks]
    tensors = common_layers(heads)
    if not tensors:
      raise ConfigError('config.model.sharing: multilinear needs heads with a layer of the same shape, such as mlp')
    return self.strength / 2 * sum(mahalanobis(tensor) for tensor in tensors)


def common_layers(heads: Sequence[Mapping[str, Any]]) -> list[Float[Array, '_ _ t']]:
  """Kernels that every head has in the same shape, stacked along a last axis."""
  kernels = [{keystr(path): leaf for path, leaf in tree_leaves_with_path(head) if leaf.ndim == 2} for head in heads]
  found = []
  for path in kernels[0]:
    leaves = [each.get(path) for each in kernels]
    if all(leaf is not None and leaf.shape == kernels[0][path].shape for leaf in leaves):
      found.append(jnp.stack([leaf for leaf in leaves if leaf is not None], axis=-1))
  return found


def mahalanobis(tensor: Float[Array, 'i o t']) -> Float[Array, '']:
  """`vec(W)' (S_inputs x S_outputs x S_tasks)^-1 vec(W)`, the covariances being constants."""
  return (tensor * whitened(tensor, precisions(jax.lax.stop_gradient(tensor)))).sum()


def precisions(tensor: Float[Array, 'i o t']) -> list[Float[Array, '_ _']]:
  """The inverse covariance of each mode, estimated one after another given the ones before."""
  inverses = [jnp.eye(size) for size in tensor.shape]
  for mode in (2, 1, 0):
    flat, white = (jnp.moveaxis(x, mode, 0).reshape(x.shape[mode], -1) for x in (tensor, whitened(tensor, inverses)))
    covariance = jnp.matmul(flat, white.T, precision='highest')
    scale = jnp.maximum(jnp.trace(covariance) / len(covariance), 1e-30)
    inverses[mode] = jnp.linalg.inv(covariance / scale + RIDGE * jnp.eye(len(covariance)))
  return inverses


def whitened(tensor: Float[Array, 'i o t'], inverses: Sequence[Float[Array, '_ _']]) -> Float[Array, 'i o t']:
  """The tensor with a matrix applied along each axis."""
  return jnp.einsum('iot,ij,op,tq->jpq', tensor, *inverses, precision='highest')
