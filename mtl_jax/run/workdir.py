"""A working directory: the configuration and data facts that rebuild its model, and the model restored from it."""

import csv
import dataclasses
import errno
import io
import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, NotRequired, TypedDict

import jax
import msgspec
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import mtl_jax
from mtl_jax import config as configs
from mtl_jax import tasks
from mtl_jax.data.input import mixture
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.errors import CheckpointError, LauncherError, UserError
from mtl_jax.models import multitask, own_weights
from mtl_jax.models.network import Network
from mtl_jax.objectives.matching import relations
from mtl_jax.platform import address, atomic_write, file_lock, json_file, processes, sharding
from mtl_jax.platform.address import local_path
from mtl_jax.run import checkpoint, optimizer, own_parts, recipe
from mtl_jax.run.checkpoint import Checkpoints
from mtl_jax.tasks import LabelStats, Task, losses, register_plugins

log = logging.getLogger('mtl_jax')

# Where each kind of run keeps what it has done, and the verb that makes it.
KEPT = {'checkpoints': 'train', 'replicas': 'study', 'looks': 'affinity', 'trials': 'sweep'}
ANOTHER = 'bring it back as it was, or train in another --workdir'
LOCK = '.lock'  # The file that the run holds which writes here; it names that run's first process.
HOLDER = f'process {os.getpid()} of {platform.node()} since {time.time_ns()} ns\n'
SHARED_SECS = 20.0  # In which what one host writes is seen by the others.


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
  """Facts of the training data that a model needs.

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


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
  """Holds a working directory for one run; it is made if it is not there.

  One in a bucket is taken from whoever holds it, who notices at the next save: see `check_held`.

  Raises:
    CheckpointError: while another run holds it, or where it cannot be written (any more) or is not seen by all
      processes.
    LauncherError: where the devices here are part of a TPU slice whose other processes do not know of each other.
  """
  if jax.process_count() != processes.count():
    raise LauncherError(
      f'the devices here belong to {jax.process_count()} processes, but this one was started by itself; '
      'start all of them as docs/scale.md says'
    )
  try:
    if processes.index() != 0:  # The first process holds it for all.
      _check_shared(workdir, processes.from_first('workdir', None))
      yield
    else:
      with _held(workdir):
        processes.from_first('workdir', HOLDER)
        yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
      raise
    raise CheckpointError(
      f'--workdir: {workdir} cannot be written: {error.strerror}; what was saved before is as it was: make room, and '
      'the same command goes on from there'
    ) from error


@contextmanager
def _held(workdir: Path) -> Iterator[None]:
  if re.match(r'\w+:/[^/]', str(workdir)):  # As Path('gs://b/run') writes it.
    raise CheckpointError(f'--workdir: {workdir} has lost a slash; give the address as text')
  if not address.is_local(workdir):
    if before := _holder(workdir):
      log.info('%s is taken over from %s; if that still runs, it ends at its next save', workdir, before)
    atomic_write.write(workdir / LOCK, HOLDER)
    yield
    return

  def refuse() -> NoReturn:
    raise CheckpointError(f'--workdir: another run is writing into {workdir}; wait for it or take another')

  with ExitStack() as stack:
    try:
      handle = stack.enter_context(file_lock.hold(workdir / LOCK, waiting=refuse))
    except OSError as error:
      raise CheckpointError(f'--workdir: cannot write into {workdir}: {error.strerror}') from error
    handle.truncate(0)
    handle.write(HOLDER)
    handle.flush()
    yield


def check_held(workdir: Path) -> None:
  """Raises CheckpointError, in the first process, where another run has taken a directory in a bucket."""
  if processes.index() == 0 and not address.is_local(workdir):
    holder = _holder(workdir)
    if holder not in ('', HOLDER.strip()):
      raise CheckpointError(f'--workdir: {workdir} was taken over by {holder}; this run saves nothing more')


def _holder(workdir: Path) -> str:
  """The process that took a directory in a bucket last, in words; empty where none has."""
  with address.wrap_errors(str(workdir), 'read'):
    return (workdir / LOCK).read_text().strip() if (workdir / LOCK).exists() else ''


def _check_shared(workdir: Path, holder: str) -> None:
  """Raises CheckpointError if this process does not see there what process 0 has written."""
  deadline = time.monotonic() + SHARED_SECS
  while time.monotonic() < deadline:
    with suppress(OSError):
      if (workdir / LOCK).read_text() == holder:
        return
    time.sleep(0.1)
  raise CheckpointError(
    f'--workdir: {platform.node()} does not see in {workdir} what process 0 writes there; '
    'name a folder that all hosts share, or one in a bucket (gs://)'
  )


def check_alike(config: ConfigDict, facts: DataFacts) -> None:
  """Raises CheckpointError if another process was started with another configuration or other data than process 0."""
  fields = configs.to_json(config)
  first, checksum = processes.from_first('alike', [fields, facts.checksum])
  if changed := list(configs.differences(first, fields, ignore=configs.RESUMABLE)):
    raise CheckpointError(f'the configuration is not that of process 0: {"; ".join(changed)}')
  if checksum != facts.checksum:
    raise CheckpointError(f'config.data: {config.data.dir or config.data.dirs} holds other data here than at process 0')


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
  """A copy whose data and weights are found from any folder; its kinds of tasks are known from here on."""
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
  """The configuration with absolute paths, its data set, and the facts of that."""
  store = mixture.open_data(config.data)
  return with_absolute_paths(config), store, DataFacts.of(store)


@contextmanager
def resumed(
  workdir: Path, config: ConfigDict, facts: DataFacts, *, holds: str, allow_config_change: bool
) -> Iterator[None]:
  """Holds a working directory for a run that begins or goes on; arguments and errors are those of the checks below."""
  with lock(workdir):
    check_alike(config, facts)
    check_kind(workdir, holds)
    check_resumable(workdir, config, facts, holds=holds, allow_config_change=allow_config_change)
    begin(workdir, config, facts)
    yield


def check_kind(workdir: Path, holds: str) -> None:
  """Raises CheckpointError if another verb has kept something in the directory than the one that keeps in `holds`."""
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


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A model restored for evaluation, on whatever devices there are here.

  Attributes:
    step: of the checkpoint.
    variables: the weights to evaluate, the averaged ones where the run kept them.
  """

  config: ConfigDict
  facts: DataFacts
  model: Network
  mesh: Mesh
  step: int
  variables: Mapping[str, Any]
  label_stats: Mapping[str, LabelStats]

  @property
  def tasks(self) -> tuple[Task, ...]:
    return self.facts.tasks


