"""Kinds of tasks of the user's own, from the files that a configuration's `plugins` name."""

from ml_collections import ConfigDict

from mtl_jax import tasks
from mtl_jax.config import parts
from mtl_jax.errors import ConfigError
from mtl_jax.tasks.task import Task


def register(config: ConfigDict) -> None:
  """Makes the kinds of tasks of all plug-ins known: prepared sets, runs and reports may then have tasks of them.

  Raises:
    ConfigError: for a file that is missing or fails, or has no kind of task.
  """
  for name in config.plugins:
    for kind in parts.classes(name, Task, field='config.plugins'):
      try:
        tasks.register(kind)
      except ConfigError as error:
        raise ConfigError(f'config.plugins: {name}: {error}') from error
