"""A working directory: the configuration and data facts that rebuild its model, and the model restored from it."""

import dataclasses
import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax import objectives, tasks
from mtl_jax.configs import default
from mtl_jax.data import mixture
from mtl_jax.data.mixture import Mixture
from mtl_jax.data.store import Store
from mtl_jax.errors import CheckpointError, UserError
from mtl_jax.models import multitask
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.objectives import grain
from mtl_jax.tasks import LabelStats, Task
from mtl_jax.training import checkpoint, optimizer, sharding
from mtl_jax.training.checkpoint import Checkpoints
from mtl_jax.training.step import init_state

# Fields that a resumed run may change freely: the batches, and so the bits of the run, stay the same.
WITHOUT_EFFECT = tuple(
  [f'config.data.{name}' for name in ('dir', 'dirs', 'mode', 'resident_share', 'feature_cache')]
  + [f'config.train.{name}' for name in ('on_nonfinite', 'max_nonfinite', 'watchdog_secs')]
  + [f'config.study.{name}' for name in ('arms', 'num_seeds', 'learning_rates', 'num_tuning_seeds')]
  + [f'config.study.{name}' for name in ('num_resamples', 'replicas_at_once')]
)


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What a model must know of the data it was trained on.

  Attributes:
    image_size: height and width of the network's input in pixels.
    tasks: the tasks of the data set, of which the config selects some.
    checksum: of the prepared set, or of all sets of a mixture.
  """

  image_size: tuple[int, int]
  tasks: tuple[Task, ...]
  checksum: str

  @classmethod
  def of(cls, store: Store | Mixture) -> 'DataFacts':
    return cls(store.image_size, store.tasks, store.checksum)

  def to_json(self) -> dict[str, Any]:
    described = [task.to_json() for task in self.tasks]
    return {'image_size': list(self.image_size), 'tasks': described, 'checksum': self.checksum}

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> 'DataFacts':
    described = tuple(tasks.from_json(task) for task in value['tasks'])
    return cls(tuple(value['image_size']), described, value['checksum'])

  def selected(self, config: ConfigDict) -> tuple[Task, ...]:
    """The tasks that the config learns. ConfigError for one, or a weight or head of one, that is not in the data."""
    named = [f'{task.name}/{label}' for task in self.tasks for label in task.labels]
    known = [*default.get_config().objective.weights, *(task.name for task in self.tasks), *named]
    for field, group in (('objective.weights', config.objective.weights), ('model.heads', config.model.heads)):
      for name in group:
        configs.choose(name, known, field=f'config.{field}')
    chosen = tasks.select(self.tasks, config.tasks, attributes=config.data.attributes)
    return tuple(task.with_coordinate_loss(config.objective.coordinate_loss) for task in chosen)


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
  """Holds a working directory for one run; it is made if it is not there.

  Raises:
    CheckpointError: while another run holds it, where it cannot be written, or for the address of a bucket.
  """
  if re.match(r'\w+:/', str(workdir)):  # `Path` has taken one of two slashes away.
    raise CheckpointError(
      f'--workdir: {workdir} is no local folder: buckets are not opened; mount it (gcsfuse, Mountpoint for S3) and '
      'name the mounted folder'
    )
  if jax.process_index() != 0:  # The first process holds it for all.
    yield
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    handle = (workdir / '.lock').open('w')
  except OSError as error:
    raise CheckpointError(f'--workdir: cannot write into {workdir}: {error.strerror}') from error
  with handle:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise CheckpointError(f'--workdir: another run is writing into {workdir}; wait for it or take another') from None
    yield


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
  """A copy whose data and weights are found from any folder."""
  config = config.copy_and_resolve_references()
  if config.model.weights:
    config.model.weights = str(Path(config.model.weights).resolve())
  config.data.update(mixture.absolute_dirs(config.data))
  return config


def check_resumable(
  workdir: Path, config: ConfigDict, facts: DataFacts, *, begun: bool, allow_config_change: bool
) -> None:
  """Raises CheckpointError if the directory holds a run of another configuration or of other data.

  The data may have moved: their checksum counts, not their place. A run that was refused or stopped before anything
  was kept of it, which `begun` says, has nothing to resume, so it may begin anew.
  """
  path = workdir / 'config.json'
  if path.exists() and begun and not allow_config_change:
    old_config, old_facts = read(workdir)
    changed = list(configs.differences(configs.to_json(old_config), configs.to_json(config)))
    changed = [field for field in changed if field.split(':')[0] not in WITHOUT_EFFECT]
    if changed:
      raise CheckpointError(
        f'{workdir} holds a run with another configuration: {"; ".join(changed)}. '
        'Take another --workdir, or go on with --allow_config_change'
      )
    if old_facts != facts:
      place = config.data.dir or ', '.join(config.data.dirs)
      raise CheckpointError(f'{workdir} was trained on other data than {place} holds; take another --workdir')


def begin(workdir: Path, config: ConfigDict, facts: DataFacts) -> None:
  """Writes config.json and dataset.json, from which the model can be rebuilt."""
  if jax.process_index() == 0:
    write_json(workdir / 'dataset.json', facts.to_json())
    write_json(workdir / 'config.json', configs.to_json(config))


def read(workdir: Path) -> tuple[ConfigDict, DataFacts]:
  """The configuration and data facts of a run."""
  config = _read_json(workdir / 'config.json')
  facts = _read_json(workdir / 'dataset.json')
  try:
    return configs.from_json(config), DataFacts.from_json(facts)
  except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise CheckpointError(f'{workdir}: config.json or dataset.json is not as it was written ({reason})') from error


def write_json(path: Path, value: Any) -> None:
  """Writes a file of a run, whole or not at all; its folder is made if need be."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial_path = path.with_suffix('.partial')
  partial_path.write_text(json.dumps(value, indent=2, allow_nan=False) + '\n')
  partial_path.replace(path)


