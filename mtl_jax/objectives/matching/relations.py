"""Reads and checks relations between tasks, which a user writes in TOML or Python.

    [[relation]]
    source = "expression"                      # a task of classes or bins, a label, or a variable defined below
    prior = {happy = 0.3, sad = 0.7}           # of the classes; left out: counted in the train split
    table.happy = {AU12 = 1.0, AU6 = 0.51}     # r(target | class): a probability of yes; 0 where it is not listed
    table.sad = {AU4 = 1.0, pose = {left = 0.2, right = 0.8}}  # or one for each class of the target

    [[relation]]
    source = "Male"                            # classes no and yes
    targets = ["Mustache", "age_group"]        # without a table: counted where both are labelled

    [variable.age_group]                       # a number in ranges
    of = "age"
    edges = [18, 40]                           # three classes: below18, 18to40, from40, or `classes = [...]`
    spread = 5                                 # how far the net's age may be off, in years; left out: half the spread

    [variable.mouth]                           # a distance of landmarks over another
    of = "landmarks"
    distance = ["leftmouth", "rightmouth"]
    over = ["lefteye", "righteye"]
    edges = [1.0]
    spread = 0.1

    [variable.hair]                            # labels of which one at most is yes; the last class is `none`
    one_of = ["Black_Hair", "Blond_Hair"]

A label is named alone where it is in one task only, else as `task/label`. A source that is itself a target, and any
cycle, is fine. A Python file defines `get_relations()`, which returns the same as a dictionary.
"""

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from mtl_jax.config import choose
from mtl_jax.errors import ConfigError, one_line
from mtl_jax.objectives.matching.variables import Binned, Categorical, OneOf, Ordinal, Variable, YesNo
from mtl_jax.platform import json_file, user_file
from mtl_jax.platform.address import local_path
from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, OrdinalTask, RegressionTask, Task

FIELD = 'config.objective.matching.relations'
BUILT_IN = ('ages', 'celeba', 'clothing', 'clothing_counted', 'expressions', 'races')
_FOLDER = Path(__file__).parent / 'built_in'


class WrittenRelation(msgspec.Struct, forbid_unknown_fields=True):
  """A `[[relation]]` as it is written; probabilities are checked where their names are known."""

  source: str
  targets: list[str] = []
  table: dict[str, dict[str, Any]] = {}
  prior: dict[str, Any] = {}

  def among(self, names: '_Names') -> 'WrittenRelation | None':
    """The same without the targets that are not there; None where nothing is left."""
    targets = [target for target in self.targets if names.find(target)]
    table = {name: {t: p for t, p in row.items() if names.find(t)} for name, row in self.table.items()}
    left = names.find(self.source) and (targets or any(table.values()))
    return msgspec.structs.replace(self, targets=targets, table=table) if left else None


class WrittenVariable(msgspec.Struct, forbid_unknown_fields=True):
  """A `[variable.NAME]` as it is written."""

  one_of: list[str] = []
  of: str = ''
  edges: tuple[float, ...] = ()
  classes: tuple[str, ...] = ()
  spread: float = 0.0
  distance: tuple[str, str] | None = None
  over: tuple[str, str] | None = None


class Written(msgspec.Struct, forbid_unknown_fields=True):
  """A file of relations."""

  relation: Annotated[list[WrittenRelation], msgspec.Meta(min_length=1)]
  variable: dict[str, WrittenVariable] = {}


@dataclasses.dataclass(frozen=True)
class Relation:
  """A relation: what one variable says of others.

  Attributes:
    where: file and number, for messages.
    source: the variable with `e` classes.
    targets: the others.
    tables: r(target's class | source's class) `[e, c]` for each target; None: to be counted.
    prior: of the source's classes `[e]`; None: to be counted.
  """

  where: str
  source: Variable
  targets: tuple[Variable, ...]
  tables: tuple[np.ndarray, ...] | None
  prior: np.ndarray | None


