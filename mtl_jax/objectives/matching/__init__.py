"""Tasks coupled by what is known of their relation: distribution matching and co-annotation, beside the task losses.

A `Coupling` is made once from the config and the data; in a step it completes labels (`complete`) and gives losses of
the outputs (`auxiliary`). All of them are means over the global batch, so devices do not matter.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from mtl_jax.data.input.pipeline import Split
from mtl_jax.errors import ConfigError
from mtl_jax.kinds import is_on
from mtl_jax.objectives.matching import losses, relations, tables
from mtl_jax.objectives.matching.relations import Relation
from mtl_jax.objectives.matching.variables import Arrays, Binned, Variable
from mtl_jax.tasks import Task

log = logging.getLogger('mtl_jax')

Labels = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Settings:
  """The fields of `config.objective.matching`, which says what they mean, without those that tables are made of.

  Numbers may be traced; those that switch something on are then above 0.
  """

  distribution: float = 0.0
  soft_co_annotation: float = 0.0
  co_annotation: float = 0.0
  direction: str = 'targets'
  divergence: str = 'kl'
  stop_gradient: str = 'none'
  score: str = 'mean'
  relevance: bool = False
  clip: float = 1e-3
  rows: str = 'all'
  confidence: float = 0.0
  ramp_steps: int = 0
  anneal_steps: int = 0

  def share(self, step: Any) -> Any:
    """The share of their weights that both losses have: it grows from 0 over the ramp, and falls to 0 again."""
    grown = jnp.minimum(1.0, step / self.ramp_steps) if is_on(self.ramp_steps) else 1.0
    left = jnp.maximum(0.0, 1 - step / self.anneal_steps) if is_on(self.anneal_steps) else 1.0
    return grown * left


@dataclasses.dataclass(frozen=True, eq=False)
class Related:
  """A relation with its numbers: for each target r(c | e) `[e, c]` and its relevance, and the source's prior `[e]`."""

  source: Variable
  targets: tuple[Variable, ...]
  tables: tuple[np.ndarray, ...]
  prior: np.ndarray
  relevance: tuple[float, ...]

  @property
  def units(self) -> tuple[int, ...]:
    """True for targets that are yes or no, as the paper's action units."""
    return tuple(i for i, target in enumerate(self.targets) if target.classes == ('no', 'yes'))

  @property
  def unit_weights(self) -> np.ndarray:
    """r(yes | e) of those, `[t, e]`."""
    return np.stack([self.tables[i][:, 1] for i in self.units]).astype(np.float32)

  def seen_units(self, labels: Arrays, mask: Arrays) -> tuple[Array, Array]:
    """Their labels and whether they are there, `[b, t]`."""
    seen = [self.targets[i].observe(labels, mask) for i in self.units]
    return jnp.stack([classes for classes, _ in seen], 1), jnp.stack([known for _, known in seen], 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Coupling:
  """The relations of a run, and what is made of them. The losses are sums over relations of means over targets."""

  relations: tuple[Related, ...]
  settings: Settings

  def complete(self, labels: Arrays, mask: Arrays) -> tuple[Labels, Labels, Labels | None]:
    """Hard co-annotation: labels and mask with what known labels imply, and each label's weight in its task's loss.

    A label that exists weighs 1 and is never changed; an implied one `co_annotation` times the table's probability
    (a source implied by all of its units: `co_annotation`). One pass over the labels that exist: what is implied
    implies nothing further. Where two relations imply one label, the first does. Ranges of numbers are not implied.
    """
    if not is_on(self.settings.co_annotation):
      return dict(labels), dict(mask), None
    done, there = dict(labels), {name: jnp.asarray(known) for name, known in mask.items()}
    weights = {name: jnp.where(known, 1.0, 0.0) for name, known in mask.items()}

    def put(variable: Variable, classes: Array, weight: Array) -> None:
      """Puts these classes into the variable's labels that are missing, where the weight is above 0."""
      for place, (task, column) in enumerate(variable.columns()):
        new = (weight > 0) & ~there[task][:, column]
        label = jnp.where(new, variable.label_of(classes, place), done[task][:, column])
        done[task] = jnp.asarray(done[task]).at[:, column].set(label)
        weights[task] = weights[task].at[:, column].add(jnp.where(new, weight, 0.0))
        there[task] = there[task].at[:, column].set(there[task][:, column] | new)

    for relation in self.relations:
      source, known = relation.source.observe(labels, mask)
      for target, table in zip(relation.targets, relation.tables, strict=True):
        classes, weight = losses.implied_targets(source, table)
        put(target, classes, jnp.where(known, weight, 0.0) * self.settings.co_annotation)
      if relation.units:
        seen = relation.seen_units(labels, mask)
        classes, implied = losses.implied_source(*seen, relation.unit_weights, relation.prior)
        put(relation.source, classes, jnp.where(implied, self.settings.co_annotation, 0.0))
    return done, there, weights

  def auxiliary(
    self, labels: Arrays, mask: Arrays, *, label_stats: Arrays, step: Any
  ) -> Callable[[Arrays], dict[str, Array]]:
    """The losses beside those of the tasks, weighted, as a function of the outputs: by name, scalars.

    Args:
      labels: as they exist, not completed.
      mask: of them.
      label_stats: for each task.
      step: of the run.
    """
    settings, share = self.settings, self.settings.share(step)
    wanted = {
      'distribution_matching': (settings.distribution, self._matching),
      'soft_co_annotation': (settings.soft_co_annotation, self._soft_co_annotation),
    }

    def weighted(outputs: Arrays) -> dict[str, Array]:
      return {
        name: share * weight * jnp.asarray(sum(loss(r, outputs, labels, mask, label_stats) for r in self.relations))
        for name, (weight, loss) in wanted.items()
        if is_on(weight)
      }

    return weighted

  def _matching(self, relation: Related, outputs: Arrays, labels: Arrays, mask: Arrays, label_stats: Arrays) -> Array:
    """The loss of predictions, a mean over all rows, labelled or not, and over targets, of which the paper has a sum.

    Rows that do not count are 0 in it.
    """
    settings = self.settings
    log_source = relation.source.log_p(outputs, label_stats)
    log_targets = [target.log_p(outputs, label_stats) for target in relation.targets]
    weights = relation.relevance if settings.relevance else (1.0,) * len(log_targets)

    def matched(learner: Variable, log_p: Array, q: Array, teacher: Array) -> Array:
      how = {'divergence': settings.divergence, 'stop_gradient': settings.stop_gradient, 'eps': settings.clip}
      each = losses.match(log_p, q, **how)
      if settings.rows == 'unlabelled':
        each = jnp.where(learner.observe(labels, mask)[1], 0.0, each)
      if is_on(settings.confidence):
        each = jnp.where(teacher.max(-1) < settings.confidence, 0.0, each)
      return each.mean()

    total: Any = 0.0
    if settings.direction in ('targets', 'both'):
      each = [
        weight * matched(target, log_p, losses.expected(log_source, table), jnp.exp(log_source))
        for weight, target, log_p, table in zip(weights, relation.targets, log_targets, relation.tables, strict=True)
      ]
      total += sum(each) / len(each)
    if settings.direction in ('sources', 'both'):
      evidence = [weight * jnp.exp(log_p) for weight, log_p in zip(weights, log_targets, strict=True)]
      q = losses.posterior(np.log(relation.prior), evidence, relation.tables, eps=settings.clip)
      total += matched(relation.source, log_source, q, q)
    return total

  def _soft_co_annotation(
    self, relation: Related, outputs: Arrays, labels: Arrays, mask: Arrays, label_stats: Arrays
  ) -> Array:
    """Cross-entropy of the source's prediction against what the targets' labels say, over rows that have any."""
    log_source = relation.source.log_p(outputs, label_stats)
    if self.settings.score == 'mean':
      if not relation.units:
        return jnp.zeros(())
      classes, known = relation.seen_units(labels, mask)
      binary = relation.source.classes == ('no', 'yes')
      q, rows = losses.mean_score(classes, known, relation.unit_weights, binary_source=binary), known.any(1)
    else:
      seen = [target.observe(labels, mask) for target in relation.targets]
      evidence = [
        jax.nn.one_hot(classes, len(target.classes)) * known[:, None]
        for target, (classes, known) in zip(relation.targets, seen, strict=True)
      ]
      q = losses.posterior(np.log(relation.prior), evidence, relation.tables, eps=self.settings.clip)
      rows = jnp.stack([known for _, known in seen]).any(0)
    if self.settings.rows == 'unlabelled':
      rows &= ~relation.source.observe(labels, mask)[1]
    away = losses.cross_entropy(jnp.log(q), log_source)
    return jnp.where(rows, away, 0.0).sum() / jnp.maximum(rows.sum(), 1)


def from_config(
  objective: ConfigDict, *, tasks: Sequence[Task], known: Sequence[Task], train: Split, val: Split | None
) -> Coupling | None:
  """Builds what `config.objective.matching` asks for, its tables counted; None where it asks for nothing.

  A run of one task of a relation alone has nothing to couple, and gets None too.

  Args:
    objective: `config.objective`.
    tasks: of the run.
    known: of the data set.
    train: with the labels that the run keeps.
    val: the validation split, if there is one.

  Raises:
    ConfigError: for relations that cannot be read, a table to be counted where no row has both labels, or a term
      that would be 0 whatever the labels.
  """
  asked = objective.matching
  settings = Settings(**{field.name: asked[field.name] for field in dataclasses.fields(Settings)})
  read = [one for name in asked.relations for one in relations.read(name, known=known, tasks=tasks)]
  if not (settings.distribution or settings.soft_co_annotation or settings.co_annotation):
    return None
  if not asked.relations:
    raise ConfigError(f'{relations.FIELD} is empty; name {" or ".join(relations.BUILT_IN)}, or a file of relations')
  if not read:
    log.info('matching: no relation is between tasks of this run')
    return None
  for variable in (variable for one in read for variable in (one.source, *one.targets)):
    if isinstance(variable, Binned) and not variable.spread and not objective.standardize:
      raise ConfigError(
        f'{relations.FIELD}: {variable.name} needs a spread where config.objective.standardize is false'
      )
  counted_in = val if asked.count_in == 'val' else train
  if counted_in is None:
    raise ConfigError('config.objective.matching.count_in=val, but the data set has no split val')
  found = tuple(with_numbers(one, counted_in, train, table=asked.table, smoothing=asked.smoothing) for one in read)
  if settings.soft_co_annotation and settings.score == 'mean' and not any(one.units for one in found):
    raise ConfigError(
      'config.objective.matching.soft_co_annotation has no effect: score=mean is of yes-or-no targets, and no relation '
      'here has one; set config.objective.matching.score=posterior'
    )
  for one in found:
    said = ', '.join(f'{t.name} {share:.2f}' for t, share in zip(one.targets, one.relevance, strict=True))
    log.info('matching: %s, which explains of the entropy of: %s', one.source.name, said)
  return Coupling(found, settings)


def with_numbers(relation: Relation, counted_in: Split, train: Split, *, table: str, smoothing: float) -> Related:
  """A relation with tables and prior: as given, as 0 and 1, or counted. The prior is of the train split's labels.

  Args:
    relation: as it was written.
    counted_in: the split whose rows with both labels count.
    train: the train split.
    table: given, binary or estimated; a relation without a table is always counted.
    smoothing: added to every count.
  """
  own = relation.tables
  if own is None or table == 'estimated':
    own = tuple(_count(relation, target, counted_in, smoothing) for target in relation.targets)
  elif table == 'binary':
    own = tuple(_zero_or_one(one) for one in own)
  prior = relation.prior
  if prior is None:
    classes, known = map(np.asarray, relation.source.observe(train.labels, train.mask))
    shape, least = (1, len(relation.source.classes)), max(smoothing, 1e-3)  # Never 0: its logarithm is taken.
    (prior,) = tables.counted(np.zeros_like(classes), classes, known=known, shape=shape, smoothing=least)
  own = tuple(np.asarray(one, np.float32) for one in own)
  relevance = tuple(tables.relevance(one.astype(np.float64), np.asarray(prior, np.float64)) for one in own)
  least_prior = np.maximum(np.asarray(prior, np.float32), 1e-6)
  return Related(relation.source, relation.targets, own, least_prior, relevance)


def _zero_or_one(table: np.ndarray) -> np.ndarray:
  """A unit above a quarter is there, as all are that the paper lists; of several classes the likeliest."""
  if table.shape[1] == 2:
    yes = (table[:, 1] > 0.25).astype(np.float64)
    return np.stack([1 - yes, yes], 1)
  return np.eye(table.shape[1])[table.argmax(1)]


def _count(relation: Relation, target: Variable, split: Split, smoothing: float) -> np.ndarray:
  source, source_known = map(np.asarray, relation.source.observe(split.labels, split.mask))
  classes, known = map(np.asarray, target.observe(split.labels, split.mask))
  both = source_known & known
  if not both.any():
    raise ConfigError(
      f'{relations.FIELD}: {relation.where}: no row has both {relation.source.name} and {target.name} to count; '
      'give a table, keep some rows with both, or set config.objective.matching.count_in=val'
    )
  shape = (len(relation.source.classes), len(target.classes))
  return tables.counted(source, classes, known=both, shape=shape, smoothing=smoothing)
