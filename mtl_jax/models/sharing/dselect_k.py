"""DSelect-k (Hazimeh et al. 2021): MMoE with gates that learn, differentiably, to select at most k experts.

A selector is a binary code `z` of log2(experts) numbers, each put through the smooth step `S(z)`, a cubic that is 0
up to `-gamma/2` and 1 from `gamma/2` on: `r(z)_i = prod_b (S(z_b) if bit b of i else 1 - S(z_b))`. A gate is
`sum_{j<k} softmax(w)_j r(z_j)`. This is the paper's static gate: z and w are parameters of the task, the same for all
examples. `entropy * sum of the entropies of r` is added to the loss, so that selectors end at one expert each.
Experts that no task selects are still computed. Gamma is 1 and z begins near 0, as in the authors' code; the default
of `entropy` is ours.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.errors import ConfigError
from mtl_jax.models.sharing.mmoe import Mmoe
from mtl_jax.models.sharing.way import name_of

GAMMA = 1.0


class DselectK(Mmoe):
  """A representation for each task.

  Attributes:
    experts: how many there are, a power of 2.
    k: how many experts a task uses at most.
    entropy: weight of the selectors' entropies.
  """

  experts: int = 4
  k: int = 2
  entropy: float = 1e-2

  def gate(self, task, x):
    del x
    bits = self.experts.bit_length() - 1
    if self.experts != 2**bits:
      raise ConfigError(f'config.model.sharing_options.experts must be a power of 2 for dselect_k, not {self.experts}')
    return Selector(self.k, bits, name=name_of('gate', task))()

  def penalty(self, params):
    gates = [params['shared'][name_of('gate', task)] for task in self.tasks]
    each = [selections(gate['logits']) for gate in gates]
    return self.entropy * -sum((r * jnp.log(r + 1e-6)).sum() for r in each)


class Selector(nn.Module):
  """One task's static gate: weights of 2**bits experts."""

  k: int
  bits: int

  @nn.compact
  def __call__(self) -> Float[Array, ' e']:
    codes = self.param('logits', nn.initializers.uniform(GAMMA / 50), (self.k, self.bits))
    weights = self.param('scale', nn.initializers.normal(0.05), (self.k,))
    return nn.softmax(weights) @ selections(codes)


def selections(codes: Float[Array, 'k bits']) -> Float[Array, 'k e']:
  """Each selector's weights of the experts: positive, and their sum is 1."""
  step = smooth_step(codes)[:, None]
  bit = (jnp.arange(2 ** codes.shape[1])[:, None] >> jnp.arange(codes.shape[1])) & 1
  return jnp.where(bit == 1, step, 1 - step).prod(-1)


def smooth_step(t: Float[Array, '...']) -> Float[Array, '...']:
  """0 up to -GAMMA/2, 1 from GAMMA/2 on, and between them the cubic that joins them smoothly."""
  t = jnp.clip(t, -GAMMA / 2, GAMMA / 2)
  return -2 / GAMMA**3 * t**3 + 3 / (2 * GAMMA) * t + 0.5