def read(name: str, *, known: Sequence[Task], tasks: Sequence[Task]) -> list[Relation]:
  """The relations of a built-in set or a file, between the tasks of a run; those of others are left out.

  Args:
    name: of BUILT_IN, whose labels need not all be in the data set, or the path of a file `.toml` or `.py`.
    known: all tasks of the data set, in which every name must be found.
    tasks: those of the run.

  Raises:
    ConfigError: naming the file, the relation and what is wrong with it.
  """
  advice = 'see mtl_jax/objectives/matching/relations.py'
  written = json_file.convert(_content(name), Written, place=f'{FIELD}: {name}', advice=advice, raises=ConfigError)
  everything, own = (_Names(name, written.variable, those) for those in (known, tasks))
  relations = written.relation
  if name in BUILT_IN:
    relations = [few for one in relations if (few := one.among(everything))]
    if not relations:
      raise ConfigError(f'{FIELD}: {name} relates nothing in this data set; name a file of your own')
  found = []
  for number, one in enumerate(relations, 1):
    where = f'{name}: relation {number}'
    _relation(one, everything, where=where)  # So that a name is wrong or right whatever the run learns.
    if few := one.among(own):
      found.append(_relation(few, own, where=where))
  return found


def _content(name: str) -> Any:
  path = _FOLDER / f'{name}.toml' if name in BUILT_IN else local_path(name)
  if path.suffix not in ('.toml', '.py'):
    choose(name, (*BUILT_IN, 'FILE.toml', 'FILE.py'), field=FIELD)
  if not path.is_file():
    raise ConfigError(f'{FIELD}: no file {path}')
  if path.suffix == '.py':
    return user_file.call(path, 'get_relations', raises=ConfigError, blame=f'{FIELD}: ')
  try:
    return tomllib.loads(path.read_text())
  except (ValueError, RecursionError) as error:  # Of TOML, of UTF-8, of numbers of thousands of digits.
    raise ConfigError(f'{FIELD}: {path} is no TOML: {one_line(error)}') from error


@dataclasses.dataclass(frozen=True)
class _Names:
  """The variables that names stand for, among some tasks."""

  where: str
  defined: Mapping[str, WrittenVariable]
  tasks: Sequence[Task]

  def variable(self, name: str) -> Variable:
    """Raises ConfigError for a name that stands for nothing, with the nearest one that does."""
    found = self.find(name)
    if found is None:
      labels = [label for task in self.tasks if isinstance(task, BinaryTask) for label in task.labels]
      choices = [task.name for task in self.tasks if isinstance(task, CategoricalTask | OrdinalTask)]
      wrong = name
      if written := self.defined.get(name):
        wrong = next((one for one in written.one_of if not self.find(one)), written.of or name)
      choose(wrong, tuple(dict.fromkeys((*labels, *choices, *self.defined))), field=f'{FIELD}: {self.where}')
      raise ConfigError(f'{FIELD}: {self.where}: variable {name!r} needs a task that the data set lacks')
    return found

  def find(self, name: str) -> Variable | None:
    """None where the tasks, or some that a defined variable needs, are not there."""
    if written := self.defined.get(name):
      return (self._one_of if written.one_of else self._binned)(name, written)
    for task in self.tasks:
      if isinstance(task, CategoricalTask | OrdinalTask) and task.name == name:
        kind = Ordinal if isinstance(task, OrdinalTask) else Categorical
        return kind(name, task.classes, task.name)
    group, _, label = name.rpartition('/')
    found = [
      (task.name, task.labels.index(label))
      for task in self.tasks
      if isinstance(task, BinaryTask) and label in task.labels and (not group or group in (task.name, task.group))
    ]
    if len(found) > 1:
      both = ' and '.join(f'{task}/{label}' for task, _ in found)
      raise ConfigError(f'{FIELD}: {self.where}: {name!r} may be {both}; name it as task/label')
    return YesNo(name, ('no', 'yes'), *found[0]) if found else None

  def _one_of(self, name: str, written: WrittenVariable) -> Variable | None:
    if len(written.one_of) < 2:
      raise ConfigError(f'{FIELD}: {self.where}: variable {name}.one_of must list two labels at least')
    members = [self.find(label) for label in written.one_of]
    if any(one is None for one in members):
      return None
    if not all(isinstance(one, YesNo) for one in members):
      raise ConfigError(f'{FIELD}: {self.where}: variable {name}.one_of must list labels that are yes or no')
    return OneOf(name, (*written.one_of, 'none'), tuple(members))  # pyright: ignore[reportArgumentType]

  def _binned(self, name: str, written: WrittenVariable) -> Variable | None:
    where, edges, spread = f'{FIELD}: {self.where}: variable {name}', written.edges, written.spread
    rising = all(low < high for low, high in itertools.pairwise(edges))
    if not (edges and rising and all(map(math.isfinite, edges))):
      raise ConfigError(f'{where}.edges must be ascending numbers, one at least, not {list(edges)}')
    between = [f'{low:g}to{high:g}' for low, high in itertools.pairwise(edges)]
    classes = written.classes or (f'below{edges[0]:g}', *between, f'from{edges[-1]:g}')
    if len(set(classes)) != len(edges) + 1:
      raise ConfigError(f'{where}.classes must be {len(edges) + 1} different names, one more than the edges')
    if not 0 <= spread < math.inf or (spread == 0 and written.distance):
      raise ConfigError(f'{where}.spread must be above 0, not {spread:g}')
    task = next((task for task in self.tasks if task.name == written.of), None)
    if task is None:
      return None
    if isinstance(task, RegressionTask) and written.distance is None:
      return Binned(name, classes, edges, spread, task.name)
    if isinstance(task, LandmarkTask) and written.distance and written.over:
      points = [2 * task.points.index(choose(p, task.points, field=where)) for p in (*written.distance, *written.over)]
      return Binned(name, classes, edges, spread, task.name, pairs=tuple(points))  # pyright: ignore
    raise ConfigError(
      f'{where}: of must be a regression, or landmarks with distance and over; {task.name} is {task.kind}'
    )


