"""Saves and restores a run with Orbax: state and progress are one checkpoint; the last two and the best are kept."""

import dataclasses
import logging
import math
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import msgspec
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from mtl_jax.errors import CheckpointError, UserError, one_line
from mtl_jax.platform import address, atomic_write, json_file, processes
from mtl_jax.run import digests
from mtl_jax.run.state import TrainState

SAVING = 'async_save'  # The name of Orbax's thread that waits for the files of a save.
ANOTHER = 'it is damaged; name another --step, or delete its folder'
AS_IT_WAS = 'what was saved before is as it was: make room or mend the folder, and the same command goes on from there'
FORMAT = 1  # Of what a checkpoint holds; a reader refuses any other.
MEANING = ('kind', 'name', 'labels', 'classes', 'mirrored')  # Fields of a task that decide what its outputs stand for.

Count = Annotated[int, msgspec.Meta(ge=0)]


class OtherModelError(CheckpointError):
  """A checkpoint holds other arrays than a configuration makes, or other labels than it names."""


@dataclasses.dataclass
class TrainProgress:
  """Progress of a run, besides the state on the devices.

  Attributes:
    step: optimizer steps taken.
    spent: seconds by what they went into, over all restarts: see `goodput`.
    best_step: the step whose validation score was the best so far; 0 before the first evaluation.
    best_score: that score, higher is better; it means nothing while best_step is 0.
    evaluations_since_best: for early stopping.
    stopped_early: the run has ended before its last step.
    passed_over: numbers of the batches that the run went back for, in order: see `nonfinite`.
    left_out: steps whose update was left out, as they were not finite.
  """

  step: Count = 0
  spent: dict[str, float] = dataclasses.field(default_factory=dict)
  best_step: Count = 0
  best_score: float = 0.0
  evaluations_since_best: Count = 0
  stopped_early: bool = False
  passed_over: list[Count] = dataclasses.field(default_factory=list)
  left_out: Count = 0

  def update_best(self, score: float) -> bool:
    """Updates the best validation score; True if this one is the best so far, as one that is not finite never is."""
    better = math.isfinite(score) and (self.best_step == 0 or score > self.best_score)
    if better:
      self.best_step, self.best_score = self.step, score
    self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
    return better


