"""The search space: fields of a configuration with the values that each may take, and loss weights on the simplex.

The values of a field are written as text: `0.1,0.3,1` (those values; of a field that holds several, `(64),(64,32)`),
`range(0, 1)` or `log(3e-4, 1e-2)` (all between, evenly in themselves or in their logarithms), or with the number of
points that a grid has of them, `log(3e-4, 1e-2, 5)`. Numbers between are rounded to four digits, as a file shows them.
"""

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config import parts
from mtl_jax.errors import ConfigError, UserError
from mtl_jax.kinds import Kind, is_on, require
from mtl_jax.objectives import OBJECTIVES
from mtl_jax.objectives.declared import kinds_of, traceable

Values = dict[str, Any]  # By field.
COUPLINGS = ('distribution', 'soft_co_annotation', 'co_annotation')
# Fields that may be arguments where they are above 0; weights and options of objectives may be, too.
ARGUMENTS = (
  *(f'optimizer.{name}' for name in ('learning_rate', 'weight_decay', 'clip_norm', 'momentum', 'ema_decay')),
  *(f'objective.matching.{name}' for name in COUPLINGS),
)
SAME_FOR_ALL = ('tasks', 'plugins', 'train.seed', 'data.dir', 'data.dirs')
WITHOUT_EFFECT = ('eval.patience', 'eval.batch_size', 'train.log_every_steps', *configs.RESUMABLE)  # On a replica.
WEIGHTS, OPTIONS = 'objective.weights.', 'objective.options.'
END = 0.05  # Of a span; what lies in this share of it is at its end.


@dataclasses.dataclass(frozen=True)
class Axis:
  """A field and its values.

  Attributes:
    choices: the values, where they are listed; else all numbers from `low` to `high`.
    log: these are even in their logarithms.
    points: of them in a grid; 0 where none were named.
  """

  field: str
  kind: Kind
  choices: tuple[Any, ...] = ()
  low: float = 0.0
  high: float = 0.0
  log: bool = False
  points: int = 0

  def at(self, share: float) -> Any:
    """The value at a share in [0, 1] of the way."""
    if self.choices:
      return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
    if self.log:
      return self._rounded(self.low * (self.high / self.low) ** share)
    return self._rounded(self.low + (self.high - self.low) * share)

  def grid(self, *, where: str) -> list[Any]:
    """All values, or the points of a grid; ConfigError where their number was not given."""
    if not self.choices and not self.points:
      raise ConfigError(f'{where}.{self.field}: a grid needs a number of points; write it as a third one, 5')
    count = len(self.choices) or self.points
    middle = 0.5 / count if self.choices else 0.0
    return list(dict.fromkeys(self.at(middle + i / max(count if self.choices else count - 1, 1)) for i in range(count)))

  def is_end(self, value: Any) -> bool:
    """True for a number at an end of a list or of a span, if the field allows others beyond it."""
    ends = self.choices or (self.low, self.high)
    if len(ends) < 2 or any(type(one) not in (int, float) for one in (*ends, value)):
      return False
    if not min(ends) <= value <= max(ends) or value in (self.kind.bounds or ()):
      return False
    if self.choices:
      return value in (min(ends), max(ends))
    low, high, place = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
    return not END < (place - low) / (high - low) < 1 - END

  def _rounded(self, value: float) -> Any:
    rounded = min(max(float(f'{value:.4g}'), self.low), self.high)
    return self.kind.convert(float(round(rounded)) if _is_whole(self.kind) else rounded)


