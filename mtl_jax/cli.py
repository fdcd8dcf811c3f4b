"""The command line: verbs, flags and exit codes; nothing else."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

import mtl_jax
from mtl_jax.config.describe import help_lines
from mtl_jax.errors import UserError, one_line, printable
from mtl_jax.platform import devices, launcher, processes
from mtl_jax.platform.address import local_path, workdir
from mtl_jax.training import interrupt

DEMO_WORKDIR = 'mtl_jax_demo'
WORKDIR = 'a folder, or one in a bucket of Google: gs://BUCKET/RUN'
CONFIG_PREFIX = '--config.'
IN_ASCII = str.maketrans({'—': '-', '↑': '^', '↓': 'v', '≤': '<=', '\N{MINUS SIGN}': '-'})  # What our tables hold.


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one verb. Returns the exit code: 0 done, 2 bad input, 3 diverged, 4 hung, 75 interrupted and saved."""
  _set_up_logging()
  with interrupt.from_the_start():
    return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  plain, overrides = _split_overrides(arguments)
  try:
    options = _parser().parse_args(plain)
    if overrides and 'config' not in options:
      raise UserError(f'{CONFIG_PREFIX}{overrides[0]}: {options.verb} takes no configuration')
    options.overrides = overrides
    if 'coordinator' not in options:
      return _run(options)
    flags = {name: getattr(options, name) for name in launcher.PLAIN}
    return processes.run(
      partial(_run, options),
      launcher.find(os.environ, **flags),
      timeout_secs=options.coordinator_timeout,
      heartbeat_secs=options.heartbeat,
    )
  except UserError as error:
    _show(f'mtl-jax: error: {printable(str(error))}', sys.stderr)
    return error.exit_code
  except BrokenPipeError:  # The reader of our output has left, as `head` does.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except OSError as error:  # A disk that is full, a folder that may not be written.
    _show(f'mtl-jax: error: {printable(one_line(error))}', sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('mtl-jax: interrupted; the same command starts again', file=sys.stderr)
    return 75


def _show(text: str | Path, stream: TextIO | None = None) -> None:
  """Prints what may hold foreign names: they cannot steer the terminal, and need not be in its encoding."""
  stream = sys.stdout if stream is None else stream
  encoding = getattr(stream, 'encoding', None) or 'utf-8'
  shown = printable(str(text), keep='' if isinstance(text, Path) else '\n')
  plain = shown.translate(IN_ASCII if not encoding.lower().startswith('utf') else {})
  print(plain.encode(encoding, 'backslashreplace').decode(encoding), file=stream)


def _run(options: argparse.Namespace) -> int:
  with devices.in_one_line():
    return options.run(options)


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Parts `--config.a.b=value` or `--config.a.b value` from the rest; returns the rest and `a.b=value`."""
  plain, overrides = [], []
  remaining = list(arguments)
  while remaining:
    argument = remaining.pop(0)
    if not argument.startswith(CONFIG_PREFIX):
      plain.append(argument)
      continue
    override = argument.removeprefix(CONFIG_PREFIX)
    if '=' not in override and remaining and not remaining[0].startswith('--'):
      override = f'{override}={remaining.pop(0)}'
    overrides.append(override)
  return plain, overrides


class _Parser(argparse.ArgumentParser):
  """Tells of wrong usage in one line, as all else is told."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message}; see {self.prog} --help')


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog='mtl-jax', description=mtl_jax.__doc__, allow_abbrev=False)
  parser.add_argument('--version', action='version', version=f'mtl-jax {mtl_jax.__version__}')
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(name: str, run, text: str, *, several: bool = False) -> argparse.ArgumentParser:
    added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
    added.set_defaults(run=run)
    if several:
      _add_processes(added)
    return added

  demo = verb('demo', _demo, 'train the joint and the single-task models on drawn faces and compare them')
  demo.add_argument('--workdir', type=workdir, default=Path(DEMO_WORKDIR), help=f'default: {DEMO_WORKDIR}')

  prepare = verb('prepare', _prepare, 'read a data set once and store it for training')
  prepare.add_argument(
    'set',
    metavar='SET',
    help='celeba, clothing, cub, fairface, mtfl, utkface, synthetic, synthetic:expressions, tfds:NAME, or your FILE.py',
  )
  prepare.add_argument(
    '--source',
    metavar='DIR',
    help="folder with the files of the set; TFDS's data_dir; not needed where FILE.py's open_source() takes none",
  )
  prepare.add_argument('--out', metavar='DIR', required=True, help='folder to make, may be in a bucket')
  prepare.add_argument('--image_size', type=int, nargs=2, metavar=('H', 'W'), default=(64, 64), help='default: 64 64')
  prepare.add_argument(
    '--encoding',
    choices=('decoded', 'jpeg'),
    default='decoded',
    help='keep pixels, or JPEGs of that size, a quarter to a seventh as large; default: decoded',
  )
  prepare.add_argument(
    '--fit',
    choices=('squash', 'crop', 'pad'),
    default='squash',
    help='images of other shapes: squash them, crop to their middle, or pad with black; default: squash',
  )
  prepare.add_argument(
    '--crop_margin',
    type=float,
    metavar='M',
    help='crop train images to their landmarks and M times their extent at each side; 0.9 frames them as the test '
    'images are (mtfl)',
  )
  prepare.add_argument('--num', type=int, default=4000, help='faces to draw (synthetic)')
  prepare.add_argument('--seed', type=int, default=0, help='of the faces drawn (synthetic)')
  prepare.add_argument(
    '--parsing', action='store_true', help='a task more: the part of the face that each pixel shows (synthetic)'
  )

  train = verb('train', _train, 'train a model; resumes by itself if the workdir holds a checkpoint', several=True)
  _add_config(train)

  evaluation = verb('eval', _eval, 'evaluate a checkpoint on a whole split', several=True)
  evaluation.add_argument('--workdir', required=True, help=WORKDIR)
  evaluation.add_argument('--data', metavar='DIR', help='another prepared set')
  evaluation.add_argument('--split', choices=('train', 'val', 'test'), default='test')
  evaluation.add_argument('--step', type=int, help='another checkpoint than the best')
  evaluation.add_argument('--predictions', metavar='FILE.npz', help='write every prediction')
  slices = 'also the metrics of the images with each value of a label, with intervals: attributes/Male,attributes/Young'
  evaluation.add_argument('--slices', metavar='LABELS', type=lambda text: text.split(','), default=(), help=slices)

  evaluation.add_argument(
    '--tune_thresholds',
    metavar='METRIC',
    nargs='?',
    const='balanced_accuracy',
    default='',
    help='pick the threshold of each attribute on validation, by balanced_accuracy (default) or f1, and keep it',
  )

  predict = verb('predict', _predict, 'predict for image files, a JSON line each')
  predict.add_argument('--workdir', required=True, help=WORKDIR)
  predict.add_argument('images', type=local_path, nargs='+', metavar='IMAGE', help='image files, or folders of them')
  predict.add_argument('--out', type=local_path, metavar='DIR', help='draw the predictions into this folder')
  predict.add_argument('--csv', type=local_path, metavar='FILE', help='write a table with a row for each image')
  predict.add_argument(
    '--align', action='store_true', help="turn, scale and move photos to the training set's mean landmarks first"
  )
  predict.add_argument('--step', type=int, help='another checkpoint than the best')
  tuned = 'also say yes or no to each attribute, by the thresholds of `eval --tune_thresholds`'
  predict.add_argument('--tuned_thresholds', action='store_true', help=tuned)

  text = 'train joint and single-task models with several seeds and test the difference'
  study = verb('study', _study, text, several=True)
  _add_config(study)

  sweep = verb('sweep', _sweep, 'search fields and loss weights, and draw the front of the tasks', several=True)
  _add_config(sweep)

  affinity = verb('affinity', _affinity, 'measure how tasks affect each other in training, and suggest groups')
  _add_config(affinity)

  for printing in (evaluation, study, sweep, affinity):
    printing.add_argument('--json', action='store_true', help='print JSON instead of a table')

  report = verb(
    'report', _report, 'rebuild report.html of a study, a sweep, an affinity run, or of one or several runs'
  )
  report.add_argument('--workdir', required=True, help=WORKDIR)
  report.add_argument('--pictures', action='store_true', help='show test faces; they may be photos of real people')

  exporting = verb('export', _export, 'write the model as StableHLO for programs without this package')
  exporting.add_argument('--workdir', required=True, help=WORKDIR)
  exporting.add_argument('--out', metavar='DIR', required=True, help='folder for the program and its loader')
  exporting.add_argument('--step', type=int, help='another checkpoint than the best')

  for restoring in (evaluation, predict, exporting):
    restoring.add_argument(
      '--allow_code', action='store_true', help="run the run's own Python files, once you read them"
    )

  verb('doctor', _doctor, 'say what this machine has, what would run where, and what is missing')
  return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
  """Flags of verbs that train what a configuration says, and go on where they stopped; its fields end their help."""
  parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, help_lines()
  parser.add_argument(
    '--config',
    metavar='FILE.py',
    required=True,
    help=f'or the name of a preset; override with {CONFIG_PREFIX}a.b=VALUE',
  )
  parser.add_argument('--workdir', required=True, help=WORKDIR)
  parser.add_argument('--allow_config_change', action='store_true', help='go on with another configuration')


