"""Relations as a user writes them, in TOML or Python, read and checked: which variable says how much of which others.

    [[relation]]
    source = "expression"                      # a categorical task, a label, or a variable defined below
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
from typing import Any

import numpy as np

from mtl_jax.config import choose
from mtl_jax.errors import ConfigError, one_line
from mtl_jax.objectives.matching.variables import Binned, Categorical, OneOf, Variable, YesNo
from mtl_jax.platform import user_file
from mtl_jax.platform.address import local_path
from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, RegressionTask, Task

FIELD = 'config.objective.matching.relations'
BUILT_IN = ('celeba', 'expressions')
_FOLDER = Path(__file__).parent / 'built_in'


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
  content = _content(name)
  for key in content:
    choose(key, ('relation', 'variable'), field=f'{FIELD}: {name}')
  defined, relations = content.get('variable', {}), content.get('relation', [])
  if not (isinstance(defined, Mapping) and isinstance(relations, list) and relations):
    raise ConfigError(f'{FIELD}: {name} holds no [[relation]]; see mtl_jax/objectives/matching/relations.py')
  everything, own = _Names(name, defined, known), _Names(name, defined, tasks)
  if name in BUILT_IN:
    relations = [few for one in relations if (few := _of_this_set(one, everything))]
    if not relations:
      raise ConfigError(f'{FIELD}: {name} relates nothing in this data set; name a file of your own')
  found = []
  for number, written in enumerate(relations, 1):
    relation = _read_one(written, everything, where=f'{name}: relation {number}')
    kept = [i for i, target in enumerate(relation.targets) if own.find(target.name)]
    source = own.find(relation.source.name)
    if source and kept:
      found.append(
        dataclasses.replace(
          relation,
          source=source,
          targets=tuple(own.variable(relation.targets[i].name) for i in kept),
          tables=relation.tables and tuple(relation.tables[i] for i in kept),
        )
      )
  return found


def _of_this_set(written: Mapping[str, Any], names: '_Names') -> Mapping[str, Any] | None:
  """A built-in relation without the targets that the data set lacks; None where nothing is left."""
  table = {
    name: {target: p for target, p in row.items() if names.find(target)} for name, row in written['table'].items()
  }
  return {**written, 'table': table} if any(table.values()) and names.find(written['source']) else None


def _content(name: str) -> Mapping[str, Any]:
  path = _FOLDER / f'{name}.toml' if name in BUILT_IN else local_path(name)
  if path.suffix not in ('.toml', '.py'):
    choose(name, (*BUILT_IN, 'FILE.toml', 'FILE.py'), field=FIELD)
  if not path.is_file():
    raise ConfigError(f'{FIELD}: no file {path}')
  if path.suffix == '.py':
    content = user_file.call(path, 'get_relations', raises=ConfigError, blame=f'{FIELD}: ')
  else:
    try:
      content = tomllib.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # Of TOML, of UTF-8, of numbers of thousands of digits.
      raise ConfigError(f'{FIELD}: {path} is no TOML: {one_line(error)}') from error
  if not isinstance(content, Mapping):
    raise ConfigError(f'{FIELD}: get_relations() of {path} gave {type(content).__name__}, not a dictionary')
  return content


class _Names:
  """The variables that names stand for, among some tasks."""

  def __init__(self, where: str, defined: Mapping[str, Any], tasks: Sequence[Task]):
    self.where, self.defined, self.tasks = where, defined, tasks

  def variable(self, name: str) -> Variable:
    """Raises ConfigError for a name that stands for nothing, with the nearest one that does."""
    found = self.find(name)
    if found is None:
      labels = [label for task in self.tasks if isinstance(task, BinaryTask) for label in task.labels]
      categorical = [task.name for task in self.tasks if isinstance(task, CategoricalTask)]
      wrong = name if name not in self.defined else self._missing(name)
      choose(wrong, tuple(dict.fromkeys((*labels, *categorical, *self.defined))), field=f'{FIELD}: {self.where}')
      raise ConfigError(f'{FIELD}: {self.where}: variable {name!r} needs a task that the data set lacks')
    return found

  def find(self, name: str) -> Variable | None:
    """None where the tasks, or some that a defined variable needs, are not there."""
    if name in self.defined:
      return self._defined(name, self.defined[name])
    group, _, label = name.rpartition('/')
    for task in self.tasks:
      if isinstance(task, CategoricalTask) and task.name == name:
        return Categorical(name, task.classes, task.name)
    found = [
      (task, task.labels.index(label))
      for task in self.tasks
      if isinstance(task, BinaryTask) and label in task.labels and (not group or group in (task.name, task.group))
    ]
    if len(found) > 1:
      both = ' and '.join(f'{task.name}/{label}' for task, _ in found)
      raise ConfigError(f'{FIELD}: {self.where}: {name!r} may be {both}; name it as task/label')
    return YesNo(name, ('no', 'yes'), found[0][0].name, found[0][1]) if found else None

  def _missing(self, name: str) -> str:
    written = self.defined[name]
    return next((one for one in written.get('one_of', ()) if not self.find(one)), str(written.get('of', name)))

  def _defined(self, name: str, written: Any) -> Variable | None:
    where = f'{FIELD}: {self.where}: variable.{name}'
    if not isinstance(written, Mapping):
      raise ConfigError(f'{where} must be a table')
    for key in written:
      choose(key, ('one_of', 'of', 'edges', 'classes', 'spread', 'distance', 'over'), field=where)
    if 'one_of' in written:
      members = [self.find(str(one)) for one in written['one_of']]
      if len(members) < 2:
        raise ConfigError(f'{where}.one_of must name two labels at least')
      if not all(isinstance(one, YesNo) for one in members):
        return None
      return OneOf(name, (*(one.name for one in members if one), 'none'), tuple(members))  # pyright: ignore
    return self._binned(name, written, where)

  def _binned(self, name: str, written: Mapping[str, Any], where: str) -> Variable | None:
    edges = _numbers(written.get('edges'), f'{where}.edges')
    if not edges or any(low >= high for low, high in itertools.pairwise(edges)):
      raise ConfigError(f'{where}.edges must be ascending numbers, one at least, not {list(edges)}')
    between = [f'{low:g}to{high:g}' for low, high in itertools.pairwise(edges)]
    classes = tuple(written.get('classes', (f'below{edges[0]:g}', *between, f'from{edges[-1]:g}')))
    if len(set(classes)) != len(edges) + 1:
      raise ConfigError(f'{where}.classes must be {len(edges) + 1} different names, one more than the edges')
    (spread,) = _numbers([written.get('spread', 0)], f'{where}.spread')
    if spread < 0 or (spread == 0 and 'distance' in written):
      raise ConfigError(f'{where}.spread must be above 0, not {spread:g}')
    task = next((task for task in self.tasks if task.name == written.get('of')), None)
    if task is None:
      return None
    if isinstance(task, RegressionTask) and 'distance' not in written:
      return Binned(name, classes, edges, spread, task.name)
    if isinstance(task, LandmarkTask) and 'distance' in written:
      points = [str(point) for key in ('distance', 'over') for point in written.get(key, ())]
      if len(points) != 4:
        raise ConfigError(f'{where}: distance and over must each name two landmarks')
      first, second, third, fourth = (2 * task.points.index(choose(p, task.points, field=where)) for p in points)
      return Binned(name, classes, edges, spread, task.name, pairs=(first, second, third, fourth))
    raise ConfigError(
      f'{where}: of must be a regression, or landmarks with distance and over; {task.name} is {task.kind}'
    )


def _numbers(values: Any, where: str) -> tuple[float, ...]:
  if not isinstance(values, Sequence) or isinstance(values, str):
    raise ConfigError(f'{where} must be a list of numbers, not {values!r}')
  for value in values:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
      raise ConfigError(f'{where}: {value!r} is no finite number')
  return tuple(float(value) for value in values)


def _read_one(written: Any, names: _Names, *, where: str) -> Relation:
  blame = f'{FIELD}: {where}'
  if not isinstance(written, Mapping) or 'source' not in written:
    raise ConfigError(f'{blame} names no source')
  for key in written:
    choose(key, ('source', 'targets', 'table', 'prior'), field=blame)
  source = names.variable(str(written['source']))
  table = written.get('table')
  if table is not None and not (isinstance(table, Mapping) and all(isinstance(row, Mapping) for row in table.values())):
    raise ConfigError(f'{blame}: table must hold a table for each class of {source.name}')
  listed = dict.fromkeys(str(t) for t in written.get('targets', ()))
  listed |= dict.fromkeys(target for row in (table or {}).values() for target in row)
  if not listed:
    raise ConfigError(f'{blame} has neither targets nor a table')
  targets = tuple(names.variable(target) for target in listed)
  if source.name in listed:
    raise ConfigError(f'{blame}: {source.name!r} is source and target at once')
  for name in table or {}:
    choose(name, source.classes, field=f'{blame}: table')
  tables = None if table is None else tuple(_table(table, source, target, blame) for target in targets)
  prior = written.get('prior')
  return Relation(where, source, targets, tables, prior and _distribution(prior, source, f'{blame}: prior'))


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


def _distribution(written: Any, variable: Variable, where: str) -> np.ndarray:
  if not isinstance(written, Mapping):
    raise ConfigError(f'{where} must be a table of probabilities by class')
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