def _read_json(path: Path) -> Any:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise CheckpointError(f'--workdir: {path.parent} holds no run: {path.name} is missing') from None
  except (OSError, ValueError) as error:
    raise CheckpointError(f'{path} cannot be read: {" ".join(str(error).split())}') from error


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A model restored for evaluation, on whatever devices there are here.

  Attributes:
    step: of the checkpoint.
    variables: the weights to evaluate, the averaged ones where the run kept them.
  """

  config: ConfigDict
  facts: DataFacts
  tasks: tuple[Task, ...]
  model: MultiTaskModel
  mesh: Mesh
  step: int
  variables: Mapping[str, Any]
  label_stats: Mapping[str, LabelStats]


def restore(workdir: Path, *, step: int | None = None) -> TrainedModel:
  """The model of a run, at the step that was best on validation unless another is asked for."""
  config, facts = read(workdir)
  if not (workdir / 'checkpoints').is_dir():
    raise CheckpointError(f'--workdir: {workdir} holds no checkpoint yet; go on with mtl-jax train')
  chosen = facts.selected(config)
  names = grain.names(chosen, config.objective.grain)
  model, mesh = multitask.from_config(config, chosen), sharding.make_mesh()
  make_state = partial(
    init_state,
    config.train.seed,
    model=model,
    tx=optimizer.from_config(config),
    objective=objectives.from_config(config, names),
    label_stats={task.name: task.empty_stats() for task in chosen},
    input_shape=(*facts.image_size, 3),
    ema_decay=config.optimizer.ema_decay,
    num_losses=len(names),
  )
  checkpoints = Checkpoints(workdir)
  try:
    if step is None:
      clock = checkpoints.clock()
      step = clock.best_step or clock.step
    like = checkpoint.abstract_state(make_state, sharding.replicated(mesh))
    restored = checkpoints.restore(like, step=step)
  finally:
    checkpoints.close()
  assert restored is not None  # A step that is not there has raised.
  state = restored[0]
  return TrainedModel(config, facts, chosen, model, mesh, step, state.eval_variables, state.label_stats)
