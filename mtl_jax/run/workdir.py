"""A working directory: the configuration and the data facts of its run, from which its model can be rebuilt."""

import csv
import dataclasses
import io
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jax
import msgspec
import numpy as np
from ml_collections import ConfigDict

import mtl_jax
from mtl_jax import config as configs
from mtl_jax import tasks
from mtl_jax.data.input import mixture
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.errors import CheckpointError, UserError
from mtl_jax.models import multitask, own_weights
from mtl_jax.objectives.matching import relations
from mtl_jax.platform import address, atomic_write, json_file, processes
from mtl_jax.platform.address import local_path
from mtl_jax.run import lock, optimizer, own_parts
from mtl_jax.tasks import Task, losses, register_plugins

log = logging.getLogger('mtl_jax')

# Where each kind of run keeps what it has done, and the verb that makes it.
KEPT = {'checkpoints': 'train', 'replicas': 'study', 'looks': 'affinity', 'trials': 'sweep'}
ANOTHER = 'bring it back as it was, or train in another --workdir'

Side = Annotated[int, msgspec.Meta(ge=1, le=2**16)]


class _Facts(TypedDict):
  """The schema of `DataFacts.to_json`."""

  image_size: tuple[Side, Side]
  tasks: list[json_file.Fields]
  checksum: str
  fit: NotRequired[Literal['squash', 'crop', 'pad']]
  aspect: NotRequired[Annotated[float, msgspec.Meta(ge=0)]]


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """The facts of the training data that a model depends on.

  Attributes:
    image_size: height and width of the network's input in pixels.
    tasks: the tasks of the data set, of which the config selects some.
    checksum: of the prepared set, or of all sets of a mixture.
    fit: the way that images came to that size.
    aspect: the median width over height of what the images show; 0 where an older version has not kept it.
  """

  image_size: tuple[int, int]
  tasks: tuple[Task, ...]
  checksum: str
  fit: str = 'squash'
  aspect: float = dataclasses.field(default=0.0, compare=False)

  @classmethod
  def of(cls, store: DataSet) -> 'DataFacts':
    sizes = np.concatenate([part.source_size for part in store.parts])
    aspect = float(np.median(sizes[:, 0] / sizes[:, 1]))
    return cls(store.image_size, store.tasks, store.checksum, store.fit, aspect)

  def to_json(self) -> dict[str, Any]:
    return {**vars(self), 'tasks': [task.to_json() for task in self.tasks]}

  @classmethod
  def from_json(cls, value: dict[str, Any], *, place: Path, advice: str) -> 'DataFacts':
    """The facts `to_json` wrote. Raises UserError, which names the place, for what is none."""
    found = json_file.convert(value, _Facts, place=place, advice=advice)
    try:
      return cls(**{**found, 'tasks': tuple(map(tasks.from_json, found['tasks']))})
    except (TypeError, ValueError, UserError) as error:
      raise CheckpointError(f'{place} is not as it was written: {error}; {advice}') from error

  def selected(self, config: ConfigDict) -> tuple[Task, ...]:
    """The tasks that the config learns. ConfigError for one, or a weight or head of one, that is not in the data."""
    named = [f'{task.name}/{label}' for task in self.tasks for label in task.labels]
    known = [*configs.get_config().objective.weights, *(task.name for task in self.tasks), *named]
    for field, group in (('objective.weights', config.objective.weights), ('model.heads', config.model.heads)):
      for name in group:
        configs.choose(name, known, field=f'config.{field}')
    loss = config.objective.coordinate_loss
    configs.choose(loss, tuple(losses.COORDINATE_LOSSES), field='config.objective.coordinate_loss')
    chosen = tasks.select(self.tasks, config.tasks, attributes=config.data.attributes)
    return tuple(task.with_coordinate_loss(loss) for task in chosen)


def check_alike(config: ConfigDict, facts: DataFacts) -> None:
  """Raises CheckpointError if another process was started with another configuration or other data than process 0."""
  fields = configs.to_json(config)
  first, checksum = processes.from_first('alike', [fields, facts.checksum])
  if changed := list(configs.differences(first, fields, ignore=configs.RESUMABLE)):
    raise CheckpointError(f'the configuration is not that of process 0: {"; ".join(changed)}')
  if checksum != facts.checksum:
    raise CheckpointError(f'config.data: {config.data.dir or config.data.dirs} holds other data here than at process 0')


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
  """A copy with absolute paths of data and weights; registers the task kinds of its plugins."""
  config = own_parts.with_absolute_paths(config)
  register_plugins(config)
  if config.model.weights:
    if multitask.is_weights_file(config.model.weights):
      path = local_path(config.model.weights)  # Only a run's folder may lie in a bucket.
      if config.model.stem == 'auto':  # Which torchvision's files would decide.
        config.model.stem = own_weights.stem(path)
    config.model.weights = address.absolute(config.model.weights)
  config.data.update(mixture.absolute_dirs(config.data))
  if config.data.feature_cache not in ('', 'none'):
    config.data.feature_cache = str(local_path(config.data.feature_cache).resolve())
  config.objective.matching.relations = relations.absolute(config.objective.matching.relations)
  return config


def opened(config: ConfigDict) -> tuple[ConfigDict, DataSet, DataFacts]:
  """Opens the data set of a configuration; returns this with absolute paths, the data set, and its facts."""
  config = with_absolute_paths(config)  # First, for the set may have tasks of its plugins.
  store = mixture.open_data(config.data)
  tasks.check_plugins(config, store.tasks)
  groups = {task.group for task in store.tasks}
  for name, weight in config.objective.weights.items():
    if weight != 1 and name.partition('/')[0] not in groups:  # A configuration may serve sets of several kinds.
      log.warning('warning: config.objective.weights.%s has no effect: the data have no task %s', name, name)
  return config, store, DataFacts.of(store)


