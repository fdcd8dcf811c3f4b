"""Samples the rows of a global batch from (seed, step): by set, in each permuted in stripes, or balanced by groups.

Every set is cut once, at random, into stripes, and each place of a batch draws from one of them: a device then never
needs the others, and a set too large for one device lies divided over all. Stripes follow from the numbers of rows
alone, so neither devices nor memory change a batch; each has about 1,000 rows, so a batch is hardly less random.
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Int64, UInt64

from mtl_jax.data.input.permutation import key_of, permuted
from mtl_jax.errors import ConfigError

LEAST_STRIPE = 1024  # Rows; smaller sets than two of these are not cut.


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
  """Gives the rows of each global batch as a function of the step, so resuming needs nothing else.

  Attributes:
    sets: the set of each of a batch's `b` places.
    draws: for each set how its rows come.
    firsts: for each set the position of its first row in the split.
  """

  sets: Int64[np.ndarray, ' b']
  draws: 'tuple[Striped | Balanced, ...]'
  firsts: tuple[int, ...]

  def indices(self, step: int) -> Int64[np.ndarray, ' b']:
    """Positions in the train split of global batch `step`, from 0."""
    positions = np.empty(len(self.sets), np.int64)
    for number, (draw, first) in enumerate(zip(self.draws, self.firsts, strict=True)):
      positions[self.sets == number] = first + draw.rows(step)
    return positions

  def reach(self, places: slice) -> Int64[np.ndarray, ' r']:
    """The positions, sorted, that these places of a batch can ever hold."""
    found = []
    for number, (draw, first) in enumerate(zip(self.draws, self.firsts, strict=True)):
      here = np.zeros(len(self.sets), bool)
      here[places] = True
      found.append(first + draw.reach(here[self.sets == number]))
    return np.sort(np.concatenate(found))


def make_sampler(
  seed: int, *, sizes: Sequence[int], rows: Sequence[int], groups: Int64[np.ndarray, ' n'] | None = None
) -> Sampler:
  """Makes the sampler of a train split.

  Args:
    seed: decides it.
    sizes: the number of examples of each set of the split, one after another.
    rows: how many of each set a batch holds.
    groups: for each example the number of the group to balance, -1 for none: such an example is left out, unless its
      whole set has none; None balances nothing.
  """
  firsts = tuple(np.cumsum([0, *sizes])[:-1].tolist())
  draws = []
  for number, (first, size, count) in enumerate(zip(firsts, sizes, rows, strict=True)):
    key = key_of(seed, number)
    if groups is not None and (own := groups[first : first + size]).max() >= 0:
      draws.append(Balanced.of(own, count, key=key))
    else:
      draws.append(Striped.of(size, count, key=key))
  return Sampler(interleaved(tuple(rows)), tuple(draws), firsts)


# How the rows of one set come; each class has rows(step) and reach(places).


@dataclasses.dataclass(frozen=True, eq=False)
class Streams:
  """Groups of rows, each with an endless stream: one permutation of the group after another.

  Attributes:
    members: rows, group after group.
    sizes: the number of rows of each of the `k` groups.
    key: of the permutations.
  """

  members: Int64[np.ndarray, ' n']
  sizes: Int64[np.ndarray, ' k']
  key: UInt64[np.ndarray, ' 1']

  @classmethod
  def of(cls, groups: Int64[np.ndarray, ' m'], *, key: UInt64[np.ndarray, ' 1']) -> 'Streams':
    """Rows by the number of their group; -1 is in none, and groups without rows are passed over."""
    _, sizes = np.unique(groups[groups >= 0], return_counts=True)
    return cls(np.argsort(groups, kind='stable')[len(groups) - sizes.sum() :], sizes, key)

  @cached_property
  def starts(self) -> Int64[np.ndarray, ' k']:
    return np.cumsum(self.sizes) - self.sizes

  def take(self, groups: Int64[np.ndarray, ' b'], index: Int64[np.ndarray, ' b']) -> Int64[np.ndarray, ' b']:
    """Row number `index`, from 0, of these groups' streams."""
    epochs, places = np.divmod(index, self.sizes[groups])
    keys = key_of(self.key, groups, epochs)
    return self.members[self.starts[groups] + permuted(places, sizes=self.sizes[groups], keys=keys)]


