"""Evaluates a trained run on a split, from its workdir, and writes the JSON."""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from mtl_jax.config import choose
from mtl_jax.data.input import mixture
from mtl_jax.data.input.mixture import DataSet, Mixture
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.source import SPLITS
from mtl_jax.data.store import cache as sets
from mtl_jax.data.store.reader import Store
from mtl_jax.errors import DataError, UserError, one_line
from mtl_jax.evaluation import evaluate, thresholds
from mtl_jax.evaluation import slices as slicing
from mtl_jax.metrics.binary import TUNED_BY
from mtl_jax.platform import address, npz
from mtl_jax.platform.progress_bar import bar
from mtl_jax.run import trained_model, workdir
from mtl_jax.run.features import FeatureCache
from mtl_jax.run.trained_model import TrainedModel
from mtl_jax.tasks import Task

log = logging.getLogger('mtl_jax')


def evaluate_workdir(
  directory: Path,
  *,
  data: Path | str | None = None,
  split: str = 'test',
  step: int | None = None,
  predictions: Path | None = None,
  slices: Sequence[str] = (),
  tune_thresholds: str = '',
  allow_code: bool = False,
) -> dict[str, Any]:
  """Evaluates a checkpoint of a run: `mtl_jax.evaluate`, whose arguments and result these are.

  The labels of another set, `data`, are renamed as the run's were, and what the model predicts beyond them is not
  evaluated; the result is then written to `eval/<its name>-<split>.json`. A file that cannot be written is warned of.
  """
  if split not in SPLITS:
    raise DataError(f'no split {split!r}; there are {", ".join(SPLITS)}')
  if tune_thresholds:
    choose(tune_thresholds, TUNED_BY, field=thresholds.FLAG)
    if split == 'val':
      raise DataError(f'--split: val is what {thresholds.FLAG} looks at; report test or train')
  if predictions:
    _make_room(predictions)
  model = trained_model.restore(directory, step=step, allow_code=allow_code)
  settings = model.config.data
  place = data or settings.dir
  if data:
    opened = sets.open_set(data, corrupt_share=settings.corrupt_share)
    store = mixture.rename(opened, mixture.parse_renames(settings.rename))
  else:
    store = mixture.open_data(settings)
  store = _numbered_as(model.tasks, store)
  tasks, by = _common_tasks(model, store), slicing.choose(slices, store)
  part, result = _predictions(model, store, split, directory=directory)
  found = {
    'step': model.step,
    'split': split,
    'num_examples': len(part),
    'data': address.absolute(place) if address.is_address(place) else str(store.directory),
    'device': jax.devices()[0].device_kind,
    'tasks': evaluate.task_metrics(result.predictions, part, tasks),
    'baseline': evaluate.baseline_metrics(model.label_stats, part, tasks),
  }
  if by:
    found |= slicing.of_split(by, result.predictions, part, tasks, store, name=split)
  if tune_thresholds:
    own = mixture.open_data(settings) if data else store
    val, on_val = _predictions(model, own, 'val', directory=directory)
    picked = thresholds.tune(model.tasks, on_val.predictions, val, by=tune_thresholds)
    deciding = [task for task in thresholds.with_thresholds(tasks, picked) if task.name in picked]
    metrics = evaluate.task_metrics(result.predictions, part, deciding)
    found['tuned'] = {'by': tune_thresholds, 'thresholds': picked, 'tasks': metrics}
  if jax.process_index() == 0:
    name = f'{address.name(data)}-{split}' if data else split
    place = directory / 'eval' / f'{name}.json'
    with _work_kept(place):
      workdir.write_json(place, found, root=directory)
    if tune_thresholds:
      with _work_kept(directory / thresholds.FILE):
        tuned = found['tuned']['thresholds']
        saved: thresholds.SavedThresholds = {'step': model.step, 'by': tune_thresholds, 'tasks': tuned}
        workdir.write_json(directory / thresholds.FILE, saved, root=directory)
    if predictions:
      with _work_kept(predictions):
        npz.write(predictions, evaluate.dump(result, part))
  return found


