"""Experiment trackers, which get a run's metrics besides metrics.jsonl, each through its own client."""

import contextlib
import importlib
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mtl_jax.errors import CheckpointError, UserError, one_line
from mtl_jax.platform import json_file
from mtl_jax.run import workdir


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
  """Lets imports find no such module, unless it is imported already."""
  if module in sys.modules:
    yield
    return
  sys.modules[module] = None  # pyright: ignore[reportArgumentType]
  try:
    yield
  finally:
    del sys.modules[module]


with _hidden('torch'):  # tensorboardX imports it where it is installed, which takes a second and serves nothing here.
  from tensorboardX import summary
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

log = logging.getLogger('mtl_jax')

FIELD, PROJECT = 'config.train.trackers', 'mtl_jax'
IDS = 'trackers.json'  # In the workdir: the id of the run by the name of the service, which a resumed run goes on with.
# What has to be importable, and the extra of this package that installs it.
NEEDS = {'clu': ('clu.metric_writers', 'clu'), 'wandb': ('wandb', 'wandb'), 'mlflow': ('mlflow', 'mlflow')}
MOST_AT_ONCE = 100  # Parameters that MLflow takes in a call; of metrics it takes 1000.


class Tracker(Protocol):
  """The interface of trackers."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the values of one log line, by name."""

  def close(self) -> None:
    """Keeps what it was given."""


class Start(NamedTuple):
  """A start of a run, for which a tracker is opened.

  Attributes:
    name: of the run.
    folder: a local one, for files.
    config: the configuration's fields by their dotted names.
    step: it begins at; what came later is written again.
    run_id: that the service knows the run by; empty at its first start.
  """

  name: str
  folder: Path
  config: Mapping[str, Any]
  step: int
  run_id: str = ''


class TensorBoard:
  """Event files, without TensorFlow; a new one for every start."""

  def __init__(self, start: Start):
    # Without SummaryWriter's thread, whose failures on a full disk nobody could catch.
    suffix = f'.{start.step}.{secrets.token_hex(4)}'
    self._events = EventsWriter(str(start.folder / 'events'), filename_suffix=suffix)
    # TensorBoard drops what it has from there on, also of a start that came to no checkpoint.
    self._events.write_event(Event(step=start.step + 1, session_log=SessionLog(status=SessionLog.START)))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._events.write_event(Event(step=step, wall_time=time.time(), summary=summary.scalar(name, value)))
    self._events.flush()

  def close(self) -> None:
    self._events.close()


class Clu:
  """Event files by CLU's metric_writers, in a folder of their own; they need TensorFlow."""

  def __init__(self, start: Start):
    from clu import metric_writers

    self._writer = metric_writers.SummaryWriter(str(start.folder / 'clu'))
    self._writer.write_hparams({name: str(value) for name, value in start.config.items()})

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._writer.write_scalars(step, values)
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class Wandb:
  """A run of Weights & Biases; WANDB_PROJECT, WANDB_MODE and its other variables hold."""

  def __init__(self, start: Start):
    import wandb  # pyright: ignore[reportMissingImports]

    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', PROJECT),
      name=start.name,
      id=start.run_id or None,
      resume='allow',
      config=dict(start.config),
      dir=str(start.folder),
    )
    self.run_id = self._run.id

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


class Mlflow:
  """A run of MLflow, at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""

  def __init__(self, start: Start):
    import mlflow  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

    self._metric, self._client = Metric, mlflow.MlflowClient()
    if start.run_id:
      self.run_id = start.run_id
      self._client.update_run(self.run_id, status='RUNNING')
      return
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = self._client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else self._client.create_experiment(name)
    self.run_id = self._client.create_run(number, run_name=start.name).info.run_id
    fields = [Param(_allowed(name), str(value)[:500]) for name, value in start.config.items()]
    for first in range(0, len(fields), MOST_AT_ONCE):
      self._client.log_batch(self.run_id, params=fields[first : first + MOST_AT_ONCE])

  def write(self, step: int, values: Mapping[str, float]) -> None:
    now = int(1000 * time.time())
    metrics = [self._metric(_allowed(name), float(value), now, step) for name, value in values.items()]
    for first in range(0, len(metrics), MOST_AT_ONCE):
      self._client.log_batch(self.run_id, metrics=metrics[first : first + MOST_AT_ONCE])

  def close(self) -> None:
    self._client.set_terminated(self.run_id)


def _allowed(name: str) -> str:
  """A name with what MLflow takes in one."""
  return re.sub(r'[^\w\-. :/]', '-', name, flags=re.ASCII)


FILES: dict[str, Callable[[Start], Tracker]] = {'tensorboard': TensorBoard, 'clu': Clu}
SERVICES: dict[str, Callable[[Start], Any]] = {'wandb': Wandb, 'mlflow': Mlflow}


class _Service:
  """A service that may fail while a run goes on: from then on it gets nothing, and a line says so."""

  def __init__(self, name: str, tracker: Tracker):
    self._name, self._tracker = name, tracker

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._attempt(lambda tracker: tracker.write(step, values))

  def close(self) -> None:
    self._attempt(lambda tracker: tracker.close())

  def _attempt(self, act: Callable[[Any], None]) -> None:
    try:
      if self._tracker is not None:
        act(self._tracker)
    except Exception as error:  # Each client has exceptions of its own.
      self._tracker = None
      log.warning('warning: %s failed, the run goes on without it: %s', self._name, one_line(error)[:300])


def check(names: Sequence[str]) -> None:
  """Raises UserError for a tracker whose client is not installed."""
  for module, extra in (NEEDS[name] for name in names if name in NEEDS):
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise UserError(
        f"{FIELD}: {module} cannot be imported ({one_line(error)}); pip install 'mtl_jax[{extra}]'"
      ) from error


def open_all(names: Sequence[str], directory: Path, start: Start) -> list[Tracker]:
  """Opens the trackers of a run; those of services continue the run that `directory` names.

  Raises:
    UserError: for a service that cannot be opened.
  """
  found: list[Tracker] = [FILES[name](start) for name in names if name in FILES]
  services = [name for name in names if name in SERVICES]
  ids = _ids(directory) if services else {}
  for name in services:
    try:
      tracker = SERVICES[name](start._replace(run_id=ids.get(name, '')))
    except Exception as error:
      raise UserError(f'{FIELD}: {name} cannot be opened: {one_line(error)[:300]}') from error
    ids[name] = tracker.run_id
    found.append(_Service(name, tracker))
  if services:
    workdir.write_json(directory / IDS, ids)
  return found


def _ids(directory: Path) -> dict[str, str]:
  try:
    return json_file.read(directory / IDS, dict[str, str], advice='it is written anew')
  except CheckpointError:
    return {}
