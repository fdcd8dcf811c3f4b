"""Features, the outputs of frozen stages for a split: computed once, kept as a derived set, read in place of images."""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped
from ml_collections import ConfigDict

import mtl_jax
from mtl_jax.data.input import augment, pipeline
from mtl_jax.data.input.augment import network_input
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.store import derived
from mtl_jax.data.store.images import Images
from mtl_jax.errors import DataError, Interrupted
from mtl_jax.models import multitask
from mtl_jax.models.frozen import FrozenStages
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.platform import address, file_lock, processes, sharding
from mtl_jax.platform.progress_bar import bar

log = logging.getLogger('mtl_jax')

DISK_SHARE = 0.5  # Of the free disk that features may take; an early stage's are larger than the images.


def kept(
  splits: Mapping[str, Split],
  *,
  config: ConfigDict,
  model: MultiTaskModel,
  variables: Mapping[str, Any],
  checksum: str,
  mesh: Mesh,
  workdir: Path,
  stop: Callable[[], bool] = bool,
) -> dict[str, Split]:
  """The splits, with features `[n, ...]` in place of the images where the model has frozen stages: of all or of none.

  What is not there yet is computed. Where nothing can be kept, a line in the log says why.

  Args:
    splits: of one prepared set, or of a mixture, by name.
    config: the run's.
    model: with its frozen stages, if it has any.
    variables: of the model.
    checksum: of the prepared set or mixture.
    mesh: the devices that compute.
    workdir: the run's; by default its features lie beside it, for other runs to share, or in the cache.
    stop: asked after every step: True ends the computation, of which nothing is kept.

  Raises:
    DataError: where the folder cannot be written.
    Interrupted: if `stop` says so.
  """
  if model.frozen is None:
    return dict(splits)
  if model.frozen.drift or config.data.feature_cache == 'none':
    why = 'their batch statistics drift' if model.frozen.drift else 'config.data.feature_cache is none'
    log.info('features: not kept, the frozen stages run in every step: %s', why)
    return dict(splits)
  beside = workdir.resolve().parent if address.is_local(workdir) else address.cache()
  cache = FeatureCache(
    directory=Path(config.data.feature_cache or beside / 'features'),
    frozen=model.frozen,
    variables=variables['frozen']['frozen'],
    made_of={'data': checksum, 'backbone': [config.model.backbone, str(multitask.backbone_maker(config).keywords)]},
    mesh=mesh,
    batch_size=config.eval.batch_size,
    stop=stop,
  )
  try:
    return cache.replace_images(splits)
  except OSError as error:
    raise DataError(
      f'config.data.feature_cache: cannot write into {cache.directory}: {error.strerror}; name a folder'
    ) from error