def _add_processes(parser: argparse.ArgumentParser) -> None:
  """Flags of verbs that run as several processes; launchers say the same in variables."""
  group = parser.add_argument_group(
    'several processes', 'needed only where the launcher does not say it: docs/scale.md'
  )
  group.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0')
  group.add_argument('--num_processes', type=int, metavar='N', help='of the whole run')
  group.add_argument('--process_id', type=int, metavar='I', help='of this process, from 0')
  group.add_argument(
    '--coordinator_timeout',
    type=float,
    metavar='S',
    default=processes.TIMEOUT_SECS,
    help=f'seconds in which all must have come together; default: {processes.TIMEOUT_SECS:g}',
  )
  group.add_argument(
    '--heartbeat',
    type=float,
    metavar='S',
    default=processes.HEARTBEAT_SECS,
    help=f'seconds after which a silent process is dead, and ends the others; default: {processes.HEARTBEAT_SECS:g}',
  )


# Verbs import what they need: `mtl-jax --help` and drawing faces in worker processes should not load JAX.


def _demo(options: argparse.Namespace) -> int:
  from mtl_jax import demo

  _show(demo.run(options.workdir))
  return 0


def _prepare(options: argparse.Namespace) -> int:
  mtl_jax.prepare(
    options.set,
    out=options.out,
    source=options.source,
    image_size=tuple(options.image_size),
    encoding=options.encoding,
    fit=options.fit,
    crop_margin=options.crop_margin,
    num=options.num,
    seed=options.seed,
    parsing=options.parsing,
    workers=os.cpu_count() or 1,
  )
  return 0


