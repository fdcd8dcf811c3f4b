"""Multi-task face models in JAX: joint and single-task training, and an honest comparison of the two."""

import importlib
from typing import TYPE_CHECKING, Any

from mtl_jax.platform import xla

if TYPE_CHECKING:
  from mtl_jax import configs, objectives
  from mtl_jax.api import (
    Run,
    affinity,
    evaluate,
    export,
    get_config,
    load,
    prepare,
    report,
    study,
    sweep,
    train,
  )
  from mtl_jax.errors import UserError
  from mtl_jax.evaluation.model import Model

__version__ = '0.2.0'

__all__ = [
  'Model',
  'Run',
  'UserError',
  'affinity',
  'configs',
  'evaluate',
  'export',
  'get_config',
  'load',
  'objectives',
  'prepare',
  'report',
  'study',
  'sweep',
  'train',
]

xla.set_flags()  # Before JAX starts: see there.

_MODULES = {'Model': 'mtl_jax.evaluation.model', 'UserError': 'mtl_jax.errors'}  # Of what is not in `api`.


def __getattr__(name: str) -> Any:
  """Imports what is asked for: JAX takes a second."""
  if name in ('configs', 'objectives'):
    return importlib.import_module(f'mtl_jax.{name}')
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_MODULES.get(name, 'mtl_jax.api')), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
