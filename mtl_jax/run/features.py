"""Caches features, the outputs of frozen stages for a split, as a derived set that is read in place of the images."""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import math
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
from mtl_jax.models.network import Network
from mtl_jax.platform import address, file_lock, processes, sharding
from mtl_jax.platform.progress_bar import bar

log = logging.getLogger('mtl_jax')

DISK_SHARE = 0.5  # Of the free disk that features may take; an early stage's are larger than the images.


@dataclasses.dataclass(frozen=True)
class FeatureCache:
  """Features of one model's frozen stages: a folder of derived sets, each named by the digest of what it depends on.

  Attributes:
    config: the run's.
    model: with its frozen stages, if it has any.
    variables: of the model.
    checksum: of the prepared set or mixture whose splits are read.
    mesh: the devices that compute.
    workdir: the run's; by default its features lie beside it, for other runs to share, or in the cache.
    stop: asked after every step: True ends the computation, of which nothing is kept.
  """

  config: ConfigDict
  model: Network
  variables: Mapping[str, Any]
  checksum: str
  mesh: Mesh
  workdir: Path
  stop: Callable[[], bool] = bool

  def replace_images(self, splits: Mapping[str, Split]) -> dict[str, Split]:
    """Replaces the images of splits, by name, by features `[n, ...]`; features that are missing are computed.

    Where there are no frozen stages, or features of all these splits cannot be kept, as they were; a line of the log
    says why.

    Raises:
      DataError: where the folder cannot be written.
      Interrupted: if `stop` says so.
    """
    frozen = self.model.frozen
    if frozen is None:
      return dict(splits)
    if frozen.drift or self.config.data.feature_cache == 'none':
      why = 'their batch statistics drift' if frozen.drift else 'config.data.feature_cache is none'
      log.info('features: not kept, the frozen stages run in every step: %s', why)
      return dict(splits)
    waiting = functools.partial(log.info, 'features: waiting for another run that is computing in %s', self.directory)
    try:
      with file_lock.hold(self.directory / f'.lock{_own()}', waiting=waiting):  # Runs that start together compute once.
        found = self._found(splits)
    except OSError as error:
      what = f'cannot write into {self.directory}: {error.strerror}'
      raise DataError(f'config.data.feature_cache: {what}; name a folder') from error
    replaced = {name: dataclasses.replace(splits[name], images=images) for name, images in found.items()}
    for split in replaced.values():
      split.mask_corrupt(np.arange(len(split)))
    return {**splits, **replaced}

  @property
  def directory(self) -> Path:
    """The folder of the features: `config.data.feature_cache`, or by default one beside the workdir."""
    beside = self.workdir.resolve().parent if address.is_local(self.workdir) else address.cache()
    return Path(self.config.data.feature_cache or beside / 'features')

  def _found(self, splits: Mapping[str, Split]) -> dict[str, Images]:
    """The features of these splits, computed if need be; none, and a line in the log, where they take too much disk."""
    places = {name: self._place(split, name) for name, split in splits.items()}
    found = {name: _opened(*place) for name, place in places.items()}
    here = [[name for name, images in found.items() if images is None], shutil.disk_usage(self.directory).free]
    everywhere = processes.gather('features', here)  # All compute together or not at all.
    missing = {name: split for name, split in splits.items() if any(name in names for names, _ in everywhere)}
    rows = [places[name][1] for name in missing]
    needed = sum(math.prod(one['shape']) * np.dtype(one['dtype']).itemsize for one in rows)
    free = min(free for _, free in everywhere)
    if needed > DISK_SHARE * free:
      sizes = f'{needed / 1e9:.1f} GB of the {free / 1e9:.1f} GB free in {self.directory}'
      log.warning('warning: features: not kept, the frozen stages run in every step: they take %s', sizes)
      return {}
    for name, split in missing.items():
      folder, made_of = places[name]
      title, primary = f'features of {name}', jax.process_index() == 0
      with bar(len(split), description=title, unit='image', enabled=primary) as progress:
        batches, corrupt = self._computed(split), split.corrupt_rows
        derived.write_rows(folder, batches, made_of, corrupt=corrupt, advance=progress.update)
      found[name] = derived.open_rows(folder, made_of)
    for name, (folder, made_of) in places.items():
      log.info('features: %s, %s of %s, in %s', name, made_of['shape'], made_of['dtype'], folder)
    return {name: images for name, images in found.items() if images is not None}

  def _place(self, split: Split, name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a split's features, and all that they depend on."""
    num, *of_image = split.images.shape
    one = jax.ShapeDtypeStruct((1, *of_image), split.images.dtype)  # Alike for all splits, so they are traced once.
    row = jax.eval_shape(self._compiled, self._frozen, one)
    frozen: Any = self.model.frozen
    backbone = [self.config.model.backbone, str(multitask.backbone_maker(self.config.model).keywords)]
    made_of = {
      'version': mtl_jax.__version__,
      'data': [self.checksum, name],
      'pixels': [of_image, list(augment.MEAN), list(augment.STD)],
      'stages': [*backbone, frozen.num_frozen, frozen.pooled],
      'weights': self._weights_digest,
      'shape': [num, *row.shape[1:]],
      'dtype': str(row.dtype),
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    return self.directory / f'{digest}{_own()}', made_of

  @property
  def _frozen(self) -> dict[str, Any]:
    """The variables of the frozen stages."""
    return {'frozen': self.variables['frozen']['frozen']}

  @functools.cached_property
  def _weights_digest(self) -> str:
    """Digest over the names, shapes and values of the frozen variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(self._frozen)):
      digest.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

  @functools.cached_property
  def _compiled(self) -> Callable[[Any, Any], jax.Array]:
    def outputs(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
      return self.model.encode_frozen(variables, network_input(images))

    return jax.jit(outputs, out_shardings=sharding.replicated(self.mesh))

  def _computed(self, split: Split) -> Iterator[Shaped[np.ndarray, 'b ...']]:
    """The features of all rows in order, a batch at a time; the devices are a few batches ahead."""
    batch_size = -(-self.config.eval.batch_size // jax.device_count()) * jax.device_count()
    local = sharding.local_rows(batch_size, field='eval.batch_size')
    by_rows = sharding.by_rows(self.mesh)

    def make(positions: np.ndarray) -> Any:
      return sharding.to_global(split.images.take(np.maximum(positions[local], 0), axis=0), by_rows)

    ahead: collections.deque[jax.Array] = collections.deque()
    left = len(split)
    for images in pipeline.prefetch(make, pipeline.padded_positions(len(split), batch_size)):
      ahead.append(self._compiled(self._frozen, images))
      if len(ahead) > 2:
        yield np.asarray(ahead.popleft())
        left -= batch_size
      if self.stop():
        raise Interrupted('interrupted while features were computed; the same command starts with them again')
    for last in ahead:
      yield np.asarray(last)[:left]
      left -= batch_size


def _opened(folder: Path, made_of: dict[str, Any]) -> Images | None:
  """Opens what is kept there; None where nothing is, or, with a line in the log, where it is damaged."""
  try:
    return derived.open_rows(folder, made_of) if folder.exists() else None
  except DataError as error:
    log.warning('warning: features are computed anew, for those that were kept are damaged: %s', error)
    return None


def _own() -> str:
  """Suffix of the names of this process's files: each process keeps its own copy."""
  return f'-{jax.process_index()}' if jax.process_index() else ''
