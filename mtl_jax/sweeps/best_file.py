"""Writes a sweep's best configuration as a file to train with."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtl_jax import config as configs

RULES = {
  'metric': 'greatest {metric} on validation (a loss counts as its negative)',
  'gains': "greatest weighted mean of tasks' gains over single-task models, on validation",
  'knee': 'nearest to the best of every goal on validation, each range of the front taken as 1',
}
SEARCH = ('sweep.', 'study.', 'affinity.')


def source(config: ConfigDict, values: Mapping[str, Any], *, said: str) -> str:
  """The text of `best.py`: all fields in which the best differs from the default configuration.

  Args:
    config: of the sweep.
    values: that were best.
    said: the rule by which they are.
  """
  found, default = (configs.flat(one.to_dict()) for one in (configs.load(config, values), configs.get_config()))
  own = {field: value for field, value in found.items() if value != default.get(field) and not field.startswith(SEARCH)}
  lines = '\n'.join(f'  {field!r}: {value!r},' for field, value in own.items())
  return f'''"""The best of a sweep: {said}."""

import mtl_jax

FIELDS = {{
{lines}
}}


def get_config():
  return mtl_jax.get_config('default', FIELDS)
'''
