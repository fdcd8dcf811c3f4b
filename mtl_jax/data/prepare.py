"""Prepares a data set: the readers by name, and the one call that writes a prepared set.

A new reader is a file here and a line in `READERS`; a user's own needs no line, see `own_source`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtl_jax.config import choose
from mtl_jax.data.source import Source
from mtl_jax.data.sources.celeba import open_celeba
from mtl_jax.data.sources.clothing import open_clothing
from mtl_jax.data.sources.cub import open_cub
from mtl_jax.data.sources.fairface import open_fairface
from mtl_jax.data.sources.mtfl import open_mtfl
from mtl_jax.data.sources.own import open_own
from mtl_jax.data.sources.tfds import open_tfds
from mtl_jax.data.sources.utkface import open_utkface
from mtl_jax.data.store import writer as store_writer
from mtl_jax.data.synthetic import sets as drawn
from mtl_jax.errors import DataError, one_line
from mtl_jax.platform.address import local_path

READERS: dict[str, Callable[[Path], Source]] = {
  'celeba': open_celeba,
  'clothing': open_clothing,
  'cub': open_cub,
  'fairface': open_fairface,
  'mtfl': open_mtfl,
  'utkface': open_utkface,
}
TFDS = 'tfds:'


def prepare(
  name: str,
  *,
  source: Path | None,
  out: Path,
  image_size: tuple[int, int],
  num: int,
  seed: int,
  log: Callable[[str], None],
  crop_margin: float | None = None,
  encoding: str = 'decoded',
  fit: str = 'squash',
  parsing: bool = False,
  workers: int = 1,
) -> dict[str, Any]:
  """Prepares a set by name; those in `drawn.DRAWN` draw `num` faces from `seed`, the others are read from `source`.

  `tfds:NAME` is a set that TFDS has prepared in its data_dir `source`, or in its default one where that is None. A name
  that ends in `.py` is a file that opens a set of the user's own, which may need no source.

  `parsing`, for `synthetic` alone, adds the task of that name: the part of the face that each pixel shows. Pictures and
  other labels stay as they are. `workers` is the number of processes that draw; with more than 1 the program that calls
  this must be guarded by `if __name__ == '__main__'`.

  `crop_margin` is for `mtfl` alone, see `open_mtfl`; for `encoding` and `fit` see `store_writer.prepare`.

  Returns:
    The schema of the prepared set.

  Raises:
    DataError: for bad input, naming file and row.
  """
  is_own, is_tfds = name.endswith('.py'), name.startswith(TFDS)
  if not (is_own or is_tfds):
    choose(name, (*READERS, *drawn.DRAWN, 'tfds:NAME', 'FILE.py'), field='prepare')
  if crop_margin is not None and name != 'mtfl':
    raise DataError(f'prepare {name}: --crop_margin is for mtfl only; leave it out')
  if parsing and name != drawn.FACES:
    raise DataError(f'prepare {name}: --parsing is for synthetic only; leave it out')
  if name in drawn.DRAWN and source is not None:
    raise DataError(f'prepare {name} draws its own faces; leave out --source')
  if name in READERS and source is None:
    raise DataError(f'prepare {name} needs --source DIR, the folder with its files')

  def opened(folder: Path) -> Source:
    if name in drawn.DRAWN:
      return drawn.draw(name, folder / 'source', num=num, seed=seed, parsing=parsing, workers=workers)
    try:
      if is_tfds:
        return open_tfds(name.removeprefix(TFDS), source)
      if is_own:
        return open_own(local_path(name), source)
      assert source is not None
      return open_mtfl(source, crop_margin=crop_margin) if name == 'mtfl' else READERS[name](source)
    except OSError as error:
      raise DataError(f'{source}: cannot be read: {one_line(error)}') from error

  return store_writer.prepare(opened, out, image_size=image_size, encoding=encoding, fit=fit, log=log)
