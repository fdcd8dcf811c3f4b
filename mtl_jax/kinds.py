"""Kinds of values of fields and options: parses and checks them; errors name the field."""

import contextlib
import csv
import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtl_jax.errors import ConfigError

MAX_SHOWN = 200  # Letters of a wrong value in an error.


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of values.

  Attributes:
    words: what it allows, to complete `must be`.
    allows: True for a value of this kind and in its range.
    read: text of the command line to a value; ValueError or KeyError where it stands for none.
    convert: a value to the same one as this kind has it, as 1 to 1.0.
    choices: all that it allows, where they are few names.
    bounds: the least and the greatest, of numbers.
  """

  words: str
  allows: Callable[[Any], bool]
  read: Callable[[str], Any] = str
  convert: Callable[[Any], Any] = lambda value: value
  choices: tuple[str, ...] = ()
  bounds: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Open:
  """A group whose fields, all of one kind, are not known beforehand."""

  each: Kind


class Partial(dict):
  """A group of fields and groups, of which a configuration may have any."""


def real(least: float, most: float = math.inf, *, above: bool = False) -> Kind:
  """A finite number in a range, whole or not; `above` excludes the least."""

  def allows(value: Any) -> bool:
    is_finite = type(value) in (int, float) and abs(value) < math.inf
    return is_finite and least <= value <= most and not (above and value == least)

  words = f'a finite number {"above" if above else "of at least"} {least:g}' if least > -math.inf else 'a finite number'
  words = words if most == math.inf else f'a number from {least:g} to {most:g}'
  return Kind(words, allows, float, lambda value: float(value) if type(value) is int else value, bounds=(least, most))


def whole(least: float, most: float = 2**31 - 1) -> Kind:
  """A whole number in a range, by default of 32 bits, as on a device."""

  def convert(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value

  words = 'a whole number' + ('' if least == -math.inf else f' from {least} to {most}')
  return Kind(words, lambda value: type(value) is int and least <= value <= most, int, convert, bounds=(least, most))


def text(pattern: str, words: str) -> Kind:
  """Text of a pattern, which the words describe."""
  return Kind(words, lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None)


def choice(*names: str) -> Kind:
  """One of some names."""
  return Kind(f'{", ".join(names[:-1])} or {names[-1]}', lambda value: value in names, choices=names)


def several(each: Kind, words: str) -> Kind:
  """A tuple of values of one kind."""

  def read(text: str) -> tuple[Any, ...]:
    quoted = r'\s*[\'"].*[\'"]\s*,?\s*'  # May hold brackets, as names of folders do.
    bracketed = re.fullmatch(rf'\(([^()]*|{quoted})\)|\[([^\[\]]*|{quoted})\]', text.strip(), re.DOTALL)
    inner = (bracketed[1] or bracketed[2] or '') if bracketed else text
    quote = min(re.findall('[\'"]', inner), key=inner.index, default='"')
    try:
      [items] = csv.reader([inner.replace('\n', ' ')], quotechar=quote, skipinitialspace=True)
    except csv.Error as error:
      raise ValueError(str(error)) from error
    return tuple(each.read(item.strip()) for item in items if item.strip())

  return Kind(
    f'{each.words if each.choices else words} with commas between',
    lambda value: isinstance(value, tuple) and all(map(each.allows, value)),
    read,
    lambda value: tuple(map(each.convert, value)) if isinstance(value, tuple) else value,
  )


def either(one: Kind, other: Kind) -> Kind:
  """A value of one of two kinds, read as the second."""
  return Kind(
    f'{one.words} or {other.words}',
    lambda value: one.allows(value) or other.allows(value),
    other.read,
    lambda value: other.convert(one.convert(value)),
  )


def is_on(number: Any) -> bool:
  """True for a number that is not 0, and for one that a compiled program takes as an argument."""
  return not isinstance(number, int | float) or bool(number)


def _read_option(text: str) -> Any:
  """A number, several with commas between, true, false, or else the text itself."""
  for kind in (whole(-math.inf), NUMBER, several(NUMBER, 'numbers'), FLAG):
    with contextlib.suppress(ValueError, KeyError):
      if kind.allows(value := kind.read(text)):
        return value
  return text


FLAGS = {'true': True, '1': True, 'false': False, '0': False}
FLAG = Kind('true or false', lambda value: isinstance(value, bool), lambda text: FLAGS[text.lower()])
NUMBER = real(-math.inf)
TEXT = text('.*', 'text')
PART = text('.*', 'a name, or FILE.py:NAME')  # See `parts`.
PARTS = several(PART, 'names')
NAMES = several(TEXT, 'names')
# Values of another field: see studies/space.py. Numbers, and tuples of values, become text where they are set.
VALUES = dataclasses.replace(
  TEXT,
  words='values with commas between, range(A, B) or log(A, B)',
  convert=lambda value: value if isinstance(value, str) else str(value).strip('()').removesuffix(','),
)
# Names in one text; a tuple of them in a file becomes that when it is loaded.
TASKS = dataclasses.replace(
  either(TEXT, NAMES),
  words=NAMES.words,
  read=lambda text: ','.join(NAMES.read(text)),
  convert=lambda value: ','.join(value) if NAMES.allows(value) else value,
)
# Its owner, a method or a way of sharing, says what kind it is: see `options`.
OPTION = Kind(
  'a number, true or false, or a name', lambda value: isinstance(value, bool | int | float | str | tuple), _read_option
)


def shown(value: Any) -> str:
  """A wrong value as errors show it, cut where it is long."""
  try:
    text = ' '.join(repr(value).split())
  except ValueError:  # Python writes no whole number of more than 4,300 digits.
    return 'a number of thousands of digits'
  return text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}...'


def choose(value: Any, choices: Sequence[str], *, field: str) -> str:
  """The value if it is one of the choices; else a ConfigError that names the field and the nearest choice."""
  if value in choices:
    return value
  raise ConfigError(f'{field}: no choice {shown(value)}; {nearest(str(value), choices)}')


def nearest(value: str, known: Sequence[str], *, cutoff: float = 0.6) -> str:
  """The end of an error message: the nearest known name, or all of them."""
  near = difflib.get_close_matches(value, known, n=1, cutoff=cutoff)
  return f'did you mean {near[0]!r}?' if near else f'choose from {", ".join(one or "(empty)" for one in known)}'


def require(value: Any, kind: Kind, *, field: str) -> None:
  """Raises ConfigError, which names the field, for a value that is not of the kind."""
  if kind.choices and isinstance(value, str):
    choose(value, kind.choices, field=field)
  elif not kind.allows(value):
    raise ConfigError(f'{field} must be {kind.words}, not {shown(value)}')


def options(given: Mapping[str, Any], known: Mapping[str, Kind], *, field: str, owner: str) -> dict[str, Any]:
  """Options as their owner, a method or a way of sharing, has them.

  Raises:
    ConfigError: for one that there is not, or that is of another kind.
  """
  found = {}
  for option, value in given.items():
    kind = option_kind(option, known, field=field, owner=owner)
    found[option] = kind.convert(value)
    require(found[option], kind, field=f'{field}.{option}')
  return found


def option_kind(option: str, known: Mapping[str, Kind], *, field: str, owner: str) -> Kind:
  """The kind of an option; ConfigError where its owner has no such option."""
  if not known:
    raise ConfigError(f'{field}.{option}: {owner!r} has no options')
  return known[choose(option, tuple(known), field=f'{field} of {owner!r}')]
