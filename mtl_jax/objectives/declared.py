"""Options of objectives, each declared once: its annotation says what it may be, and the checks follow from that."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from mtl_jax.errors import ConfigError
from mtl_jax.kinds import FLAG, NUMBER, OPTION, TEXT, Kind, choice, either, real, require, several, whole

PLAIN: dict[type, Kind] = {int: whole(-math.inf), float: NUMBER, bool: FLAG, str: TEXT}  # Of options without a range.
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


def kinds_of(make: Callable[..., Any]) -> dict[str, Kind]:
  """The kind of each option of a maker: as annotated, else that of its default, without a range."""
  if hasattr(make, 'options'):
    return make.options  # pyright: ignore[reportFunctionMemberAccess]
  found = {}
  for name, parameter in inspect.signature(make).parameters.items():
    kinds = [each for each in getattr(parameter.annotation, '__metadata__', ()) if isinstance(each, Kind)]
    found[name] = kinds[0] if kinds else PLAIN.get(type(parameter.default), OPTION)
  return found


def declared(make: Maker) -> Maker:
  """A maker of objectives that checks its options, whose kinds are `make.options`, by name."""
  signature, kinds = inspect.signature(make), kinds_of(make)

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


def with_ranges(*makers: Maker) -> dict[str, Maker]:
  """Makers of objectives by name.

  Raises:
    TypeError: for one that is not declared, or has an option without a range: write `rate: AtLeast0` or the like.
  """
  for make in makers:
    if not hasattr(make, 'options'):
      raise TypeError(f'{make.__name__} is not declared; see objectives/declared.py')
    for name, kind in make.options.items():  # pyright: ignore[reportFunctionMemberAccess]
      if kind in (*PLAIN.values(), OPTION):
        raise TypeError(f'{make.__name__}: {name} has no range; annotate it as objectives/declared.py does')
  return {make.__name__: make for make in makers}


def _plain(value: Any) -> Any:
  """A NumPy or JAX number or array, or a list, as Python's numbers."""
  value = value.tolist() if hasattr(value, 'tolist') else value
  return tuple(map(_plain, value)) if isinstance(value, list | tuple) and not hasattr(value, '_fields') else value
