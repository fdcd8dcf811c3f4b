"""Declares an objective's options by annotations, by which their values are checked.

Numbers may be traced. An objective made inside a function that JAX transforms takes them as arguments, so that one
compiled program serves all their values; their ranges are then the caller's to check:

    @jax.jit
    def combined(c, gradients, losses):
      objective = objectives.cagrad(c=c)
      return objective.update(gradients, objective.init(len(losses)), losses=losses)[0]

Names, flags and the lengths of loops are structural: each value of those is a program of its own. `traceable` names
the others. A number given to Python may be rounded in another place than a traced one: the last bits may differ.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from jax.core import Tracer

from mtl_jax.errors import ConfigError
from mtl_jax.kinds import FLAG, NUMBER, OPTION, TEXT, Kind, choice, either, option_kind, real, require, several, whole

PLAIN: dict[type, Kind] = {int: whole(-math.inf), float: NUMBER, bool: FLAG, str: TEXT}  # Of options without a range.
Maker = TypeVar('Maker', bound=Callable[..., Any])


class Numeric(Kind):
  """Numbers that may be traced."""


def numeric(kind: Kind) -> Numeric:
  """A kind of numbers, or of several, with traced ones among them."""

  def allows(value: Any) -> bool:
    return isinstance(value, Tracer) or kind.allows(value)

  return Numeric(kind.words, allows, kind.read, kind.convert, bounds=kind.bounds)


def number(least: float, most: float = math.inf) -> Numeric:
  """A number of a range, which may be traced."""
  return numeric(real(least, most))


def _for_each(kind: Kind) -> Kind:
  each = numeric(several(kind, ''))
  return dataclasses.replace(each, words=f'one number for each loss, in their order, each {kind.words}')


def _not_all_0(value: Any) -> bool:
  return not isinstance(value, tuple) or any(isinstance(one, Tracer) or one for one in value)


_FACTORS = _for_each(number(0))
_FACTORS = dataclasses.replace(_FACTORS, allows=lambda value, known=_FACTORS.allows: value is None or known(value))
_DIRECTION = dataclasses.replace(
  _FACTORS,
  words=f'{_FACTORS.words}, and not all 0',
  allows=lambda value: _FACTORS.allows(value) and _not_all_0(value),
)

AtLeast0 = Annotated[float, number(0)]
Temperature = Annotated[float, number(1e-6)]  # Whatever is divided by it stays finite.
Share = Annotated[float, number(0, 1)]
Exponent = Annotated[float, number(0, 10)]
Period = Annotated[int, numeric(whole(1))]
PeriodOr0 = Annotated[int, numeric(whole(0))]
Length = Annotated[int, whole(1)]  # Of a loop or of a shape: structural.
Factors = Annotated[Sequence[float] | None, _FACTORS]
Direction = Annotated[Sequence[float] | None, _DIRECTION]
NumberOrEach = Annotated[float | Sequence[float], numeric(either(NUMBER, _for_each(number(-math.inf))))]
ShareOrEach = Annotated[float | Sequence[float], numeric(either(real(0, 1), _for_each(number(0, 1))))]
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


def traceable(make: Callable[..., Any]) -> tuple[str, ...]:
  """The options of a maker that may be traced; all others are structural."""
  return tuple(name for name, kind in kinds_of(make).items() if isinstance(kind, Numeric))


def declared(make: Maker) -> Maker:
  """A maker of objectives that checks its options, whose kinds are `make.options`, by name."""
  signature, kinds = inspect.signature(make), kinds_of(make)

  @functools.wraps(make)
  def checked(*args: Any, **options: Any) -> Any:
    for name in options:
      option_kind(name, kinds, field='options', owner=make.__name__)
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
  if isinstance(value, Tracer):
    return value
  value = value.tolist() if hasattr(value, 'tolist') else value
  return tuple(map(_plain, value)) if isinstance(value, list | tuple) and not hasattr(value, '_fields') else value