@contextmanager
def resumed(
  workdir: Path, config: ConfigDict, facts: DataFacts, *, holds: str, allow_config_change: bool
) -> Iterator[None]:
  """Locks a workdir for a run that begins or resumes; arguments and errors are those of the checks below."""
  with lock.hold(workdir):
    check_alike(config, facts)
    check_kind(workdir, holds)
    check_resumable(workdir, config, facts, holds=holds, allow_config_change=allow_config_change)
    begin(workdir, config, facts)
    yield


def check_kind(workdir: Path, holds: str) -> None:
  """Raises CheckpointError if the directory holds results of another verb than the one that writes into `holds`."""
  for folder, verb in KEPT.items():
    if folder != holds and _keeps(workdir, folder):
      raise CheckpointError(f'--workdir: {workdir} holds what `mtl-jax {verb}` has made; take another')


def check_resumable(
  workdir: Path, config: ConfigDict, facts: DataFacts, *, holds: str, allow_config_change: bool
) -> tuple[ConfigDict | None, list[str]]:
  """Raises CheckpointError if the directory holds a run of another configuration or of other data.

  The data may have moved: their checksum counts, not their place. One that trains may have more steps, if those taken
  would be the same. A run that was refused or stopped before anything was kept of it has nothing to resume, so it may
  begin anew.

  Args:
    workdir: the directory.
    config: the configuration.
    facts: of the data.
    holds: the folder in which this kind of run keeps what it has done, of KEPT.
    allow_config_change: whether another configuration, or other data, will do.

  Returns:
    The configuration that the run has had, None where it begins, and the fields that differ, where they may, in words.
  """
  if not ((workdir / 'config.json').exists() and _keeps(workdir, holds)):
    return None, []
  old_config, old_facts = read(workdir)
  register_plugins(config)  # Again: where they may change, the kept ones are others.
  old, new = configs.to_json(old_config), configs.to_json(config)
  longer = holds == 'checkpoints' and config.train.steps > old_config.train.steps
  settled = optimizer.steps_before_decay(old_config.optimizer, steps=old_config.train.steps)
  free = configs.RESUMABLE | ({'train.steps'} if longer and settled else set())
  changed = [*configs.differences(old, new, ignore=free), *own_parts.changed(workdir, config)]
  if changed and not allow_config_change:
    rates = 'A schedule that ends at train.steps has had other learning rates than that of a longer run. ' * longer
    raise CheckpointError(
      f'{workdir} holds a run with another configuration: {"; ".join(changed)}. '
      f'{rates}Take another --workdir, or go on with --allow_config_change'
    )
  for difference in configs.differences(old, new):
    log.info('resuming with %s', difference)
  if old_facts != facts and not allow_config_change:
    place = config.data.dir or ', '.join(config.data.dirs)
    raise CheckpointError(f'{workdir} was trained on other data than {place} holds; take another --workdir')
  return old_config, changed


def _keeps(workdir: Path, folder: str) -> bool:
  return (workdir / folder).is_dir() and any((workdir / folder).iterdir())


def begin(workdir: Path, config: ConfigDict, facts: DataFacts) -> None:
  """Writes config.json and dataset.json, from which the model can be rebuilt."""
  if jax.process_index() == 0:
    write_json(workdir / 'dataset.json', {**facts.to_json(), 'mtl_jax': mtl_jax.__version__})
    write_json(workdir / 'config.json', configs.to_json(config))
    own_parts.keep(workdir, config)


def read(workdir: Path) -> tuple[ConfigDict, DataFacts]:
  """The configuration and data facts of a run."""
  places = workdir / 'config.json', workdir / 'dataset.json'
  for place in places:
    if not place.exists():
      raise CheckpointError(f'--workdir: {workdir} holds no run: {place.name} is missing')
  config, facts = (json_file.read(place, json_file.Fields, advice=ANOTHER) for place in places)
  version = facts.get('mtl_jax')
  advice = (
    ANOTHER if version in (None, mtl_jax.__version__) else f'install that version: pip install mtl_jax=={version}'
  )
  try:
    found = configs.from_json(config)
  except UserError as error:
    raise CheckpointError(f'{places[0]} is not as it was written: {error}; {advice}') from error
  if found.plugins:
    register_plugins(own_parts.located(workdir, found))
  return found, DataFacts.from_json(facts, place=places[1], advice=advice)


def write_json(path: Path, value: Any, *, root: Path | None = None) -> None:
  """Writes a file of a run; see `atomic_write` for `root`."""
  atomic_write.write(path, json.dumps(value, indent=2, allow_nan=False) + '\n', root=root)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes a table, whole or not at all, whose columns are the fields of the first row."""
  content = io.StringIO(newline='')
  writer = csv.DictWriter(content, list(rows[0]))
  writer.writeheader()
  writer.writerows(rows)
  atomic_write.write(path, content.getvalue())


def provenance(store: DataSet) -> dict[str, Any]:
  """Describes the origin of a result, for its JSON: data, device, versions, date."""
  return {
    'data': {'directory': str(store.directory), 'checksum': store.checksum, 'splits': store.split_sizes},
    'device': jax.devices()[0].device_kind,
    'versions': {'mtl_jax': mtl_jax.__version__, 'jax': jax.__version__},
    'date': time.strftime('%Y-%m-%d'),
  }
