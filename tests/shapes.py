"""The type checker that conftest.py lays over packages: the shapes and types of arrays, as annotations say."""

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable) -> Callable:
  """A function that is called with what its annotations of arrays say, or raises.

  Other annotations are pyright's, for tests also hand in what is to be refused. A constructor may get anything, for
  JAX makes nodes of trees of placeholders.
  """
  known = {name: kind for name, kind in function.__annotations__.items() if _has_shape(kind)}
  function.__annotations__ = {} if function.__name__ == '__init__' else known
  return beartype(function)


def _has_shape(kind: Any) -> bool:
  is_array = isinstance(kind, type) and issubclass(kind, AbstractArray)
  return is_array or any(map(_has_shape, typing.get_args(kind)))