class Checkpoints:
  """The checkpoints of one working directory, `checkpoints/<step>/`."""

  def __init__(self, workdir: Path, *, data: dict[str, Any] | None = None, keep: Sequence[int] = ()):
    """Opens the checkpoints.

    Args:
      workdir: the directory.
      data: the facts that give the outputs their meaning, as JSON; kept with every save. See `workdir.DataFacts`.
      keep: steps whose checkpoints are kept, besides the last two and the best.

    Raises:
      CheckpointError: where they cannot be opened.
    """
    self._data = data
    logging.getLogger('absl').addFilter(_save_errors)  # Once, however many there are.
    logging.getLogger('asyncio').addFilter(_retrieved)
    if sys.unraisablehook is sys.__unraisablehook__:
      sys.unraisablehook = _without_late_callbacks
    self._local = address.is_local(workdir)
    self.directory = (workdir.resolve() if self._local else workdir) / 'checkpoints'
    atomic_write.refuse_link(self.directory)
    best = managers.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy([managers.LatestN(2), best, managers.CustomSteps(keep)]),
      create=True,
      enable_async_checkpointing=True,
      temporary_path_class=digests.Digested if self._local else None,  # In a bucket: Orbax's, with a commit file.
    )
    with self._wrap_errors('be opened'):
      self._manager = ocp.CheckpointManager(self.directory, options=options)

  def save(self, state: TrainState, progress: TrainProgress) -> None:
    """Starts a save; returns as soon as the state has left the devices. A step is saved once.

    Raises:
      CheckpointError: where this save cannot begin, or the one before it failed, as on a full disk.
    """
    if progress.step in self._manager.all_steps():
      return
    if self._local and not self.directory.is_dir():
      raise CheckpointError(f'{self.directory} has vanished, so step {progress.step} cannot be saved; bring it back')
    fields = {'format': FORMAT, 'data': self._data, **dataclasses.asdict(progress)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), clock=ocp.args.JsonSave(fields))  # pyright: ignore
    metrics = {'score': progress.best_score} if progress.best_step == progress.step else None
    with self._wrap_errors('be saved'):
      self._manager.save(progress.step, args=args, metrics=metrics, force=True)

  def restore(self, like: TrainState, *, step: int | None = None) -> tuple[TrainState, TrainProgress] | None:
    """State and progress of one step, the latest by default; None if there is no checkpoint at all.

    What it reads is taken as sound: see `check`, and `digests.set_aside_damaged`.

    Args:
      like: the state's shapes, types and shardings, as `jax.eval_shape` gives them; the mesh may differ from
        the one that saved.
      step: a step that was saved.

    Raises:
      OtherModelError: for a checkpoint of another model, optimizer or labels.
      CheckpointError: for a step that was not saved, or a checkpoint of another version.
    """
    self.wait()  # A save under way is no checkpoint yet.
    step = self._choose(step)
    if step is None:
      return None
    place, progress, data = self.directory / str(step), self.progress(step), self.data(step)
    if data and self._data and _meaning(data) != _meaning(self._data):
      raise OtherModelError(f'{place}: has learned other tasks, labels or classes than the configuration and data name')
    with self._wrap_errors('be restored', advice=ANOTHER):
      saved = _shapes(ocp.StandardCheckpointHandler().metadata(place / 'state').tree)  # pyright: ignore
      wanted = _shapes(like)
      if different := [name for name in sorted(saved | wanted, reverse=True) if saved.get(name) != wanted.get(name)]:
        shapes = (shapes.get(different[0], 'not there') for shapes in (saved, wanted))
        raise OtherModelError(f'{place}: {different[0]} is {" in it, but ".join(map(str, shapes))} here')
      args = ocp.args.Composite(state=ocp.args.StandardRestore(like))  # pyright: ignore
      return self._manager.restore(step, args=args)['state'], progress

  def check(self, step: int) -> None:
    """Raises CheckpointError for a step that is not, byte for byte, as it was saved, or was not saved.

    The objects of a bucket are checked by its own checksums as they are read.
    """
    self._choose(step)
    if self._local and (found := digests.damage(self.directory / str(step))):
      others = ', '.join(str(other) for other in self.steps() if other != step) or 'none'
      raise CheckpointError(f'{self.directory / str(step)} is damaged: {found}; other steps: {others}')

  def progress(self, step: int | None = None) -> TrainProgress:
    """The progress of one step, the latest by default."""
    step = self._choose(step)
    if step is None:
      raise CheckpointError(f'{self.directory.parent} holds no checkpoint; start with: mtl-jax train --workdir')
    path, fields = self._clock(step)
    if fields.get('format') != FORMAT:
      raise CheckpointError(
        f'{path.parent.parent} has format {fields.get("format")}; this version reads format {FORMAT}: use the version '
        'of mtl-jax that dataset.json beside it names, or train anew in another --workdir'
      )
    return json_file.convert(fields, TrainProgress, place=path, advice=ANOTHER)

  def data(self, step: int) -> dict[str, Any] | None:
    """The data facts saved with a step; None for those of an earlier version."""
    path, fields = self._clock(step)
    found = fields.get('data')
    return found and json_file.convert(found, json_file.Fields, place=path, advice=ANOTHER)

  def _clock(self, step: int) -> tuple[Path, dict[str, Any]]:
    path = self.directory / str(step) / 'clock' / 'metadata'  # As Orbax names the file.
    return path, json_file.read(path, json_file.Fields, advice=ANOTHER)

  def steps(self) -> list[int]:
    """The saved steps, in order."""
    return sorted(self._manager.all_steps())

  def drop_after(self, step: int) -> None:
    """Deletes the checkpoints after a step. Raises CheckpointError where there are some, but none up to it."""
    later = [saved for saved in self.steps() if saved > step]
    if later and later == self.steps():
      raise CheckpointError(
        f'{self.directory} holds none from before step {step + 1}, where the learning rate began to fall; go on from '
        f'step {later[-1]} with --allow_config_change, or take another --workdir'
      )
    with self._wrap_errors('be deleted'):
      for saved in later:
        self._manager.delete(saved)

  def _choose(self, step: int | None) -> int | None:
    steps = self.steps()
    if step is None:
      return steps[-1] if steps else None
    if step not in steps or not hasattr(step, '__index__'):
      have = ', '.join(map(str, steps)) or 'none'
      raise CheckpointError(f'{self.directory.parent} has no checkpoint of step {step!r}; it has {have}')
    return step

  def wait(self) -> None:
    """Waits for the last save. Raises CheckpointError if it failed."""
    with self._wrap_errors('be saved'):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save. Raises CheckpointError if it failed."""
    with self._wrap_errors('be saved'):
      self._manager.close()

  @contextmanager
  def _wrap_errors(self, what: str, *, advice: str = AS_IT_WAS) -> Iterator[None]:
    """Turns the exceptions of Orbax and of the file system into one of ours."""
    try:
      yield
    except UserError:
      raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
      raise CheckpointError(f'{self.directory}: cannot {what}: {_reason(error)}; {advice}') from error


def _reason(error: BaseException) -> str:
  """Shortens an error: without places in TensorStore's sources, and without its middle: the end says what failed."""
  text = re.sub(r'\s*\[source locations=.*', '', one_line(error))
  return text if len(text) <= 260 else f'{text[:120]} ... {text[-120:]}'


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """The shapes of a tree's arrays by their paths, of a state and of Orbax's metadata alike."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape) for path, leaf in leaves}


def _meaning(data: dict[str, Any]) -> bytes:
  tasks = json_file.convert(data.get('tasks'), list[json_file.Fields], place='the checkpoint', advice=ANOTHER)
  return msgspec.json.encode([[task.get(field) for field in MEANING] for task in tasks])


def _score(metrics: dict[str, float]) -> float:
  return metrics['score']


def abstract_state(state_fn: Any, sharding: Any) -> TrainState:
  """Shapes, types and shardings (one for all, or a tree) of the state `state_fn()` would make, without making it."""
  shapes = jax.eval_shape(state_fn)
  shardings = jax.tree.map(lambda _: sharding, shapes) if isinstance(sharding, jax.sharding.Sharding) else sharding
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
  )


def _without_late_callbacks(raised: Any) -> None:
  """Drops tracebacks of TensorStore's threads that find Orbax's event loop closed, dozens after a save that failed."""
  if raised.exc_type is not RuntimeError or str(raised.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(raised)


def _retrieved(record: logging.LogRecord) -> bool:
  """Drops what the writes of a failed save raise after the first, which is reported; asyncio logs them as it ends."""
  return 'was never retrieved' not in record.getMessage()


def _save_errors(record: logging.LogRecord) -> bool:
  """Drops what Orbax logs, a dozen lines of every save, but errors.

  Of those, tracebacks go too: what it raises becomes a one-line error; where several processes save, they end with it.

  There the others wait, and so does Orbax here before it raises, for a process whose part of a save has failed.
  """
  if '/orbax/' not in record.pathname:
    return True
  failed = record.exc_info and record.exc_info[1]
  if failed and processes.count() > 1 and threading.current_thread().name == SAVING:
    error = CheckpointError(f'a checkpoint cannot be saved: {_reason(failed)}; {AS_IT_WAS}')
    error.__cause__ = failed
    processes.fail(error)
  return record.levelno >= logging.ERROR and not failed
