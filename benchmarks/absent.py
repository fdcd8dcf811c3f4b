"""Stands in for packages that the library imports and a step does not need, where they are not installed.

So the step can be measured on a host that has little but JAX, Flax, optax and Orbax. To be imported before the library.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

# What they are for: images, configurations, the tables and logs of a run, files of weights, shapes in annotations.
# A module inside one stands after it.
PACKAGES = ('PIL', 'clu', 'jaxtyping', 'ml_collections', 'safetensors', 'simplejpeg', 'tensorboardX',
            'tensorboardX.event_file_writer', 'tensorboardX.proto.event_pb2', 'tqdm')  # fmt: skip


class _Annotation(type):
  def __getitem__(cls, _: Any) -> Any:
    return cls

  def __getattr__(cls, name: str) -> Any:
    if name.startswith('__'):
      raise AttributeError(name)
    return cls


class Absent(metaclass=_Annotation):
  """Any name of such a package: good enough for an annotation, and for nothing else."""

  def __init__(self, *_: Any, **__: Any):
    raise ImportError(f'one of {", ".join(PACKAGES)} is needed here, and is not installed')


class _Package(ModuleType):
  def __getattr__(self, name: str) -> Any:
    if name.startswith('__'):
      raise AttributeError(name)
    return Absent


lacking = [package for package in PACKAGES if importlib.util.find_spec(package.partition('.')[0]) is None]
for package in lacking:
  sys.modules[package] = _Package(package)
