"""Learning-rate schedules and the optax chain that a config asks for."""

from typing import Any

import jax
import optax
from jaxtyping import ArrayLike
from ml_collections import ConfigDict


def schedule(config: ConfigDict, *, peak: ArrayLike | None = None) -> optax.Schedule:
  """Learning rate by step: linear warm-up from zero to the peak, then cosine to zero or constant.

  `peak`, which may be traced, takes the place of the config's learning rate.
  """
  options, steps = config.optimizer, config.train.steps
  rate: Any = options.learning_rate if peak is None else peak
  warmup = min(options.warmup_steps, steps - 1)
  if options.schedule == 'cosine':
    after = optax.cosine_decay_schedule(rate, max(steps - warmup, 1))
  else:
    after = optax.constant_schedule(rate)
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def from_config(config: ConfigDict, *, learning_rate: ArrayLike | None = None) -> optax.GradientTransformation:
  """Clipping, then the optimizer with its schedule (see there for `learning_rate`); kernels alone decay."""
  options = config.optimizer
  rate = schedule(config, peak=learning_rate)
  chain = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
  if options.name == 'adamw':
    return optax.chain(*chain, optax.adamw(rate, weight_decay=options.weight_decay, mask=is_kernel))
  if options.weight_decay:
    chain.append(optax.add_decayed_weights(options.weight_decay, mask=is_kernel))
  if options.name == 'adam':
    return optax.chain(*chain, optax.adam(rate))
  return optax.chain(*chain, optax.sgd(rate, momentum=options.momentum, nesterov=options.momentum > 0))


def is_kernel(params: optax.Params) -> optax.Params:
  """True for matrices and convolution kernels, False for biases, scales, and what mixes or chooses between nets."""

  def decays(path: tuple, leaf: jax.Array) -> bool:
    return leaf.ndim > 1 and getattr(path[-1] if path else None, 'key', None) not in NOT_KERNELS

  return jax.tree_util.tree_map_with_path(decays, params)


# By name, since copies side by side, and the ways of sharing, have some with several axes.
NOT_KERNELS = ('bias', 'scale', 'unit', 'logits')
