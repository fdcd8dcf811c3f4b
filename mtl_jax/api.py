"""The verbs of the command line as functions; `import mtl_jax` gives all of them.

Paths are text or `pathlib.Path`. A configuration is the name of a preset, a Python file with a `get_config()`, or a
`ConfigDict`, with overrides as texts `a.b=value` or as values by field or group. Bad input raises a `UserError` with
the message that the command line prints.
"""

# Functions import what they need: drawing faces in worker processes, and `mtl-jax --help`, should not load JAX.

import dataclasses
import logging
import operator
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.config.load import Overrides
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.kinds import shown
from mtl_jax.platform import address, devices

if TYPE_CHECKING:
  from mtl_jax.evaluation.model import Model

Config: TypeAlias = str | Path | ConfigDict
Place: TypeAlias = str | Path


def get_config(config: Config = 'default', overrides: Overrides = ()) -> ConfigDict:
  """A configuration, checked and locked.

  Args:
    config: the name of a preset, a Python file, or a configuration, of which a copy is made.
    overrides: texts `a.b=value`, or values by field or by group: `{'train.steps': 100, 'model': {'width': 8}}`.

  Raises:
    ConfigError: for a file or preset that there is not, and for a field that is unknown, ill-typed or out of range.
  """
  return configs.load(config, overrides)


def _with_effect(config: Config, overrides: Overrides) -> ConfigDict:
  """`get_config` for one model, which also refuses weights that its objective does not read.

  Those of a preset or a file stay as they are, for other objectives: they also sum the validation loss.
  """
  checked = get_config(config, overrides)
  if weights := [name for name, _ in configs.named(overrides) if name.startswith('objective.weights')]:
    from mtl_jax.objectives.options import known_options

    name = checked.objective.name
    known = known_options(name)
    if 'weights' not in known:
      way = 'set config.objective.options.preference' if 'preference' in known else 'leave it out, or take fixed'
      raise ConfigError(f'config.{weights[0]} does not weigh the losses under the objective {name!r}; {way}')
  return checked


def prepare(
  name: Place,
  *,
  out: Place,
  source: Place | None = None,
  image_size: int | tuple[int, int] = (64, 64),
  encoding: str = 'decoded',
  fit: str = 'squash',
  crop_margin: float | None = None,
  num: int = 4000,
  seed: int = 0,
  parsing: bool = False,
  workers: int = 1,
) -> str:
  """Reads a data set once and stores it for training.

  Args:
    name: celeba, clothing, cub, fairface, mtfl, utkface, synthetic, synthetic:expressions, `tfds:NAME`, or a Python
      file of your own.
    out: the folder to make, which may be in a bucket.
    source: the folder with the files of the set; TFDS's data_dir.
    image_size: height and width of the stored images in pixels, or one number for both.
    encoding: decoded (pixels) or jpeg (a quarter to a seventh as large).
    fit: the way of images of other shapes to that size: squash, crop (their middle) or pad (black); `predict` does as
      the set that a model has learned from.
    crop_margin: of `mtfl`: crop train images to their landmarks and this many times their extent at each side.
    num: number of faces of a synthetic set.
    seed: of a synthetic set.
    parsing: adds the part of the face that each pixel shows as a task, to `synthetic`.
    workers: processes that draw a synthetic set; a script that asks for several must call this under
      `if __name__ == '__main__'`.

  Returns:
    The folder, for `data.dir`.

  Raises:
    DataError: for bad input, naming file and row.
  """
  from mtl_jax.data.prepare import prepare as prepare_set
  from mtl_jax.data.store import cache as sets

  place, sides = address.absolute(out), _sides(image_size)
  with devices.wrap_errors(), sets.new_set(place) as folder:
    prepare_set(
      str(name),
      source=None if source is None else address.local_path(source),
      out=folder,
      image_size=sides,
      num=num,
      seed=seed,
      crop_margin=crop_margin,
      encoding=encoding,
      fit=fit,
      parsing=parsing,
      workers=workers,
      log=logging.getLogger('mtl_jax').info,
    )
  return place