@dataclasses.dataclass(frozen=True)
class FeatureCache:
  """The folder of features, and what computes those of one model from one data set.

  Attributes:
    directory: the folder; each split's features are a derived set in it, named by the digest of what they depend on.
    frozen: the frozen stages.
    variables: theirs.
    made_of: the data and the backbone, as JSON has them.
    mesh: the devices that compute.
    batch_size: images a step.
    stop: asked after every step.
  """

  directory: Path
  frozen: FrozenStages
  variables: Mapping[str, Any]
  made_of: Mapping[str, Any]
  mesh: Mesh
  batch_size: int
  stop: Callable[[], bool] = bool

  def replace_images(self, splits: Mapping[str, Split]) -> dict[str, Split]:
    """The splits on their features; as they are, and a line in the log, where those would take too much of the disk."""
    waiting = functools.partial(log.info, 'features: waiting for another run that is computing in %s', self.directory)
    with file_lock.held(self.directory / f'.lock{_own()}', waiting=waiting):  # Runs that start together compute once.
      found = {name: self._open(split, name) for name, split in splits.items()}
      here = [[name for name in found if found[name] is None], shutil.disk_usage(self.directory).free]
      everywhere = processes.gather('features', here)  # All compute together or not at all.
      missing = [name for name in splits if any(name in names for names, _ in everywhere)]
      rows = [self._rows(splits[name]) for name in missing]
      needed, free = sum(one.size * one.dtype.itemsize for one in rows), min(free for _, free in everywhere)
      if needed > DISK_SHARE * free:
        sizes = f'{needed / 1e9:.1f} GB of the {free / 1e9:.1f} GB free in {self.directory}'
        log.warning('warning: features: not kept, the frozen stages run in every step: they take %s', sizes)
        return dict(splits)
      for name in missing:
        self._write(splits[name], name)
        found[name] = derived.open_rows(*self._place(splits[name], name))
    replaced = {name: dataclasses.replace(split, images=found[name]) for name, split in splits.items()}
    for name, split in replaced.items():
      shape = 'x'.join(map(str, split.images.shape[1:]))
      log.info('features: %s, %d x %s, in %s', name, len(split), shape, self._place(splits[name], name)[0])
      split.mask_corrupt(np.arange(len(split)))
    return replaced

  def _place(self, split: Split, name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a split's features, and all that they depend on."""
    made_of = {
      'version': mtl_jax.__version__,
      **self.made_of,
      'split': [name, len(split)],
      'pixels': [list(split.images.shape[1:]), list(augment.MEAN), list(augment.STD)],
      'stages': [self.frozen.num_frozen, self.frozen.pooled],
      'weights': self._weights_digest,
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    return self.directory / f'{digest}{_own()}', made_of

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

  def _rows(self, split: Split) -> jax.ShapeDtypeStruct:
    """Shape and type of a split's features."""
    images = jax.ShapeDtypeStruct((len(split), *split.images.shape[1:]), split.images.dtype)
    return jax.eval_shape(self._compiled, self.variables, images)

  def _open(self, split: Split, name: str) -> Images | None:
    """What is kept of a split; None where nothing is, or, with a line in the log, where it is damaged."""
    directory, made_of = self._place(split, name)
    try:
      return derived.open_rows(directory, made_of) if directory.exists() else None
    except DataError as error:
      log.warning('warning: features are computed anew, for those that were kept are damaged: %s', error)
      return None

  def _write(self, split: Split, name: str) -> None:
    """Computes a split's features, each process with its share of the rows, and writes them all."""
    directory, made_of = self._place(split, name)
    rows = self._rows(split)
    with bar(len(split), description=f'features of {name}', unit='image', enabled=jax.process_index() == 0) as progress:
      derived.write_rows(
        directory,
        self._computed(split),
        made_of,
        shape=rows.shape,
        dtype=rows.dtype,
        corrupt=split.corrupt_rows,
        advance=progress.update,
      )

  def _computed(self, split: Split) -> Iterator[Shaped[np.ndarray, 'b ...']]:
    """The features of all rows in order, a batch at a time; the devices are a few batches ahead."""
    batch_size = -(-self.batch_size // jax.device_count()) * jax.device_count()
    local = sharding.local_rows(batch_size, field='eval.batch_size')
    by_rows = sharding.by_rows(self.mesh)

    def make(positions: np.ndarray) -> Any:
      return sharding.to_global(split.images.take(np.maximum(positions[local], 0), axis=0), by_rows)

    ahead: collections.deque[jax.Array] = collections.deque()
    left = len(split)
    for images in pipeline.prefetch(make, pipeline.padded_positions(len(split), batch_size)):
      ahead.append(self._compiled(self.variables, images))
      if len(ahead) > 2:
        yield np.asarray(ahead.popleft())
        left -= batch_size
      if self.stop():
        raise Interrupted('interrupted while features were computed; the same command starts with them again')
    for last in ahead:
      yield np.asarray(last)[:left]
      left -= batch_size


def _own() -> str:
  """What ends the names of this process's files: each process keeps its own copy."""
  return f'-{jax.process_index()}' if jax.process_index() else ''