@dataclasses.dataclass(frozen=True, eq=False)
class Striped:
  """Samples all rows equally often, each once per pass over its stripe; a single stripe is permuted epoch by epoch.

  Attributes:
    streams: a group is a stripe.
    stripes: the stripe of each of the set's `c` places of a batch: a run of places draws from the same.
  """

  streams: Streams
  stripes: Int64[np.ndarray, ' c']

  @classmethod
  def of(cls, size: int, count: int, *, key: UInt64[np.ndarray, ' 1']) -> 'Striped':
    """`size` rows of which each batch takes `count`."""
    # A power of two, so that the places of a device are a whole number of stripes wherever they can be.
    stripes = np.arange(count) * num_stripes(size, count) // count
    order = permuted(np.arange(size), sizes=np.full(size, size), keys=np.repeat(key_of(key, 0), size))
    place_of_row = order * count // size  # As if each place had its share of the rows.
    return cls(Streams.of(stripes[place_of_row], key=key_of(key, 1)), stripes)

  def rows(self, step: int) -> Int64[np.ndarray, ' c']:
    widths = np.bincount(self.stripes)
    within = np.arange(len(self.stripes)) - (np.cumsum(widths) - widths)[self.stripes]
    return self.streams.take(self.stripes, step * widths[self.stripes] + within)

  def reach(self, places: np.ndarray) -> Int64[np.ndarray, ' r']:
    used = np.isin(np.arange(len(self.streams.sizes)), self.stripes[places])
    return self.streams.members[np.repeat(used, self.streams.sizes)]


def num_stripes(size: int, count: int) -> int:
  """The number of stripes into which a set of `size` rows is cut, where each batch takes `count` rows."""
  return 1 << max(min(count, size // LEAST_STRIPE), 1).bit_length() - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Balanced:
  """Samples all groups equally often: in every batch to within one row, and each once per pass over them.

  Groups come by turns. With many of them the turns are permuted in each pass, within two fixed halves of at least a
  batch each, so that no batch meets a group again where one pass ends and the next begins. With fewer than two batches
  of them their order, a random one, is the same in every pass.

  Attributes:
    groups: of the set's rows; a group gives its next row in each pass.
    turns: the groups' numbers, in the two halves, or each alone.
    count: how many rows of the set each batch takes.
  """

  groups: Streams
  turns: Streams
  count: int

  @classmethod
  def of(cls, groups: Int64[np.ndarray, ' m'], count: int, *, key: UInt64[np.ndarray, ' 1']) -> 'Balanced':
    """Rows by the number of their group, of which each batch takes `count`; -1 is in none."""
    streams = Streams.of(groups, key=key_of(key, 0))
    num = len(streams.sizes)
    order = permuted(np.arange(num), sizes=np.full(num, num), keys=np.repeat(key_of(key, 1), num))
    halves = order * 2 // num if num >= 2 * count else order
    return cls(streams, Streams.of(halves, key=key_of(key, 2)), count)

  def rows(self, step: int) -> Int64[np.ndarray, ' c']:
    passes, turns = np.divmod(step * self.count + np.arange(self.count), len(self.groups.sizes))
    halves = np.searchsorted(self.turns.starts, turns, side='right') - 1
    index = passes * self.turns.sizes[halves] + turns - self.turns.starts[halves]
    return self.groups.take(self.turns.take(halves, index), passes)

  def reach(self, places: np.ndarray) -> Int64[np.ndarray, ' r']:
    return self.groups.members if places.any() else self.groups.members[:0]  # Any group may come to any place.


# How a batch is shared between the sets.


@lru_cache
def rows_a_batch(weights: tuple[float, ...], batch_size: int) -> tuple[int, ...]:
  """Divides every batch between sets, in rows: by weight, largest remainders rounded up, but at least one.

  Raises:
    ConfigError: for fewer rows than sets.
  """
  if batch_size < len(weights):
    raise ConfigError(f'config.train.batch_size is {batch_size}, too few for a row of each of {len(weights)} sets')
  exact = dict(enumerate(map(Fraction, weights)))  # Floats would round ties by chance.
  rows, left = dict.fromkeys(exact, 1), batch_size
  while small := [i for i, weight in exact.items() if left * weight < sum(exact.values())]:
    left -= len(small)  # These have their one row, the others share the rest.
    exact = {i: weight for i, weight in exact.items() if i not in small}
  quotas = {i: left * weight / sum(exact.values()) for i, weight in exact.items()}
  rows |= {i: int(quota) for i, quota in quotas.items()}
  by_remainder = sorted(quotas, key=lambda i: int(quotas[i]) - quotas[i])
  for i in by_remainder[: batch_size - sum(rows.values())]:
    rows[i] += 1
  return tuple(rows[i] for i in range(len(weights)))


@lru_cache
def interleaved(rows: tuple[int, ...]) -> Int64[np.ndarray, ' b']:
  """The set of each row of a batch: each set's rows at even distances, so that every slice holds each about evenly."""
  places = np.concatenate([(np.arange(count) + 0.5) / count for count in rows])
  sets = np.repeat(np.arange(len(rows)), rows)[np.argsort(places, kind='stable')]
  sets.flags.writeable = False
  return sets