def _train(options: argparse.Namespace) -> int:
  mtl_jax.train(**_configured(options))
  return 0


def _eval(options: argparse.Namespace) -> int:
  found = mtl_jax.evaluate(
    options.workdir,
    data=options.data,
    split=options.split,
    step=options.step,
    predictions=options.predictions,
    slices=options.slices,
    tune_thresholds=options.tune_thresholds,
    allow_code=options.allow_code,
  )
  _print(options, found, lambda terminal: terminal.of_evaluation(found, workdir(options.workdir)))
  return 0


def _predict(options: argparse.Namespace) -> int:
  from mtl_jax.evaluation.predict import predict_files

  model = mtl_jax.load(
    options.workdir, step=options.step, tuned_thresholds=options.tuned_thresholds, allow_code=options.allow_code
  )
  return 2 if predict_files(model, options.images, out=options.out, table=options.csv, align=options.align) else 0


def _study(options: argparse.Namespace) -> int:
  found = mtl_jax.study(**_configured(options))
  _print(options, found, lambda terminal: terminal.of_study(found))
  return 0


def _sweep(options: argparse.Namespace) -> int:
  found = mtl_jax.sweep(**_configured(options))
  _print(options, found, lambda terminal: terminal.of_sweep(found))
  return 0


def _affinity(options: argparse.Namespace) -> int:
  found = mtl_jax.affinity(**_configured(options))
  _print(options, found, lambda terminal: terminal.of_affinity(found))
  return 0


def _print(options: argparse.Namespace, found: dict[str, Any], text: Callable[[Any], str]) -> None:
  """Prints a result once, from process 0: what `text` makes of it with `reports.terminal`, or its JSON."""
  if processes.index() == 0:
    if options.json:
      print(json.dumps(found, indent=2))
    else:
      from mtl_jax.reports import terminal

      _show(text(terminal))


def _configured(options: argparse.Namespace) -> dict[str, Any]:
  """The arguments of the functions that train what a configuration says."""
  return {
    'config': options.config,
    'workdir': options.workdir,
    'overrides': options.overrides,
    'allow_config_change': options.allow_config_change,
  }


def _report(options: argparse.Namespace) -> int:
  _show(mtl_jax.report(options.workdir, pictures=options.pictures))
  return 0


def _export(options: argparse.Namespace) -> int:
  _show(mtl_jax.export(options.workdir, options.out, step=options.step, allow_code=options.allow_code))
  return 0


def _doctor(options: argparse.Namespace) -> int:
  del options
  from mtl_jax import doctor

  _show(doctor.describe())
  return 0


class _BarAwareHandler(logging.Handler):
  """Log lines on stderr, above a progress bar if there is one."""

  def emit(self, record: logging.LogRecord) -> None:
    tqdm.write(printable(self.format(record)), file=sys.stderr)


def _set_up_logging() -> None:
  logger = logging.getLogger('mtl_jax')
  logger.setLevel(logging.INFO)
  logger.propagate = False
  if not any(isinstance(handler, _BarAwareHandler) for handler in logger.handlers):  # Others may listen too.
    logger.addHandler(_BarAwareHandler())


if __name__ == '__main__':
  sys.exit(main())
