"""Options of objectives, each declared once: its annotation says what it may be, and the checks follow from that."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from mtl_jax.errors import ConfigError
from mtl_jax.kinds import NUMBER, Kind, choice, either, real, require, several, whole

Maker = TypeVar('Maker', bound=Callable[..., Any])


def _none_or(kind: Kind) -> Kind:
  return dataclasses.replace(kind, allows=lambda value: value is None or kind.allows(value))


def _for_each(kind: Kind) -> Kind:
  return several(kind, 'one number for each loss,')


_FACTORS = _for_each(real(0))
_DIRECTION = Kind(
  'numbers of 0 or more, not all 0, one for each loss, with commas between',
  lambda value: _FACTORS.allows(value) and any(value),
  _FACTORS.read,
  _FACTORS.convert,
)

AtLeast0 = Annotated[float, real(0)]
Temperature = Annotated[float, real(1e-6)]  # Whatever is divided by it stays finite.
Share = Annotated[float, real(0, 1)]
Exponent = Annotated[float, real(0, 10)]
Count = Annotated[int, whole(1)]
CountOr0 = Annotated[int, whole(0)]
Factors = Annotated[Sequence[float] | None, _none_or(_FACTORS)]
Direction = Annotated[Sequence[float] | None, _none_or(_DIRECTION)]
NumberOrEach = Annotated[float | Sequence[float], either(NUMBER, _for_each(NUMBER))]
ShareOrEach = Annotated[float | Sequence[float], either(real(0, 1), _for_each(real(0, 1)))]
Point = Annotated[str, choice('parameters', 'representation')]


def declared(make: Maker) -> Maker:
  """A maker of objectives that checks its options; `make.options` holds the kind of each, by name.

  Raises:
    TypeError: on definition, for an option without a kind: write `rate: AtLeast0`, or `Annotated[float, real(0, 5)]`.
  """
  signature, kinds = inspect.signature(make), {}
  for name, parameter in signature.parameters.items():
    found = [each for each in getattr(parameter.annotation, '__metadata__', ()) if isinstance(each, Kind)]
    if not found:
      raise TypeError(f'{make.__name__}: {name} has no range; annotate it as objectives/declared.py says')
    kinds[name] = found[0]

  @functools.wraps(make)
  def checked(*args: Any, **options: Any) -> Any:
    given = signature.bind(*args, **options).arguments
    for name, value in given.items():
      given[name] = kinds[name].convert(_plain(value))
      try:
        require(given[name], kinds[name], field=name)
      except ConfigError as error:
        raise ConfigError(f'{make.__name__}: {error}') from None
    return make(**given)

  checked.options = kinds  # pyright: ignore[reportAttributeAccessIssue]
  return checked  # pyright: ignore[reportReturnType]


def _plain(value: Any) -> Any:
  """A NumPy or JAX number or array, or a list, as Python's numbers."""
  value = value.tolist() if hasattr(value, 'tolist') else value
  return tuple(map(_plain, value)) if isinstance(value, list | tuple) and not hasattr(value, '_fields') else value
