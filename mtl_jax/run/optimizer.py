"""Learning-rate schedules and the optax chain that a config asks for."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from mtl_jax.config import choose, parts
from mtl_jax.errors import ConfigError, one_line
from mtl_jax.kinds import is_on

FIELD, OPTIONS = 'config.optimizer.name', 'config.optimizer.options'


def schedule(settings: ConfigDict, *, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up from zero to the peak, which may be traced, then by `settings.schedule`.

  `warmup_stable_decay` (Hu et al. 2024, https://arxiv.org/abs/2404.06395) stays at the peak, and falls linearly to zero
  in the last `decay_steps` steps.

  Args:
    settings: the config's `optimizer`.
    steps: of the whole run.
  """
  rate: Any = settings.learning_rate
  warmup = min(settings.warmup_steps, steps - 1)
  parts, bounds = [optax.constant_schedule(rate)], []
  if settings.schedule == 'cosine':
    parts = [optax.cosine_decay_schedule(rate, max(steps - warmup, 1))]
  elif settings.schedule == 'warmup_stable_decay':
    falls = _decay_start(settings, steps)
    parts, bounds = [*parts, optax.linear_schedule(rate, 0.0, steps - falls)], [falls]
  if warmup:
    parts, bounds = [optax.linear_schedule(0.0, rate, warmup), *parts], [warmup, *bounds]
  return optax.join_schedules(parts, bounds) if bounds else parts[0]


def steps_before_decay(settings: ConfigDict, *, steps: int) -> int:
  """Steps, from the start of a run of `steps`, whose learning rates do not depend on that number.

  A longer run takes them alike, so it may go on from there. `settings` is the config's `optimizer`.
  """
  if settings.schedule == 'cosine' or settings.warmup_steps >= steps:
    return 0
  return steps if settings.schedule == 'constant' else _decay_start(settings, steps)


def _decay_start(settings: ConfigDict, steps: int) -> int:
  """The step after which `warmup_stable_decay` falls."""
  decay = settings.decay_steps or -(-steps // 5)
  return max(steps - decay, min(settings.warmup_steps, steps - 1))


def from_config(settings: ConfigDict, *, steps: int) -> optax.GradientTransformation:
  """The optimizer: clipping, then the update with its schedule; only kernels decay.

  Learning rate, decay, momentum and the norm to clip at may be traced, and are then above 0.

  Args:
    settings: the config's `optimizer`.
    steps: of the whole run.

  Raises:
    ConfigError: for an unknown optimizer, or an option that it has not.
  """
  make = parts.find(settings.name, optimizers(), field=FIELD)
  known = inspect.signature(make).parameters
  given: dict[str, Any] = dict(settings.options)
  if settings.name == 'sgd':
    given = {'momentum': settings.momentum, 'nesterov': is_on(settings.momentum)} | given
  for option in given:
    choose(option, [name for name in known if name != 'learning_rate'], field=f'{OPTIONS} of {settings.name!r}')
  chain = [optax.clip_by_global_norm(settings.clip_norm)] if is_on(settings.clip_norm) else []
  if {'weight_decay', 'mask'} <= known.keys():
    given |= {'weight_decay': settings.weight_decay, 'mask': is_kernel}
  elif is_on(settings.weight_decay):
    chain.append(optax.add_decayed_weights(settings.weight_decay, mask=is_kernel))
  try:
    with parts.wrap_errors(settings.name, field=FIELD):
      made = make(learning_rate=schedule(settings, steps=steps), **given)
  except (TypeError, ValueError) as error:
    raise ConfigError(f'{OPTIONS} of {settings.name!r}: {one_line(error)}') from error
  if not isinstance(made, optax.GradientTransformation):
    raise ConfigError(f'{FIELD}: {settings.name} gave {type(made).__name__}, not an optax.GradientTransformation')
  return optax.chain(*chain, made)


def optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
  """Optax's optimizers by name: those that take a schedule, and update by gradients and parameters alone."""
  found = inspect.getmembers(optax, inspect.isfunction)
  return {
    name: make
    for name, make in found
    if 'learning_rate' in inspect.signature(make).parameters
    and not name.startswith(('_', 'scale_by'))
    and name not in OTHER
  }


OTHER = ('lbfgs', 'noisy_sgd', 'optimistic_adam', 'rprop', 'sm3')  # They need more, or take no schedule.


def is_kernel(params: optax.Params) -> optax.Params:
  """True for matrices and convolution kernels, False for biases, scales, and what mixes or chooses between nets."""

  def decays(path: tuple, leaf: jax.Array) -> bool:
    return leaf.ndim > 1 and getattr(path[-1] if path else None, 'key', None) not in NOT_KERNELS

  return jax.tree_util.tree_map_with_path(decays, params)


# By name, since copies side by side, and the ways of sharing, have some with several axes.
NOT_KERNELS = ('bias', 'scale', 'unit', 'logits')