def read_axis(field: str, text: str, *, where: str) -> Axis:
  """Parses an axis; ConfigError, which names `where.field`, for one that cannot be."""
  place, kind = f'{where}.{field}', configs.kind_of(field)
  if field in SAME_FOR_ALL:
    raise ConfigError(f'{place}: {field} must be the same for all; leave it out')
  if field in WITHOUT_EFFECT:
    raise ConfigError(f'{place}: {field} changes no result; leave it out')
  if re.match(r'\s*(log|range)\(', text):
    name, _, inner = text.strip().partition('(')
    try:
      low, high, *points = map(float, inner.removesuffix(')').split(',') if inner.endswith(')') else ())
    except ValueError:
      low, high, points = math.nan, math.nan, []
    log = name == 'log'
    if not low < high or (log and low <= 0) or len(points) > 1 or not all(n.is_integer() and n > 1 for n in points):
      advice = 'two numbers, the lower first, of log above 0, and if you like how many points a grid has'
      raise ConfigError(f'{place}: {text} is no span; write {name}(A, B) or {name}(A, B, POINTS): {advice}')
    for end in (low, high):
      require(kind.convert(end), kind, field=place)
    return Axis(field, kind, low=low, high=high, log=log, points=int(points[0]) if points else 0)
  choices = []
  for item in re.split(r',(?![^(\[]*[)\]])', text):
    try:
      value = kind.convert(kind.read(item.strip()))
    except (ValueError, KeyError):
      value = item.strip()
    require(value, kind, field=place)
    choices.append(value)
  return Axis(field, kind, tuple(dict.fromkeys(choices)))


@dataclasses.dataclass(frozen=True)
class Space:
  """Axes, and the losses whose weights lie on a simplex: all above 0, 1 on average.

  Attributes:
    weight_steps: parts of the whole that weights have in a grid, as 10 gives two losses 0.1 : 0.9, 0.2 : 0.8 ...
    where: the field of the configuration that says it, for errors.
  """

  axes: tuple[Axis, ...]
  weights_of: tuple[str, ...] = ()
  weight_steps: int = 10
  where: str = 'config.study.grid'

  @property
  def sizes(self) -> list[int]:
    """The number of values of each coordinate of a point; 0 where it is continuous."""
    return [len(axis.choices) for axis in self.axes] + [0] * max(len(self.weights_of) - 1, 0)

  def at(self, point: Sequence[float]) -> Values:
    """The values at a point of the unit cube, of which a uniform one has uniform weights."""
    values = {axis.field: axis.at(share) for axis, share in zip(self.axes, point, strict=False)}
    if self.weights_of:
      cuts = np.sort(np.clip(np.asarray(point[len(self.axes) :], float), 0.0, 1.0))
      values |= self.weights(np.diff(cuts, prepend=0.0, append=1.0))
    return values

  def weights(self, shares: Sequence[float] | np.ndarray) -> Values:
    """The weights with these shares of the whole."""
    of, least = self.weights_of, 1e-4
    return {
      f'objective.weights.{name}': float(f'{max(len(of) * s, least):.4g}') for name, s in zip(of, shares, strict=True)
    }

  def grid(self) -> list[Values]:
    """Every combination of values."""
    each = [[{axis.field: value} for value in axis.grid(where=self.where)] for axis in self.axes]
    if self.weights_of:
      each.append([self.weights(np.array(parts) / self.weight_steps) for parts in self._parts()])
    return [{name: value for one in those for name, value in one.items()} for those in itertools.product(*each)]

  def _parts(self) -> list[tuple[int, ...]]:
    """Whole numbers above 0, one a loss, that sum to `weight_steps`."""
    cuts = itertools.combinations(range(1, self.weight_steps), len(self.weights_of) - 1)
    return [tuple(b - a for a, b in zip((0, *cut), (*cut, self.weight_steps), strict=True)) for cut in cuts]

  def covering(self) -> list[Values]:
    """A few points at which every value of a list and both ends of every span occur."""
    each = {axis.field: axis.choices or (axis.at(0.0), axis.at(1.0)) for axis in self.axes}
    equal = self.weights([1 / len(self.weights_of)] * len(self.weights_of)) if self.weights_of else {}
    count = max(map(len, each.values()), default=1)
    return [{field: values[i % len(values)] for field, values in each.items()} | equal for i in range(count)]

  def ends(self, values: Values) -> list[str]:
    """The fields that have a number at an end of what is written of them, which a wider search could pass."""
    return [axis.field for axis in self.axes if axis.field in values and axis.is_end(values[axis.field])]

  @contextlib.contextmanager
  def blamed(self) -> Iterator[None]:
    """Makes errors name a field of the space by the place where its values are written."""
    try:
      yield
    except UserError as error:
      said = str(error)
      for axis in self.axes:
        said = said.replace(f'config.{axis.field}', f'{self.where}.{axis.field}')
      raise type(error)(said) from error


