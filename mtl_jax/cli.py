"""The command line: its verbs, flags and exit codes."""

import argparse
import inspect
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
WORKDIR = "the run's folder, which may be in a Google bucket: gs://BUCKET/RUN"
CONFIG_PREFIX = '--config.'
IN_ASCII = str.maketrans({'—': '-', '↑': '^', '↓': 'v', '≤': '<=', '\N{MINUS SIGN}': '-'})  # What our tables hold.


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one verb. Returns the exit code: 0 done, 2 bad input, 3 diverged, 4 hung, 75 interrupted and saved."""
  _set_up_logging()
  with interrupt.end_before_first_run():
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
  """Prints text that may hold foreign names: control characters are escaped, and so is what the encoding lacks."""
  stream = sys.stdout if stream is None else stream
  encoding = getattr(stream, 'encoding', None) or 'utf-8'
  shown = printable(str(text), keep='' if isinstance(text, Path) else '\n')
  plain = shown.translate(IN_ASCII if not encoding.lower().startswith('utf') else {})
  print(plain.encode(encoding, 'backslashreplace').decode(encoding), file=stream)


def _run(options: argparse.Namespace) -> int:
  with devices.wrap_errors():
    return options.run(options)


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates `--config.a.b=value` or `--config.a.b value` from other arguments; returns these, and `a.b=value`."""
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
  """Reports wrong usage in one line, like all other errors."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message}; see {self.prog} --help')


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='mtl-jax',
    description=f'{mtl_jax.__doc__} `mtl-jax VERB --help` has the flags and examples of a verb; begin with demo.',
    epilog='exit codes: 0 done, 2 bad input (one line says what), 3 diverged, 4 hung, 75 interrupted and saved',
    allow_abbrev=False,
  )
  parser.add_argument('--version', action='version', version=f'mtl-jax {mtl_jax.__version__}')
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(name: str, run: Callable, text: str, *examples: str, takes: str = '') -> argparse.ArgumentParser:
    epilog = '\n'.join(['examples:', *(f'  mtl-jax {name} {example}'.rstrip() for example in examples)])
    added = verbs.add_parser(
      name,
      help=text,
      description=f'{text[0].upper()}{text[1:]}.',
      epilog=f'{epilog}\n\n{help_lines()}' if takes == 'config' else epilog,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    added.set_defaults(run=run)
    if takes == 'config':
      text = 'a Python file with a get_config(), or the name of a preset'
      added.add_argument('--config', metavar='FILE.py', required=True, help=text)
    if takes:
      added.add_argument('--workdir', required=True, help=WORKDIR)
    if takes == 'config':
      text = 'go on though the run began with another configuration'
      added.add_argument('--allow_config_change', action='store_true', help=text)
    return added

  demo = verb('demo', _demo, 'train joint and single-task models on synthetic faces, and compare them', '')
  demo.add_argument('--workdir', type=workdir, default=Path(DEMO_WORKDIR), help=f'default: {DEMO_WORKDIR}')

  prepare = verb(
    'prepare',
    _calls(mtl_jax.prepare),
    'read a data set once, and store it for training',
    'celeba --source downloads/celeba --out data/celeba64',
    'synthetic --out data/faces --num 2000 --image_size 32 32',
  )
  prepare.add_argument(
    'name',
    metavar='SET',
    help='celeba, clothing, cub, fairface, mtfl, utkface, synthetic, synthetic:expressions, tfds:NAME, or your FILE.py',
  )
  prepare.add_argument(
    '--source',
    metavar='DIR',
    help="folder with the set's files, or TFDS's data_dir; synthetic sets need none, nor does FILE.py if its "
    'open_source() takes none',
  )
  prepare.add_argument('--out', metavar='DIR', required=True, help='folder to make, or one in a bucket')
  prepare.add_argument(
    '--image_size',
    type=int,
    nargs=2,
    metavar=('H', 'W'),
    default=(64, 64),
    help='height and width of the stored images in pixels; default: 64 64',
  )
  prepare.set_defaults(workers=os.cpu_count() or 1)
  prepare.add_argument(
    '--encoding',
    choices=('decoded', 'jpeg'),
    default='decoded',
    help='store pixels, or JPEGs, which take a quarter to a seventh of the space; default: decoded',
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
    help='mtfl: crop train images to their landmarks and M times their extent at each side; 0.9 frames them as the '
    'test images are',
  )
  prepare.add_argument('--num', type=int, default=4000, help='synthetic: number of faces; default: 4000')
  prepare.add_argument('--seed', type=int, default=0, help='synthetic: seed of the faces; default: 0')
  prepare.add_argument(
    '--parsing', action='store_true', help='synthetic: also the task parsing, the part of the face at each pixel'
  )

  train = verb(
    'train',
    _calls(mtl_jax.train),
    'train a model, or go on with the run in the workdir',
    '--config celeba_joint --workdir runs/joint --config.data.dir=data/celeba64',
    '--config my_config.py --workdir runs/mine --config.train.steps=500 --config.tasks=landmarks',
    takes='config',
  )
  train.add_argument('--profile', action='store_true', help='write a trace of a few steps into WORKDIR/profile')

  evaluation = verb(
    'eval',
    _calls(mtl_jax.evaluate, _show_table(lambda text, found, flags: text.of_evaluation(found, workdir(flags.workdir)))),
    "evaluate a run's model on a whole split, and write eval/SPLIT.json",
    '--workdir runs/joint',
    '--workdir runs/joint --split val --predictions predictions.npz',
    takes='run',
  )
  evaluation.add_argument('--data', metavar='DIR', help='another prepared set than the one it was trained on')
  evaluation.add_argument('--split', choices=('train', 'val', 'test'), default='test', help='default: test')
  evaluation.add_argument('--predictions', metavar='FILE.npz', help='also write every prediction, label and mask')
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

  predict = verb(
    'predict',
    _predict,
    'predict for image files; prints a line of JSON for each',
    '--workdir runs/joint photo.jpg',
    '--workdir runs/joint photos/ --out drawn --csv predictions.csv',
    takes='run',
  )
  predict.add_argument('images', type=local_path, nargs='+', metavar='IMAGE', help='image files, or folders of them')
  predict.add_argument('--out', type=local_path, metavar='DIR', help='draw the predictions over copies in this folder')
  predict.add_argument('--csv', type=local_path, metavar='FILE', help='also write a table with a row for each image')
  predict.add_argument(
    '--align', action='store_true', help="turn, scale and move photos to the training set's mean landmarks first"
  )
  tuned = 'also say yes or no to each attribute, by the thresholds of `eval --tune_thresholds`'
  predict.add_argument('--tuned_thresholds', action='store_true', help=tuned)

  study = verb(
    'study',
    _calls(mtl_jax.study, _show_table(lambda text, found, _: text.of_study(found))),
    'train joint and single-task models with several seeds, and test their differences',
    '--config study_celeba --workdir runs/study --config.data.dir=data/celeba224 --config.model.weights=FILE',
    takes='config',
  )
  sweep = verb(
    'sweep',
    _calls(mtl_jax.sweep, _show_table(lambda text, found, _: text.of_sweep(found))),
    'search fields and loss weights, confirm the best on other seeds, and draw the front of the tasks',
    '--config celeba_joint --workdir runs/sweep --config.sweep.weights_of=attributes,landmarks',
    takes='config',
  )
  affinity = verb(
    'affinity',
    _calls(mtl_jax.affinity, _show_table(lambda text, found, _: text.of_affinity(found))),
    'measure how tasks affect each other in training, and suggest groups to train together',
    '--config celeba_joint --workdir runs/affinity --config.data.dir=data/celeba64',
    takes='config',
  )
  report = verb(
    'report',
    _calls(mtl_jax.report, _show_path),
    'write report.html anew, of a study, a sweep, an affinity run, or one or several runs',
    '--workdir runs/study',
    takes='run',
  )
  report.add_argument('--pictures', action='store_true', help='show test images, which may be photos of real people')

  exporting = verb(
    'export',
    _calls(mtl_jax.export, _show_path),
    'write the model for programs without this package, or to publish it',
    '--workdir runs/joint --out exported',
    takes='run',
  )
  exporting.add_argument('--out', metavar='DIR', required=True, help='folder for the model and its loader')
  formats = 'one program with its weights (default), or weights by name with a loader in plain JAX and a model card'
  exporting.add_argument('--format', choices=('stablehlo', 'safetensors'), default='stablehlo', help=formats)

  for restoring in (evaluation, predict, exporting):
    restoring.add_argument(
      '--step', type=int, metavar='N', help='the checkpoint to use; default: the best on validation'
    )
  for restoring in (evaluation, predict, report, exporting):
    restoring.add_argument(
      '--allow_code', action='store_true', help='run the Python files that came with the run; read them first'
    )
  for printing in (evaluation, study, sweep, affinity):
    printing.add_argument('--json', action='store_true', help='print JSON instead of a table')
  for several in (train, evaluation, study, sweep):
    _add_processes(several)

  verb('doctor', _doctor, 'say what this machine has, what would run where, and what is missing', '')
  return parser


def _add_processes(parser: argparse.ArgumentParser) -> None:
  """Flags of verbs that run as several processes; launchers say the same in variables."""
  group = parser.add_argument_group(
    'several processes', 'for a run of several processes whose launcher does not say this: see docs/scale.md'
  )
  group.add_argument('--coordinator', metavar='HOST:PORT', help='address of process 0')
  group.add_argument('--num_processes', type=int, metavar='N', help='number of processes of the run')
  group.add_argument('--process_id', type=int, metavar='I', help='number of this process, from 0')
  group.add_argument(
    '--coordinator_timeout',
    type=float,
    metavar='S',
    default=processes.TIMEOUT_SECS,
    help=f'seconds for all processes to come together; default: {processes.TIMEOUT_SECS:g}',
  )
  group.add_argument(
    '--heartbeat',
    type=float,
    metavar='S',
    default=processes.HEARTBEAT_SECS,
    help=f'seconds of silence after which a process counts as dead; default: {processes.HEARTBEAT_SECS:g}',
  )


def _calls(function: Callable[..., Any], show: Callable[[Any, argparse.Namespace], Any] | None = None) -> Callable:
  """A verb: calls a function of `mtl_jax` with the flags named as its arguments are, and shows what process 0 gets."""

  def run(options: argparse.Namespace) -> int:
    names = inspect.signature(function).parameters
    found = function(**{name: value for name, value in vars(options).items() if name in names})
    if show and processes.index() == 0:
      show(found, options)
    return 0

  return run


def _show_path(path: Path, options: argparse.Namespace) -> None:
  del options
  _show(path)


def _show_table(table: Callable[[Any, Any, argparse.Namespace], str]) -> Callable[[Any, argparse.Namespace], None]:
  """Shows a result as JSON, if that is asked for, or as the text that `table` makes of it with `reports.terminal`."""

  def show(found: Any, options: argparse.Namespace) -> None:
    from mtl_jax.reports import terminal  # `mtl-jax --help` should not load JAX.

    _show(json.dumps(found, indent=2) if options.json else table(terminal, found, options))

  return show


def _demo(options: argparse.Namespace) -> int:
  from mtl_jax import demo

  _show(demo.run(options.workdir))
  return 0


def _predict(options: argparse.Namespace) -> int:
  from mtl_jax.evaluation.predict import predict_files

  restoring = {'tuned_thresholds': options.tuned_thresholds, 'allow_code': options.allow_code}
  model = mtl_jax.load(options.workdir, step=options.step, **restoring)
  return 2 if predict_files(model, options.images, out=options.out, table=options.csv, align=options.align) else 0


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
