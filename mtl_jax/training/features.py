"""What frozen stages make of a whole split: computed once, kept in a folder, and read instead of the images.

CACHE/<digest of the key>/features.bin   the outputs, one image after another
CACHE/<digest of the key>/key.json       what they depend on, their shape and type, and the digest of features.bin
"""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

import mtl_jax
from mtl_jax.data.input import augment, pipeline
from mtl_jax.data.input.augment import network_input
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.data.input.pipeline import Split
from mtl_jax.errors import DataError, Interrupted, one_line
from mtl_jax.models.frozen import FrozenStages
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.platform import address, file_lock, sharding
from mtl_jax.platform.atomic_dir import new_folder, sync
from mtl_jax.platform.progress_bar import bar

log = logging.getLogger('mtl_jax')

FORMAT = 1  # Of the cache; what another format wrote is never read.
DISK_SHARE = 0.5  # Of the free disk that features may take; an early stage's are larger than the images.


@dataclasses.dataclass(frozen=True)
class FeatureCache:
  """The frozen stages' outputs for the splits of one prepared set.

  Attributes:
    directory: the folder of all outputs that are kept.
    frozen: the frozen stages.
    variables: theirs.
    checksum: of the prepared set.
    mesh: the devices that compute.
    batch_size: images a step.
    stop: asked after every step: True ends the computation with `Interrupted`.
  """

  directory: Path
  frozen: FrozenStages
  variables: Mapping[str, Any]
  checksum: str
  mesh: Mesh
  batch_size: int
  stop: Callable[[], bool] = bool

  def replace_images(self, split: Split, name: str) -> Split | None:
    """The split with features `[n, ...]` in place of its images; they are computed if they are not there.

    Returns:
      None, and a log line, where they would take too much of the disk.

    Raises:
      DataError: where the folder cannot be written.
      Interrupted: if `stop` says so. Nothing is kept then.
    """
    key = self._key(split, name)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    process = f'-{jax.process_index()}' if jax.process_index() else ''  # Each process keeps its own copy.
    folder = self.directory / f'{digest}{process}'
    with _locked(self.directory, f'.lock{process}'):
      images = _open(folder, key)
      if not _everywhere(images is not None):
        if not _everywhere(self._has_room(split)):
          return None
        self._write(split, name, folder, key)
        images = _open(folder, key)
    if images is None:
      raise DataError(f'{folder}: was changed while it was written; start again')
    log.info('features: %s, %d x %s, in %s', name, len(split), 'x'.join(map(str, images.shape[1:])), folder)
    replaced = dataclasses.replace(split, images=images)
    replaced.mask_corrupt(images.corrupt)
    return replaced

  def _key(self, split: Split, name: str) -> dict[str, Any]:
    """All that the outputs depend on, and how they are written."""
    output = self._output(split)
    return {
      'format': FORMAT,
      'version': mtl_jax.__version__,
      'data': self.checksum,
      'split': name,
      'pixels': {'shape': list(split.images.shape), 'mean': augment.MEAN, 'std': augment.STD},
      'stages': [_described(self.frozen.make), self.frozen.num_frozen, self.frozen.pooled],
      'weights': self._weights_digest,
      'shape': [len(split), *output.shape[1:]],
      'dtype': str(output.dtype),
    }

  @functools.cached_property
  def _weights_digest(self) -> str:
    """Over the names, shapes and values of the frozen variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(self.variables)):
      digest.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

  @functools.cached_property
  def _compiled(self) -> Callable[[Any, Any], jax.Array]:
    def outputs(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
      return self.frozen.apply({'frozen': variables}, network_input(images), train=False)  # pyright: ignore

    return jax.jit(outputs, out_shardings=sharding.replicated(self.mesh))

  def _output(self, split: Split) -> Any:
    images = jax.ShapeDtypeStruct((1, *split.images.shape[1:]), split.images.dtype)
    return jax.eval_shape(self._compiled, self.variables, images)

  def _has_room(self, split: Split) -> bool:
    output = self._output(split)
    needed, free = len(split) * output.size * output.dtype.itemsize, shutil.disk_usage(self.directory).free
    if needed > DISK_SHARE * free:
      sizes = f'{needed / 1e9:.1f} GB of the {free / 1e9:.1f} GB free in {self.directory}'
      log.warning('warning: features: not kept, the frozen stages run in every step: they take %s', sizes)
    return needed <= DISK_SHARE * free

  def _write(self, split: Split, name: str, folder: Path, key: dict[str, Any]) -> None:
    """Computes the outputs, each process with its share of the rows, and writes them all, whole or not at all."""
    shutil.rmtree(folder, ignore_errors=True)  # What was damaged.
    primary, digest = jax.process_index() == 0, hashlib.sha256()
    try:
      with (
        new_folder(folder) as partial,
        bar(len(split), description=f'features of {name}', unit='image', enabled=primary) as progress,
      ):
        with (partial / 'features.bin').open('wb') as file:
          for rows in self._computed(split):
            content = np.ascontiguousarray(rows).tobytes()
            file.write(content)
            digest.update(content)
            progress.update(len(rows))
            if self.stop():
              raise Interrupted('interrupted while features were computed; the same command starts with them again')
        facts = {**key, 'sha256': digest.hexdigest(), 'corrupt': split.corrupt_rows()}
        (partial / 'key.json').write_text(json.dumps(facts, indent=2) + '\n')
        for written in ('features.bin', 'key.json'):
          sync(partial / written)
    except DataError as error:
      raise DataError(f'config.data.feature_cache: {error}') from error

  def _computed(self, split: Split) -> Iterator[np.ndarray]:
    """The outputs of all rows in order, a batch at a time; the devices are a few batches ahead."""
    batch_size = -(-self.batch_size // jax.device_count()) * jax.device_count()
    local = sharding.local_rows(batch_size, field='eval.batch_size')
    rows = sharding.by_rows(self.mesh)

    def make(positions: np.ndarray) -> Any:
      return sharding.to_global(split.images.take(np.maximum(positions[local], 0), axis=0), rows)

    ahead: collections.deque[jax.Array] = collections.deque()
    left = len(split)
    for images in pipeline.prefetch(make, pipeline.padded_positions(len(split), batch_size)):
      ahead.append(self._compiled(self.variables, images))
      if len(ahead) > 2:
        outputs = np.asarray(ahead.popleft())
        yield outputs[:left]
        left -= len(outputs)
    for last in ahead:
      yield np.asarray(last)[:left]
      left -= len(last)


def open_cache(
  config: ConfigDict,
  model: MultiTaskModel,
  variables: Mapping[str, Any],
  *,
  workdir: Path,
  data: DataSet,
  mesh: Mesh,
  stop: Callable[[], bool] = bool,
) -> FeatureCache | None:
  """The features of a run's frozen stages; None, and a log line that says why, where none can be kept.

  Args:
    config: the run's.
    model: with its frozen stages, if it has any.
    variables: of the model.
    workdir: the run's; by default its features lie beside it, for other runs to share, or in the cache.
    data: the prepared set, or mixture, whose splits will be read.
    mesh: the devices that compute.
    stop: True ends a computation with `Interrupted`.
  """
  if model.frozen is None:
    return None
  if model.frozen.drift or config.data.feature_cache == 'none':
    why = 'their batch statistics drift' if model.frozen.drift else 'config.data.feature_cache is none'
    log.info('features: not kept, the frozen stages run in every step: %s', why)
    return None
  beside = workdir.resolve().parent if address.is_local(workdir) else address.cache()
  return FeatureCache(
    directory=Path(config.data.feature_cache or beside / 'features'),
    frozen=model.frozen,
    variables=variables['frozen']['frozen'],
    checksum=data.checksum,
    mesh=mesh,
    batch_size=config.eval.batch_size,
    stop=stop,
  )


class Features:
  """Features `[n, ...]` mapped from the disk, to be used like the images that they were computed from.

  Attributes:
    corrupt: positions whose image was corrupt, and another was taken in its place.
  """

  def __init__(self, values: np.ndarray, corrupt: Sequence[int]):
    self.values, self.corrupt = values, np.asarray(corrupt, np.int64)
    self.shape, self.dtype, self.nbytes = values.shape, values.dtype, values.nbytes

  def __len__(self) -> int:
    return len(self.values)

  @property
  def num_corrupt(self) -> int:
    return len(self.corrupt)

  def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
    """The features at these positions."""
    return self.values.take(rows, axis=axis)

  def good(self, rows: np.ndarray) -> np.ndarray:
    """Which of these positions hold features of their own image, bool `[b]`."""
    return ~np.isin(rows, self.corrupt)

  def __getitem__(self, index: Any) -> np.ndarray:
    return self.values[index]


def _open(folder: Path, key: dict[str, Any]) -> Features | None:
  """The features in a folder, mapped from the disk; None if they are not there, or not as they were written."""
  path = folder / 'features.bin'
  try:
    written = json.loads((folder / 'key.json').read_text())
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    log.warning('warning: %s cannot be read and is computed anew: %s', folder, one_line(error))
    return None
  corrupt = written.pop('corrupt', ())
  if written != {**json.loads(json.dumps(key)), 'sha256': digest}:
    log.warning('warning: %s was changed since it was written and is computed anew', folder)
    return None
  return Features(np.memmap(path, dtype=np.dtype(key['dtype']), mode='r', shape=tuple(key['shape'])), corrupt)


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
  """Holds the cache, so that two runs that start together do not both compute."""
  waiting = functools.partial(log.info, 'features: waiting for another run that is computing in %s', cache)
  with ExitStack() as stack:
    try:
      stack.enter_context(file_lock.held(cache / name, waiting=waiting))
    except OSError as error:
      raise DataError(
        f'config.data.feature_cache: cannot write into {cache}: {error.strerror}; name a folder'
      ) from error
    yield


def _everywhere(here: bool) -> bool:
  """Whether all processes say so: they compute together or not at all."""
  if jax.process_count() == 1:
    return here
  return bool(multihost_utils.process_allgather(np.bool_(here)).all())


def _described(value: Any) -> Any:
  """A function that makes a backbone, or an argument of it, as JSON that is the same in every process."""
  if isinstance(value, functools.partial):
    keywords = {name: _described(item) for name, item in sorted(value.keywords.items())}
    return [_described(value.func), [_described(item) for item in value.args], keywords]
  if isinstance(value, tuple | list):
    return [_described(item) for item in value]
  if value is None or isinstance(value, bool | int | float | str):
    return value
  return f'{value.__module__}.{value.__qualname__}'