def _sides(image_size: Any) -> tuple[int, int]:
  try:
    height, width = map(operator.index, (image_size,) * 2 if isinstance(image_size, int) else image_size)
  except (TypeError, ValueError):
    told = 'image_size: give height and width in whole pixels, as (64, 64), or one number for both'
    raise DataError(f'{told}, not {shown(image_size)}') from None
  return height, width


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run of `train`.

  Attributes:
    workdir: its folder.
    step: the last one.
    best_step: the one that was best on validation; the last where the data has no validation split.
    stopped_early: True where `eval.patience` ended it.
  """

  workdir: Path
  step: int
  best_step: int
  stopped_early: bool

  def load(self) -> 'Model':
    """The model of the best step."""
    return load(self.workdir)

  def evaluate(self, **options: Any) -> dict[str, Any]:
    """Evaluates the best step on `test`, or as the options of `mtl_jax.evaluate` ask for: `split='val'`."""
    return evaluate(self.workdir, **options)


def train(
  config: Config,
  workdir: Place,
  *,
  overrides: Overrides = (),
  allow_config_change: bool = False,
  profile: bool = False,
) -> Run:
  """Trains a model, or resumes the run in the workdir.

  Args:
    config: see `get_config`, and so `overrides`.
    workdir: the run's folder, or one in a bucket of Google: `gs://BUCKET/RUN`.
    overrides: of single fields.
    allow_config_change: resume although the configuration differs from the one that began.
    profile: write a trace of a few steps, for TensorBoard or xprof, into the folder `profile` of the workdir.

  Raises:
    UserError: in one of its kinds, for bad input, a diverged loss, or a request to stop.
  """
  from mtl_jax.training import loop, profiling

  checked, directory = _with_effect(config, overrides), address.workdir(workdir)
  with devices.wrap_errors(), profiling.tracing(directory) if profile else nullcontext() as wrap_steps:
    progress = loop.train(checked, directory, allow_config_change=allow_config_change, wrap_steps=wrap_steps)
  return Run(directory, progress.step, progress.best_step or progress.step, progress.stopped_early)


def evaluate(
  workdir: Place,
  *,
  data: Place | None = None,
  split: str = 'test',
  step: int | None = None,
  predictions: Place | None = None,
  slices: Sequence[str] = (),
  tune_thresholds: str = '',
  allow_code: bool = False,
) -> dict[str, Any]:
  """Evaluates a checkpoint of a run on a whole split.

  Args:
    workdir: the run's folder.
    data: another prepared set.
    split: train, val or test.
    step: another checkpoint than the best.
    predictions: a `.npz` file for every prediction, label and mask.
    slices: labels, such as `attributes/Male`, for each value of which the metrics are taken by themselves.
    tune_thresholds: balanced_accuracy or f1: picks the threshold of each yes-or-no label by it, on validation, and
      keeps them with the run, for `load`.
    allow_code: see `load`.

  Returns:
    The content of `eval/<split>.json`.

  Raises:
    UserError: for a folder that holds no such checkpoint, or data that do not fit.
  """
  from mtl_jax.evaluation.command import evaluate_workdir

  with devices.wrap_errors():
    return evaluate_workdir(
      address.workdir(workdir),
      data=None if data is None else address.absolute(data),
      split=split,
      step=step,
      predictions=None if predictions is None else address.local_path(predictions),
      slices=slices,
      tune_thresholds=tune_thresholds,
      allow_code=allow_code,
    )


def load(
  workdir: Place, *, step: int | None = None, tuned_thresholds: bool = False, allow_code: bool = False
) -> 'Model':
  """Loads the trained model of a run, at the step that was best on validation unless another is named.

  Args:
    workdir: the run's folder.
    step: another checkpoint than the best.
    tuned_thresholds: predictions also say yes or no to each attribute, by the thresholds that `evaluate` has tuned.
    allow_code: run Python files that the run was made of (`FILE.py:NAME` in its configuration) and that you have not
      run before. Read them first.

  Raises:
    UserError: for a folder that holds no such checkpoint, or no thresholds of it.
  """
  from mtl_jax.evaluation import thresholds
  from mtl_jax.evaluation.model import Model
  from mtl_jax.run.trained_model import restore

  directory = address.workdir(workdir)
  trained = restore(directory, step=step, allow_code=allow_code)
  return Model(thresholds.tuned(directory, trained) if tuned_thresholds else trained)


def study(
  config: Config, workdir: Place, *, overrides: Overrides = (), allow_config_change: bool = False
) -> dict[str, Any]:
  """Trains joint and single-task models with several seeds, tests the differences, and writes the report.

  Arguments and errors are those of `train`.

  Returns:
    The content of `study.json`; nothing in processes other than the first.
  """
  from mtl_jax.studies import study as verb

  return _compared(verb.run, config, workdir, overrides, allow_config_change)


def sweep(
  config: Config, workdir: Place, *, overrides: Overrides = (), allow_config_change: bool = False
) -> dict[str, Any]:
  """Searches fields and loss weights, confirms the best on other seeds, draws the front, and writes the report.

  Arguments and errors are those of `train`; what is searched is in `config.sweep`.

  Returns:
    The content of `sweep.json`; nothing in processes other than the first. `best.py` beside it is a configuration.
  """
  from mtl_jax.sweeps import sweep as verb

  return _compared(verb.run, config, workdir, overrides, allow_config_change)


def affinity(
  config: Config, workdir: Place, *, overrides: Overrides = (), allow_config_change: bool = False
) -> dict[str, Any]:
  """Measures how tasks affect each other in training, suggests groups, and writes the report.

  Arguments and errors are those of `train`.

  Returns:
    The content of `affinity.json`.
  """
  from mtl_jax.affinities import affinity as verb

  return _compared(verb.run, config, workdir, overrides, allow_config_change)


def _compared(run: Any, config: Config, workdir: Place, overrides: Overrides, allow_config_change: bool) -> Any:
  checked, directory = get_config(config, overrides), address.workdir(workdir)
  with devices.wrap_errors():
    found = run(checked, directory, allow_config_change=allow_config_change)
  if found:
    report(directory)
  return found


def report(workdir: Place, *, pictures: bool = False, allow_code: bool = False) -> Path:
  """Writes `report.html` of a study, a sweep, an affinity run, or of one or several runs; returns its path.

  Args:
    workdir: the folder.
    pictures: show test images, which may be photos of real people.
    allow_code: see `load`; of a folder all its runs.

  Raises:
    UserError: for a file that is missing or damaged.
  """
  from mtl_jax import reports
  from mtl_jax.run import own_parts

  directory = address.workdir(workdir)
  for config in (directory / 'config.json', *directory.glob('*/config.json')) if allow_code else ():
    if config.is_file():
      own_parts.allow(config.parent)
  return reports.rebuild(directory, pictures=pictures)


def export(
  workdir: Place, out: Place, *, format: str = 'stablehlo', step: int | None = None, allow_code: bool = False
) -> Path:
  """Writes the model for programs without this package; returns the folder.

  Args:
    workdir: the run's folder.
    out: the folder to write into, made if need be; files of the same names in it are replaced.
    format: `stablehlo`, one program with its weights; or `safetensors`, weights by name with a loader in plain JAX and
      a model card, to publish.
    step: another checkpoint than the best.
    allow_code: see `load`.

  Raises:
    UserError: for a folder that holds no such checkpoint, or one that cannot be written.
  """
  from mtl_jax.evaluation import published, stablehlo
  from mtl_jax.reports import model_card
  from mtl_jax.run.trained_model import restore

  directory, folder = address.workdir(workdir), address.local_path(out)
  writers = {'stablehlo': stablehlo.write, 'safetensors': published.write}
  write = writers[configs.choose(format, tuple(writers), field='--format')]
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise DataError(f'--out: cannot make the folder {folder}: {error.strerror}') from error
  write(restore(directory, step=step, allow_code=allow_code), folder)
  if format == 'safetensors':
    model_card.write(directory, folder)
  return folder