def _predictions(
  model: TrainedModel, store: DataSet, split: str, *, directory: Path
) -> tuple[Split, evaluate.Evaluation]:
  """Loads a split of a set, and predicts it."""
  partial_ok = bool(model.config.data.dirs)
  part = mixture.load_split(store, split, model.tasks, missing_ok=True, partial_ok=partial_ok)
  with bar(len(part), description=f'eval {split}', unit='image', enabled=jax.process_index() == 0) as progress:
    return part, evaluate.evaluate_split(
      _on_features(model, part, split, directory=directory, store=store),
      model.variables,
      model.label_stats,
      compiled_step=evaluate.compile_eval_step(model.model, model.tasks, model.mesh),
      mesh=model.mesh,
      batch_size=model.config.eval.batch_size,
      on_batch=lambda done: progress.update(done - progress.n),
    )


@contextlib.contextmanager
def _work_kept(place: Path) -> Iterator[None]:
  """Warns of a file that cannot be written: the work is done, and the result still comes back."""
  try:
    yield
  except (OSError, UserError) as error:
    log.warning('warning: %s could not be kept: %s', place, one_line(error))


def _on_features(model: TrainedModel, part: Split, split: str, *, directory: Path, store: DataSet) -> Split:
  """The split with features of the model's frozen stages in place of its images, where they can be kept."""
  cache = FeatureCache(model.config, model.model, model.variables, store.checksum, model.mesh, directory)
  try:
    return cache.replace_images({split: part})[split]
  except DataError as error:  # A folder that may not be written is no reason not to evaluate.
    log.warning('warning: %s', error)
    return part


def _make_room(predictions: Path) -> None:
  """Makes the folder of a file to be written, so that a wrong path is an error before the work and not after it."""
  if predictions.suffix != '.npz' or predictions.is_dir():
    raise DataError(f'--predictions: {predictions} must be a file named *.npz')
  try:
    predictions.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=predictions.parent):
      pass
  except OSError as error:
    raise DataError(f'--predictions: cannot write {predictions}: {error.strerror}') from error


def _numbered_as(tasks: Sequence[Task], store: DataSet) -> DataSet:
  """The set with its classes numbered as those of the same names in `tasks`.

  Raises:
    DataError: where a task is of another kind there, or has other classes.
  """
  if isinstance(store, Mixture):
    return dataclasses.replace(store, parts=tuple(cast(Store, _numbered_as(tasks, part)) for part in store.parts))
  own, labels = {task.group: task for task in tasks}, dict(store.labels)
  for other in store.tasks:
    if other.name not in own:
      continue
    try:
      numbers = own[other.name].numbers_of(other)
    except ValueError as error:
      raise DataError(f'{store.directory}: the model has learned another {other.name!r}: here it {error}') from error
    if numbers != sorted(numbers):
      values = np.where(store.mask[other.name], labels[other.name], 0)
      labels[other.name] = np.asarray(numbers, values.dtype)[values.astype(np.uint16)]
  return dataclasses.replace(store, labels=labels)


def _common_tasks(model: TrainedModel, store: DataSet) -> tuple[Task, ...]:
  """The model's tasks that the set has labels for. Raises DataError if it has none, or images of another size."""
  if tuple(store.image_size) != model.facts.image_size:
    have, want = ('x'.join(map(str, size)) for size in (store.image_size, model.facts.image_size))
    size = ' '.join(map(str, model.facts.image_size))
    raise DataError(
      f'{store.directory} holds images of {have}, the model takes {want}; prepare them with --image_size {size}'
    )
  if (asked := model.facts.fit) != store.fit:
    log.warning('warning: %s was prepared with --fit %s, the model learned from %s', store.directory, store.fit, asked)
  there = {task.name: task.labels for task in store.tasks}
  mixed = bool(model.config.data.dirs)  # Only then may labels of a task be missing.
  lacking = {
    task.name: [label for label in task.labels if label not in there.get(task.group, ())] for task in model.tasks
  }
  common = tuple(
    task for task in model.tasks if task.group in there and not (mixed and len(lacking[task.name]) == len(task.labels))
  )
  if not common:
    raise DataError(f'{store.directory} has labels for {", ".join(there)}, the model predicts none of these')
  for task in model.tasks:
    if task not in common:
      log.warning('warning: %s has no labels for %s; it is not evaluated', store.directory, task.name)
    elif mixed and lacking[task.name]:
      log.warning('warning: %s lacks %d labels of %s', store.directory, len(lacking[task.name]), task.name)
  return common
