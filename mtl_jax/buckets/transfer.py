"""Many files from a bucket or into it, several at a time, with a progress bar."""

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

from mtl_jax.buckets.address import Bucket
from mtl_jax.training.bar import bar

AT_A_TIME = 8


def download(
  bucket: Bucket, sizes: Mapping[str, int], folder: Path, *, done: Callable[[str], Any] | None = None
) -> None:
  """Copies the objects of these names and sizes in bytes into a folder; `done` hears of each that is there.

  Raises:
    BucketError: where one cannot be read.
    FileNotFoundError: for one that is not there.
  """
  with bar(sum(sizes.values()), description='download', unit='B', unit_scale=True) as progress:

    def get(name: str) -> str:
      bucket.get(name, folder / name, advance=progress.update)
      return name

    for name in _each(get, list(sizes)):
      if done:
        done(name)


def upload(
  bucket: Bucket,
  paths: Mapping[str, Path],
  *,
  title: str = '',
  done: Callable[[str, str], Any] | None = None,
) -> set[str]:
  """Copies files into the objects of these names; `done` hears each one's name and version.

  Args:
    bucket: where to.
    paths: files by name.
    title: of a progress bar; empty: none.
    done: called in this thread.

  Returns:
    The names of files that have vanished meanwhile.

  Raises:
    BucketError: where one cannot be written.
  """
  vanished = set()

  def put(name: str) -> tuple[str, str | None]:
    try:
      return name, bucket.put(paths[name], name)
    except FileNotFoundError:
      return name, None

  with bar(len(paths), description=title, unit='file', enabled=bool(title)) as progress:
    for name, version in _each(put, list(paths)):
      progress.update()
      if version is None:
        vanished.add(name)
      elif done:
        done(name, version)
  return vanished


def _each(act: Callable[[str], Any], names: Collection[str]) -> Iterator[Any]:
  """What `act` makes of each name, as it comes; what has not begun when one fails is left out."""
  with futures.ThreadPoolExecutor(AT_A_TIME) as pool:
    begun = [pool.submit(act, name) for name in names]
    try:
      for one in futures.as_completed(begun):
        yield one.result()
    finally:
      for one in begun:
        one.cancel()