def restore(workdir: Path, *, step: int | None = None, allow_code: bool = False) -> TrainedModel:
  """The model of a run, at the step that was best on validation unless another is asked for.

  `allow_code` allows parts of its user's own that this user has not run before: see `own_parts`.
  """
  if allow_code:
    own_parts.allow(workdir)
  config, facts = read(workdir)
  config = own_parts.located(workdir, config)
  if not (workdir / 'checkpoints').is_dir():
    check_kind(workdir, 'checkpoints')
    raise CheckpointError(f'--workdir: {workdir} holds no checkpoint yet; go on with mtl-jax train')
  facts = dataclasses.replace(facts, tasks=facts.selected(config))
  checkpoints = Checkpoints(workdir)
  try:
    if step is None:
      progress = checkpoints.progress()
      checkpoints.check(progress.step)
      step = progress.best_step or progress.step
    checkpoints.check(step)
    if kept := checkpoints.data(step):  # Which nobody can have changed unnoticed.
      own = DataFacts.from_json(kept, place=workdir / 'checkpoints' / str(step), advice=checkpoint.ANOTHER)
      if own != facts:
        log.warning(
          'warning: %s: dataset.json or config.json is not of step %d, whose own facts are taken', workdir, step
        )
      facts = own
    chosen = facts.tasks
    made, mesh = recipe.from_config(config, chosen), sharding.make_mesh(model=_model_devices(config))
    label_stats = {task.name: task.empty_stats() for task in chosen}
    make_state = recipe.state_maker(made, config, chosen, label_stats=label_stats, image_size=facts.image_size)
    like = checkpoint.abstract_state(make_state, sharding.of_state(mesh, make_state))
    restored = checkpoints.restore(like, step=step)
  finally:
    checkpoints.close()
  assert restored is not None  # A step that is not there has raised.
  state = restored[0]
  return TrainedModel(config, facts, made.model, mesh, step, state.eval_variables, state.label_stats)


def _model_devices(config: ConfigDict) -> int:
  """Number of devices to divide parameters over here: as in training, or 1 where there are not as many."""
  asked = config.train.model_devices
  return 1 if jax.local_device_count() % asked else asked
