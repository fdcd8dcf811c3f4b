"""Soft sharing: a backbone for each task, and a penalty that ties their parameters together.

`l2`: `strength * sum_{i<j} |W_i - W_j|^2` (Duong et al. 2015, "Low resource dependency parsing").
`trace_norm`: `strength * sum over layers |[W_1 ... W_T]|_*`, the sum of the singular values of the matrix whose columns
are a layer's parameters in each task's net (Yang and Hospedales 2017, "Trace norm regularised deep multi-task
learning", last-axis flattening): it draws the nets to combinations of few.

Both papers tune the strength; the default is that of a usual weight decay.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.config import choose
from mtl_jax.models.sharing.separate import Separate
from mtl_jax.models.sharing.way import copy_name


class Soft(Separate):
  """Separate nets whose parameters are tied.

  Attributes:
    tie: `l2` or `trace_norm`.
    strength: of the penalty.
  """

  tie: str = 'l2'
  strength: float = 1e-4

  def penalty(self, params):
    measure = TIES[choose(self.tie, tuple(TIES), field='config.model.sharing_options.tie')]
    nets = [params['shared'][copy_name(task)] for task in self.tasks]
    layers = jax.tree.map(lambda *leaves: measure(jnp.stack([leaf.ravel() for leaf in leaves])), *nets)
    return self.strength * sum(jax.tree.leaves(layers))


def squared_distances(weights: Float[Array, 't d']) -> Float[Array, '']:
  """`sum_{i<j} |W_i - W_j|^2`, which is T times the squared distance from the mean."""
  return len(weights) * jnp.square(weights - weights.mean(0)).sum()


def trace_norm(weights: Float[Array, 't d']) -> Float[Array, '']:
  """The sum of the singular values.

  From the Gram matrix of the T tasks, with the factors held constant: `<W, U V'>` has the value of the norm, and its
  gradient `U V'` also where singular values coincide, where that of an eigendecomposition does not exist.
  """
  gram = jnp.matmul(weights, weights.T, precision='highest')
  values, vectors = jnp.linalg.eigh(gram)
  floor = 1e-6 * jnp.maximum(values[-1], 1e-30)  # Float32 resolves no smaller eigenvalue of the Gram matrix.
  inverse_root = jnp.matmul(vectors / jnp.sqrt(jnp.maximum(values, floor)), vectors.T, precision='highest')
  return (weights * jax.lax.stop_gradient(jnp.matmul(inverse_root, weights, precision='highest'))).sum()


TIES = {'l2': squared_distances, 'trace_norm': trace_norm}
