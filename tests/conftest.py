"""Eight simulated devices for the whole suite, and a small prepared set with a small trained run, made once."""

import contextlib
import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from jaxtyping import install_import_hook
from ml_collections import ConfigDict

# Read when JAX is first imported, also by the processes that tests start.
_DEVICES = '--xla_force_host_platform_device_count'
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}=8'.strip()
os.environ.setdefault('PJRT_NPROC', '32')  # Fewer threads than devices can deadlock a collective.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')  # Compiling takes most of a test's time, not running.
os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')  # Else verbs that train would start twice.
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(tempfile.gettempdir()) / f'mtl_jax-xla-{os.getuid()}'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # As a shell starts what runs in the background.
  signal.signal(signal.SIGINT, signal.default_int_handler)  # Else the processes that tests start ignore it too.

# Calls of these packages are held to the shapes and types of arrays in their annotations.
SHAPED = ['mtl_jax.metrics', 'mtl_jax.models', 'mtl_jax.objectives', 'mtl_jax.tasks', 'mtl_jax.training']
install_import_hook(SHAPED, 'shapes.checked')

import mtl_jax  # noqa: E402, F401  Sets XLA's flags, before a test's first computation.

NUM_FACES = 60
IMAGE_SIZE = (32, 32)


# Files that take longest, in that order: begun last, one of them would keep one worker busy while the others wait.
LONGEST = (
  'end_to_end',
  'api',
  'value_and_grad',
  'gradients',
  'balancing',
  'multiprocess',
  'bus',
  'sharing',
  'affinity',
)


def pytest_collection_finish() -> None:
  """Lets what is imported by now be, and the rest be searched for cycles seldom: that took a tenth of all the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Sorts files by how long they take."""
  place = {f'{name}_test': number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope='session')
def store_dir(tmp_path_factory) -> Path:
  """A prepared set of 60 synthetic faces at 32x32."""
  from mtl_jax.data.prepare import prepare

  out = tmp_path_factory.mktemp('store') / 'faces'
  prepare('synthetic', source=None, out=out, image_size=IMAGE_SIZE, num=NUM_FACES, seed=0, log=lambda _: None)
  return out


@pytest.fixture(scope='session')
def tiny_config(store_dir) -> Callable[..., ConfigDict]:
  """`tiny_config(tasks, **{'a.b': value})`: four steps of eight examples through two convolutions."""
  import small_runs

  from mtl_jax.configs import default

  def make(tasks: str = 'attributes,landmarks', **overrides) -> ConfigDict:
    config = default.get_config()
    config.tasks = tasks
    config.update_from_flattened_dict({'data.dir': str(store_dir), **small_runs.TINY, **overrides})
    return config.lock()

  return make


@pytest.fixture(scope='session')
def trained_dir(tmp_path_factory, tiny_config) -> Path:
  """The working directory of a joint run that is complete; tests must not write into it."""
  from mtl_jax.training import loop

  directory = tmp_path_factory.mktemp('trained') / 'joint'
  loop.train(tiny_config(), directory)
  return directory


@pytest.fixture
def run_copy(trained_dir, tmp_path) -> Path:
  """A copy of the trained run, to be spoilt."""
  return Path(shutil.copytree(trained_dir, tmp_path / 'copy'))


@pytest.fixture(scope='session')
def pictures(store_dir) -> list[Path]:
  """Two files of the prepared set's source."""
  return sorted((store_dir / 'source').rglob('*.jpg'))[:2]


class _Kept(logging.Handler):
  def __init__(self):
    super().__init__()
    self.lines: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
  """What the package logs from here on, once each, whatever a test before did to its logger."""
  logger, kept = logging.getLogger('mtl_jax'), _Kept()
  level = logger.level
  logger.addHandler(kept)
  logger.setLevel(logging.INFO)
  yield kept.lines
  logger.setLevel(level)
  logger.removeHandler(kept)


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
  """`refused(*arguments)` runs a command that must fail with exit code 2, and gives its one line on stderr."""

  def run(*arguments: object) -> str:
    from mtl_jax import cli

    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith('mtl-jax: error: ')]
    assert len(told) == 1, err
    assert err.endswith(f'{told[0]}\n')
    assert 'Traceback' not in err
    assert out == ''
    return told[0].removeprefix('mtl-jax: error: ')

  return run


@pytest.fixture(scope='session')
def faces(tmp_path_factory) -> Path:
  """A prepared set of 60 synthetic faces at 16x16; tests must not write into it."""
  import small_runs

  return small_runs.make_faces(tmp_path_factory.mktemp('store') / 'faces')


@pytest.fixture(scope='session')
def fake_gcs() -> Any:
  """A bucket over HTTP, `gs://bucket`."""
  from fake_gcs import Server

  return Server()


@pytest.fixture
def cloud(fake_gcs, tmp_path, monkeypatch) -> Any:
  """What the bucket `gs://bucket` holds, at first nothing; this host's cache is empty."""
  pytest.importorskip('gcsfs', reason="needs pip install 'mtl_jax[gcs]'")
  for name, value in fake_gcs.environment().items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  store = fake_gcs.store
  store.objects.clear()
  store.written.clear()
  store.failing.clear()
  return store


@pytest.fixture
def killed_after():
  """Interrupts what runs inside `with killed_after(n)`, and has to be interrupted, where it would keep result n + 1."""
  from mtl_jax.studies.results import ResultStore

  @contextlib.contextmanager
  def interrupted(results: int):
    put, kept = ResultStore.put, []

    def killed(self, *arguments):
      if len(kept) == results:
        raise KeyboardInterrupt
      kept.append(put(self, *arguments))

    with pytest.raises(KeyboardInterrupt), mock.patch.object(ResultStore, 'put', killed):
      yield

  return interrupted