def of_fields(texts: Mapping[str, Any], *, where: str, **more: Any) -> Space:
  """The space that a group of the configuration writes down, field by field."""
  axes = tuple(read_axis(field, text, where=where) for field, text in sorted(configs.flat(texts).items()))
  return Space(axes, where=where, **more)


def arguments(values: Mapping[str, Any], config: ConfigDict) -> tuple[str, ...]:
  """The fields that a compiled step takes as arguments at these values; the others are its program's own."""
  make = find_objective(values.get('objective.name', config.objective.name))
  names, numeric = kinds_of(make), traceable(make)

  def is_one(field: str, value: Any) -> bool:
    group, _, name = field.rpartition('.')
    if group == 'objective.options' and type(value) in (int, float):
      return name in numeric
    if group == 'objective.weights':
      return 'weights' in numeric or 'weights' not in names
    return field in ARGUMENTS and is_on(value)

  return tuple(field for field, value in values.items() if is_one(field, value))


def find_objective(name: str) -> Callable[..., Any]:
  """The maker of objectives of that name."""
  return parts.find(name, OBJECTIVES, field='config.objective.name')


def matters(field: str, config: ConfigDict) -> bool:
  """False for a field that changes nothing in a program: a coupling that is switched off, an option it has not.

  Args:
    field: its name.
    config: the program's.
  """
  options = kinds_of(find_objective(config.objective.name))
  matching = config.objective.matching
  group, _, name = field.rpartition('.')
  if group == 'objective.matching':
    return bool(matching[name]) if name in COUPLINGS else any(matching[one] for one in COUPLINGS)
  if group == 'objective.weights':
    alone = ',' not in config.tasks and '*' not in config.tasks and config.tasks not in ('', 'all')
    return 'weights' in options and not alone
  return name in options if group == 'objective.options' else True


def check(found: Space, own: Sequence[Space], names: Sequence[str]) -> None:
  """Refuses what would change nothing, so that nobody takes its best value for one.

  Args:
    found: the space as it is written.
    own: of each program the part that matters to it.
    names: of losses.

  Raises:
    ConfigError: for a weight of what is no loss, and for a field that matters to no program.
  """
  for axis in found.axes:
    if axis.field.startswith(WEIGHTS):
      configs.choose(axis.field.removeprefix(WEIGHTS), weighable(names), field=f'{found.where}.objective.weights')
    if all(axis not in one.axes for one in own):
      raise ConfigError(f'{found.where}.{axis.field} changes nothing in any program; leave it out')


def weighable(names: Sequence[str]) -> list[str]:
  """The losses of these names, and their groups, each of which may be given a weight."""
  return list(dict.fromkeys([*names, *(name.partition('/')[0] for name in names)]))


def in_words(values: Values, *, named: bool = False) -> str:
  """Fields by the last part of their names; the learning rate alone is a number alone, unless it is to be named."""
  if not named and list(values) == ['optimizer.learning_rate']:
    return _short(values['optimizer.learning_rate'])
  return ', '.join(f'{field.rpartition(".")[2]} {_short(value)}' for field, value in values.items())


def _short(value: Any) -> str:
  if isinstance(value, tuple | list):
    return f'({", ".join(map(_short, value))})'
  return f'{value:g}' if isinstance(value, float) else str(value)


def _is_whole(kind: Kind) -> bool:
  return type(kind.convert(2.0)) is int
