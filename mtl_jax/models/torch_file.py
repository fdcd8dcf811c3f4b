"""Tensors of a PyTorch file by name, read without PyTorch and without running anything the file's pickle asks for.

Both formats of `torch.save`: the zip archive (since PyTorch 1.6) and the row of pickles before it.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from mtl_jax.errors import DataError, one_line

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

STORAGES: dict[str, Any] = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}


class StoredTensor(NamedTuple):
  """A tensor that is still in its file."""

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


class Storage(NamedTuple):
  """Numbers in a row, which tensors are views of."""

  key: str
  dtype: np.dtype
  size: int


class View(NamedTuple):
  """A tensor as the pickle describes it."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def of(self, numbers: np.ndarray) -> np.ndarray:
    """The tensor, a copy. Raises ValueError where it would reach outside its storage, or repeat parts of it."""
    last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
    empty = math.prod(self.shape) == 0
    if min((self.offset, *self.shape, *self.strides)) < 0 or (not empty and last >= len(numbers)):
      raise ValueError(f'a tensor of shape {self.shape} reaches outside its storage')
    if math.prod(self.shape) > len(numbers):
      raise ValueError(f'a tensor of shape {self.shape} is larger than its storage')
    byte_strides = [stride * numbers.itemsize for stride in self.strides]
    start = numbers[min(self.offset, len(numbers)) :]
    return np.lib.stride_tricks.as_strided(start, self.shape, byte_strides, writeable=False).copy()


class StateDict(dict):
  """A dictionary that forgets the attributes a pickle gives it."""

  def __setstate__(self, state: Any) -> None:
    del state


class Maker:
  """The functions a pickle may call. It gets instances, never our own classes or functions, which it could alter."""

  __slots__ = ('_make',)

  def __init__(self, make: Callable[..., Any]):
    self._make = make

  def __call__(self, *args: Any) -> Any:
    return self._make(*args)


class Refused(Exception):
  """A pickle names something that tensors do not need."""


class TensorUnpickler(pickle.Unpickler):
  """Knows dictionaries, tensors and their storages, and refuses every other name."""

  def find_class(self, module: str, name: str) -> Any:
    if module in ('torch', 'torch.storage') and name in STORAGES:
      return name
    if (module, name) == ('collections', 'OrderedDict'):
      return Maker(StateDict)
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return Maker(lambda storage, offset, shape, strides, *_: View(storage, offset, tuple(shape), tuple(strides)))
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return Maker(lambda view, *_: view)
    raise Refused(f'asks for {module}.{name}, and only tensors by name are read; save model.state_dict() instead')

  def persistent_load(self, pid: Any) -> Storage:
    kind, storage, key, _, size, *_ = pid
    if kind != 'storage':
      raise Refused(f'refers to {kind!r}, which is no storage')
    return Storage(str(key), np.dtype(STORAGES[storage]), int(size))


def tensors(path: Path) -> dict[str, StoredTensor]:
  """All tensors of a file by name.

  Raises:
    DataError: for a file that is damaged, of another format, or that asks for anything but tensors.
  """
  try:
    return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
  except Refused as error:
    raise DataError(f'{path}: refused, nothing of it was run: it {one_line(error)}') from None
  except Exception as error:  # A hostile or damaged pickle can raise anything.
    reason = one_line(error)[:200] or type(error).__name__
    raise DataError(f'{path}: cannot be read as a file of torch.save: {reason}') from error


def _read_zip(path: Path) -> dict[str, StoredTensor]:
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    pickles = [name for name in names if name == 'data.pkl' or name.endswith('/data.pkl')]
    if len(pickles) != 1:
      raise ValueError('the archive has no data.pkl')
    root = pickles[0].removesuffix('data.pkl')
    if f'{root}byteorder' in names and archive.read(f'{root}byteorder') != b'little':
      raise ValueError('its numbers are big-endian')
    with archive.open(pickles[0]) as file:
      content = TensorUnpickler(file).load()

  def read(view: View) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
      entry = archive.getinfo(f'{root}data/{view.storage.key}')
      if entry.file_size != view.storage.size * view.storage.dtype.itemsize:
        raise ValueError(f'storage {view.storage.key} has {entry.file_size} bytes')
      return view.of(np.frombuffer(archive.read(entry), view.storage.dtype))

  return _by_name(content, read, path)


def _read_legacy(path: Path) -> dict[str, StoredTensor]:
  with path.open('rb') as file:
    if TensorUnpickler(file).load() != LEGACY_MAGIC:
      raise ValueError('it does not begin as one')
    TensorUnpickler(file).load()  # The version of the protocol.
    if not TensorUnpickler(file).load()['little_endian']:
      raise ValueError('its numbers are big-endian')
    storages: dict[str, Storage] = {}
    content = _LegacyUnpickler(file, storages).load()
    keys = TensorUnpickler(file).load()
    starts = _storage_starts(file, [storages[key] for key in keys], size=path.stat().st_size)

  def read(view: View) -> np.ndarray:
    with path.open('rb') as file:
      file.seek(starts[view.storage.key])
      return view.of(np.fromfile(file, view.storage.dtype, view.storage.size))

  return _by_name(content, read, path)


class _LegacyUnpickler(TensorUnpickler):
  """Keeps the storages it meets: their numbers follow the pickles, and only the pickle says of what type they are."""

  def __init__(self, file: BinaryIO, storages: dict[str, Storage]):
    super().__init__(file)
    self._storages = storages

  def persistent_load(self, pid: Any) -> Storage:
    *plain, view = pid
    if view is not None:
      raise ValueError('it holds a storage that is part of another')
    storage = super().persistent_load(plain)
    return self._storages.setdefault(storage.key, storage)


def _storage_starts(file: BinaryIO, storages: list[Storage], *, size: int) -> dict[str, int]:
  """The byte at which the numbers of each storage begin; each is preceded by how many there are."""
  starts, position = {}, file.tell()
  for storage in storages:
    file.seek(position)
    if int.from_bytes(file.read(8), 'little') != storage.size:
      raise ValueError(f'storage {storage.key} is not of the size it should be')
    starts[storage.key] = position + 8
    position += 8 + storage.size * storage.dtype.itemsize
  if position > size:
    raise ValueError('the file is cut short')
  return starts


def _by_name(content: Any, read: Callable[[View], np.ndarray], path: Path) -> dict[str, StoredTensor]:
  """The tensors of a state dictionary, which may lie in a training checkpoint under `state_dict` or `model`."""
  for key in ('state_dict', 'model'):
    if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
      content = content[key]
  if not isinstance(content, Mapping):
    raise Refused(f'holds a {type(content).__name__}, not tensors by name; save model.state_dict() instead')

  def reader(view: View) -> Callable[[], np.ndarray]:
    def read_or_blame() -> np.ndarray:
      try:
        return read(view)
      except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f'{path}: {one_line(error)}') from error

    return read_or_blame

  return {str(name): StoredTensor(view.shape, reader(view)) for name, view in content.items() if isinstance(view, View)}