def _relation(written: WrittenRelation, names: _Names, *, where: str) -> Relation:
  blame, table = f'{FIELD}: {where}', written.table
  source = names.variable(written.source)
  listed = dict.fromkeys((*written.targets, *(target for row in table.values() for target in row)))
  if not listed:
    raise ConfigError(f'{blame} has neither targets nor a table')
  targets = tuple(names.variable(target) for target in listed)
  if source.name in listed:
    raise ConfigError(f'{blame}: {source.name!r} is source and target at once')
  for name in table:
    choose(name, source.classes, field=f'{blame}: table')
  tables = tuple(_table(table, source, target, blame) for target in targets) if table else None
  prior = _distribution(written.prior, source, f'{blame}: prior') if written.prior else None
  return Relation(where, source, targets, tables, prior)


def _table(table: Mapping[str, Any], source: Variable, target: Variable, blame: str) -> np.ndarray:
  rows = np.zeros((len(source.classes), len(target.classes)))
  for row, name in zip(rows, source.classes, strict=True):
    value, where = table.get(name, {}).get(target.name), f'{blame}: table.{name}.{target.name}'
    if isinstance(value, Mapping):
      row[:] = _distribution(value, target, where)
    elif target.classes == ('no', 'yes'):
      p = _probability(0.0 if value is None else value, where)
      row[:] = 1 - p, p
    else:
      classes = ', '.join(target.classes)
      raise ConfigError(f'{where} must give a probability for each class of {target.name}: {classes}')
  return rows


def _distribution(written: Mapping[str, Any], variable: Variable, where: str) -> np.ndarray:
  for name in written:
    choose(name, variable.classes, field=where)
  p = np.array([_probability(written.get(name, 0.0), f'{where}.{name}') for name in variable.classes])
  if abs(p.sum() - 1) > 1e-3:
    raise ConfigError(f'{where}: the probabilities sum to {p.sum():g}, not 1')
  return p / p.sum()


def _probability(value: Any, where: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
    raise ConfigError(f'{where} must be a probability from 0 to 1, not {value!r}')
  return float(value)


def absolute(names: Sequence[str]) -> tuple[str, ...]:
  """The relations with absolute paths of files, so that they are found from any folder."""
  return tuple(str(local_path(name).resolve()) if Path(name).suffix else name for name in names)
