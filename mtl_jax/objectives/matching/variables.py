"""Discrete variables read from tasks: log-probabilities of their classes from outputs, and classes from labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from mtl_jax.tasks import OrdinalTask
from mtl_jax.tasks.losses import guard

Arrays = Mapping[str, Any]  # By task.
LEAST = 1e-7  # Of a probability whose logarithm is taken.


@dataclasses.dataclass(frozen=True)
class Variable:
  """Something with `c` classes that the outputs and the labels of tasks speak of.

  Attributes:
    name: as relations call it.
    classes: the names of its classes.
  """

  name: str
  classes: tuple[str, ...]

  def log_p(self, outputs: Arrays, label_stats: Arrays) -> Float[Array, 'b c']:
    """The logarithm of each class's probability, from the raw outputs of all tasks."""
    raise NotImplementedError

  def observe(self, labels: Arrays, mask: Arrays) -> tuple[Int32[Array, ' b'], Bool[Array, ' b']]:
    """The class that the labels say, 0 where they say none, and whether they say one."""
    raise NotImplementedError

  def columns(self) -> tuple[tuple[str, int], ...]:
    """The label columns that a class settles, as task and column; none of a variable whose classes are ranges."""
    return ()

  def label_of(self, classes: Int32[Array, ' b'], column: int) -> Float[Array, ' b']:
    """Converts classes to the label in one of `columns()`, by position."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Column(Variable):
  """One label of a task, the number of a class."""

  task: str
  column: int = 0

  def observe(self, labels, mask):
    known = jnp.asarray(mask[self.task])[:, self.column]
    return guard(jnp.asarray(labels[self.task])[:, self.column], known).astype(jnp.int32), known

  def columns(self):
    return ((self.task, self.column),)

  def label_of(self, classes, column):
    return classes.astype(jnp.float32)


class Categorical(_Column):
  """The classes of a categorical task."""

  def log_p(self, outputs, label_stats):
    return jax.nn.log_softmax(outputs[self.task].astype(jnp.float32))


class Ordinal(_Column):
  """The bins of an ordinal task."""

  def log_p(self, outputs, label_stats):
    logits = outputs[self.task].astype(jnp.float32)
    task = OrdinalTask(self.task, (self.name,), classes=self.classes)
    bins = [jnp.full((len(logits), 1), number, jnp.float32) for number in range(len(self.classes))]
    return -jnp.concatenate([task.loss(logits, number) for number in bins], axis=1)


class YesNo(_Column):
  """One label of a binary task; class 1 is yes."""

  def log_p(self, outputs, label_stats):
    logits = outputs[self.task][:, self.column].astype(jnp.float32)
    return jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], axis=1)


@dataclasses.dataclass(frozen=True)
class OneOf(Variable):
  """Binary labels of which at most one is meant to be yes, as the hair colours; the last class is none of them.

  Their logits and a 0 for none make a softmax; labels with several yes say no class.
  """

  members: tuple[YesNo, ...]

  def log_p(self, outputs, label_stats):
    logits = [outputs[one.task][:, one.column].astype(jnp.float32) for one in self.members]
    return jax.nn.log_softmax(jnp.stack([*logits, jnp.zeros_like(logits[0])], axis=1))

  def observe(self, labels, mask):
    found = [one.observe(labels, mask) for one in self.members]
    yes = jnp.stack([(value == 1) & known for value, known in found], axis=1)
    settled = jnp.stack([known for _, known in found], axis=1).all(1) & (yes.sum(1) <= 1)
    return jnp.where(settled & yes.any(1), yes.argmax(1), len(self.members) * settled).astype(jnp.int32), settled

  def columns(self):
    return tuple((one.task, one.column) for one in self.members)

  def label_of(self, classes, column):
    return (classes == column).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Binned(Variable):
  """A number in ranges: the net's is taken to be normal around its output, so that every range has a probability.

  Attributes:
    edges: between the ranges, ascending, one fewer than the classes; a number on an edge is of the range above.
    spread: standard deviation of that normal distribution, in the number's unit; 0 is half the train split's.
    task: of regression or landmarks.
    column: of the number; with `pairs` unused.
    pairs: instead the number is the distance between two points over the distance between two others, each a column
      of x in the task's labels (y follows it): coordinates are fractions of the image's width and height.
  """

  edges: tuple[float, ...]
  spread: float
  task: str
  column: int = 0
  pairs: tuple[int, int, int, int] | None = None

  def _number(self, values: Array) -> Array:
    if self.pairs is None:
      return values[:, self.column]
    points = [values[:, column : column + 2] for column in self.pairs]
    above, below = (jnp.sqrt(jnp.square(first - second).sum(-1) + 1e-12) for first, second in (points[:2], points[2:]))
    return above / jnp.maximum(below, 1e-3)

  def log_p(self, outputs, label_stats):
    stats = label_stats[self.task]
    number = self._number(outputs[self.task].astype(jnp.float32) * stats.std + stats.mean)
    spread = self.spread or 0.5 * stats.std[self.column]
    below = jax.scipy.stats.norm.cdf((jnp.asarray(self.edges) - number[:, None]) / spread)
    ends = jnp.zeros_like(below[:, :1])
    return jnp.log(jnp.maximum(jnp.diff(below, axis=1, prepend=ends, append=ends + 1), LEAST))

  def observe(self, labels, mask):
    used = [self.column] if self.pairs is None else [c + i for c in self.pairs for i in (0, 1)]
    known = jnp.asarray(mask[self.task])[:, np.array(used)].all(1)
    number = guard(self._number(jnp.where(known[:, None], jnp.asarray(labels[self.task]), 0.0)), known)
    bins = jnp.searchsorted(jnp.asarray(self.edges), number, side='right')
    return jnp.where(known, bins, 0).astype(jnp.int32), known
