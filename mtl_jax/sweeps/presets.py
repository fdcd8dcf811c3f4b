"""Common sweeps, as fields of a configuration."""

import jax
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.errors import ConfigError
from mtl_jax.studies.arms import RATE


def learning_rate(config: ConfigDict) -> dict[str, object]:
  """A range test (Smith 2017), but each of 25 rates from 1e-6 to 1 has a run of its own, and so a whole curve."""
  del config
  schedule = {'optimizer.schedule': 'constant', 'optimizer.warmup_steps': 0}
  return {**schedule, f'sweep.space.{RATE}': 'log(1e-6,1,25)', 'sweep.sampler': 'grid'}


def batch_size(config: ConfigDict) -> dict[str, object]:
  """Batch sizes from an eighth of the configured one to eight times it, over as many images; the knee is the best."""
  devices = jax.device_count()
  sizes = sorted(
    {max(devices, round(config.train.batch_size * 2.0**power) // devices * devices) for power in range(-3, 4)}
  )
  chosen = {'sweep.match': 'images', 'sweep.goals': ('score', 'speed'), 'sweep.best': 'knee', 'sweep.sampler': 'grid'}
  return {**chosen, 'sweep.space.train.batch_size': ','.join(map(str, sizes))}


PRESETS = {'learning_rate': learning_rate, 'batch_size': batch_size}


def applied(config: ConfigDict) -> ConfigDict:
  """The configuration with the fields of its preset set, if it names one.

  Raises:
    ConfigError: for a field of the sweep that it would set to another value than the user has.
  """
  name = config.sweep.preset
  if name not in PRESETS:
    return config
  found = configs.load(config, PRESETS[name](config))
  given, own, default = (configs.flat(one.sweep.to_dict()) for one in (config, found, configs.get_config()))
  for field, value in own.items():
    if given.get(field) not in (value, default.get(field)):
      raise ConfigError(f'config.sweep.preset={name} sets config.sweep.{field}={value}; leave out yours, or the preset')
  return found
