"""Kinds of tasks, a file each. Everything that differs between kinds is a method of the class there.

To add a task, a data set's reader makes a value of one of these classes; to add a kind, write its file and list its
class in `KINDS`, or name a file of your own in `config.plugins`.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config import parts
from mtl_jax.errors import ConfigError, DataError, one_line
from mtl_jax.metrics.metric import Metric
from mtl_jax.tasks.binary import BinaryTask
from mtl_jax.tasks.categorical import CategoricalTask
from mtl_jax.tasks.dense import DenseTask
from mtl_jax.tasks.landmarks import LandmarkTask
from mtl_jax.tasks.ordinal import OrdinalTask
from mtl_jax.tasks.regression import RegressionTask
from mtl_jax.tasks.task import Geometry, LabelStats, Task

__all__ = [
  'KINDS',
  'METRICS',
  'BinaryTask',
  'CategoricalTask',
  'DenseTask',
  'Geometry',
  'LabelStats',
  'LandmarkTask',
  'OrdinalTask',
  'RegressionTask',
  'Task',
  'UnknownKindError',
  'check_plugins',
  'find_metric',
  'from_json',
  'higher_is_better',
  'is_built_in',
  'plain',
  'register',
  'register_plugins',
  'select',
  'source',
]

KINDS: dict[str, type[Task]] = {
  c.kind: c for c in (BinaryTask, LandmarkTask, OrdinalTask, DenseTask, RegressionTask, CategoricalTask)
}
_BUILT_IN = frozenset(KINDS)
METRICS: dict[str, Metric] = {metric.name: metric for kind in reversed(KINDS.values()) for metric in kind.measures}
METRICS['loss'] = Metric('loss', 'loss', 'loss', higher_is_better=False)
_MACRO = 'macro_'
_NAME_FILE = 'of a kind of your own name the file: --config.plugins=FILE.py'
ALL = 'all'


class UnknownKindError(DataError):
  """A kind of task that no class here has: of a newer version, or of a file that `config.plugins` does not name."""


def register(kind: type[Task]) -> None:
  """Makes a kind of task of the user's own known by its name; a newer class of that name takes its place.

  Raises:
    ConfigError: for a class without name or metrics, or with the name of a built-in kind.
  """
  name, measures = getattr(kind, 'kind', None), getattr(kind, 'measures', ())
  if not (isinstance(name, str) and measures and all(isinstance(metric, Metric) for metric in measures)):
    raise ConfigError(f'{kind.__name__}: give the class a name, kind, and its metrics, measures; see docs/own_parts.md')
  if not isinstance(getattr(kind, 'baseline_name', None), str):
    raise ConfigError(f"{kind.__name__}: give the class a baseline_name, as 'mean'; see docs/own_parts.md")
  if name in _BUILT_IN and KINDS[name] is not kind:
    raise ConfigError(f'{kind.__name__}: {name!r} is a built-in kind of task; give it another name')
  KINDS[name] = kind
  for metric in measures:
    METRICS.setdefault(metric.name, metric)


def register_plugins(config: ConfigDict) -> None:
  """Makes the kinds of all `config.plugins` known: prepared sets, runs and reports may then have tasks of them.

  Raises:
    ConfigError: for a file that is missing or fails, or has no kind of task.
  """
  for name in config.plugins:
    for kind in parts.classes(name, Task, field='config.plugins'):
      try:
        register(kind)
      except ConfigError as error:
        raise ConfigError(f'config.plugins: {name.removesuffix(":")}: {error}') from error


def check_plugins(config: ConfigDict, tasks: Sequence[Task]) -> None:
  """Raises ConfigError for a task of a kind that is neither built in nor of `config.plugins`.

  A process that has prepared the set knows the kind nevertheless, but no other would open the run.
  """
  named = {kind.kind for name in config.plugins for kind in parts.classes(name, Task, field='config.plugins')}
  for task in tasks:
    if not is_built_in(task) and task.kind not in named:
      raise ConfigError(f'config.plugins: task {task.name!r} is of kind {task.kind!r}; {_NAME_FILE}')


def is_built_in(task: Task) -> bool:
  """True for a task of one of the kinds of this package."""
  return task.kind in _BUILT_IN


def source(task: Task) -> str:
  """The place of the class of a task of the user's own, as `FILE.py:NAME`; empty for a built-in kind."""
  return '' if is_built_in(task) else f'{inspect.getsourcefile(type(task))}:{type(task).__name__}'


def plain(metric: str) -> str:
  """A metric's name without `macro_`: `macro_f1` of a task and `f1` of one output are the same metric."""
  return metric.removeprefix(_MACRO)


def find_metric(name: str) -> Metric | None:
  """The metric of a task, or of one output, by its name in the eval JSON; None for an unknown one."""
  return METRICS.get(name) or METRICS.get(_MACRO + name)


def higher_is_better(metric: str) -> bool:
  """The direction of a metric by its name in the eval JSON; upwards for an unknown one."""
  found = find_metric(metric)
  return found is None or found.higher_is_better


def from_json(value: dict[str, Any]) -> Task:
  """The task that `Task.to_json` wrote. Raises DataError for any other value."""
  kind = value.get('kind') if isinstance(value, dict) else None
  if not (isinstance(kind, str) and kind in KINDS):
    raise UnknownKindError(f'unknown kind of task {kind!r:.60}; there are {", ".join(KINDS)}; {_NAME_FILE}')
  fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != 'kind'}
  try:
    return KINDS[kind](**fields)
  except (TypeError, ValueError) as error:
    raise DataError(f'no task is {value!r:.60}: {one_line(error)}') from error


def select(
  available: Sequence[Task],
  names: str | Sequence[str],
  *,
  attributes: Sequence[str] = (),
  field: str = 'config.tasks',
) -> tuple[Task, ...]:
  """The tasks a config names, in that order.

  Args:
    available: the tasks a prepared set has labels for.
    names: task names, as a tuple or separated by commas; `name/*` splits a task into one task per label, and
      `name/label` takes one of them. None, or `all`, takes all tasks.
    attributes: keeps only these labels of the task `attributes`; empty keeps all.
    field: that names them, for errors.

  Raises:
    ConfigError: for an unknown or repeated task or label.
  """
  by_name = {task.name: task for task in available}
  if attributes and 'attributes' not in by_name:
    raise ConfigError(f'config.data.attributes: this data set has no attributes; it has {", ".join(by_name)}')
  if attributes:
    by_name['attributes'] = by_name['attributes'].subset(attributes, field='config.data.attributes')
  chosen: list[Task] = []
  asked = _split_names(names)
  for name in by_name if asked in ([], [ALL]) and ALL not in by_name else asked:
    group, _, label = name.partition('/')
    if group not in by_name:
      raise ConfigError(f'{field}: no task {group!r} in this data set; it has {", ".join(by_name)}')
    task = by_name[group]
    if not label:
      chosen.append(task)
    elif not task.splittable:
      raise ConfigError(f'{field}: {name!r} cannot be had, since {group} is one task; name {group!r}')
    else:
      wanted = task.labels if label == '*' else (label,)
      chosen.extend(task.subset((one,), field=field, name=f'{group}/{one}') for one in wanted)
  repeated = [task.name for i, task in enumerate(chosen) if task.name in {t.name for t in chosen[:i]}]
  if repeated:
    raise ConfigError(f'{field}: {repeated[0]!r} is named twice')
  return tuple(chosen)


def _split_names(names: str | Sequence[str]) -> list[str]:
  parts = names.split(',') if isinstance(names, str) else names
  return [part.strip() for part in parts if part.strip()]
