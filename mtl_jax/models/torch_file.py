"""Reads tensors by name from a PyTorch file, without PyTorch and without running anything that its pickle asks for.

Both formats of `torch.save`: the zip archive (since PyTorch 1.6) and the row of pickles before it.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from mtl_jax.errors import DataError, one_line

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MOST_BYTES = 2**20  # Of the pickles of a file: 20 times those of the largest networks here. Each may become an object.

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


class Refused(Exception):
  """A pickle names something that tensors do not need."""


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
  """PyTorch's `_rebuild_tensor_v2`."""
  numbers = [offset, *shape, *strides] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
  if not isinstance(storage, Storage) or any(type(number) is not int for number in numbers):
    raise ValueError('a tensor has no storage, or no shape of whole numbers')
  return View(storage, offset, shape, strides)


def _by_key(items: Any = ()) -> dict[Any, Any]:
  """A dictionary by text and numbers: other keys may be nested so deeply that hashing them ends the process."""
  items = list(items)
  if any(type(key) not in (str, int) for key, _ in items):
    raise ValueError('a dictionary has a key that is neither text nor a whole number')
  return dict(items)


# The functions that a pickle may call; they keep nothing that one could alter.
CALLS: dict[tuple[str, str], Callable[..., Any]] = {
  ('collections', 'OrderedDict'): _by_key,
  ('torch._utils', '_rebuild_tensor_v2'): _view,
  ('torch._utils', '_rebuild_parameter'): lambda view, *_: view,
}
OPCODES = (
  pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
  pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
  pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET, pickle.APPEND, pickle.APPENDS,
  pickle.SETITEM, pickle.SETITEMS, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID,
  pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE,
  pickle.SHORT_BINUNICODE, pickle.BINSTRING, pickle.SHORT_BINSTRING,
)  # fmt: skip


class TensorUnpickler(pickle._Unpickler):
  """Reads dictionaries, tensors and their storages with the opcodes they need, and refuses every other one and name.

  It is made of pickle's machine in Python: the one in C can be made to take memory without bound or to end the process.
  """

  dispatch: ClassVar[dict[int, Any]] = {code: pickle._Unpickler.dispatch[code] for (code,) in OPCODES}
  stack: list[Any]  # As the machine has them.
  memo: dict[int, Any]
  pop_mark: Callable[[], list[Any]]

  def __init__(self, file: io.BytesIO):
    super().__init__(file)
    self.storages: dict[str, Storage] = {}

  def load(self) -> Any:
    self.memo.clear()
    try:
      return super().load()
    except KeyError as error:
      raise ValueError(f'its pickle holds or recalls {error}, which there is not') from None

  def find_class(self, module: str, name: str) -> Any:
    if module in ('torch', 'torch.storage') and name in STORAGES:
      return name
    if (module, name) not in CALLS:
      raise Refused(f'asks for {module}.{name}, and only tensors by name are read; save model.state_dict() instead')
    return CALLS[module, name]

  def persistent_load(self, pid: Any) -> Storage:
    kind, storage, key, _, size, *part = pid
    if type(kind) is not str or kind != 'storage':
      raise Refused('refers to what is no storage')
    types = [type(value) for value in (storage, key, size)]
    if types != [str, str, int] or size < 0 or part not in ([], [None]):
      raise ValueError('a storage has no name, type or size, or is part of another')
    return self.storages.setdefault(key, Storage(key, np.dtype(STORAGES[storage]), size))

  def load_setitem(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self.stack[-1].update(_by_key([(key, value)]))

  def load_setitems(self) -> None:
    items = self.pop_mark()
    self.stack[-1].update(_by_key(zip(items[::2], items[1::2], strict=True)))

  def load_build(self) -> None:
    self.stack.pop()  # Attributes of a dictionary, which nothing needs.

  dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.BUILD[0]: load_build}


def tensors(path: Path) -> dict[str, StoredTensor]:
  """All tensors of a file by name.

  Raises:
    DataError: for a file that is damaged, of another format, or that asks for anything but tensors; also from `read`.
  """
  with wrap_errors(path, 'a file of torch.save'):
    content, read = (_open_zip if zipfile.is_zipfile(path) else _open_legacy)(path)
    for key in ('state_dict', 'model'):  # Of a training checkpoint.
      if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
        content = content[key]
    if not isinstance(content, Mapping):
      raise Refused(f'holds a {type(content).__name__}, not tensors by name; save model.state_dict() instead')

  def numbers_of(view: View) -> np.ndarray:
    with wrap_errors(path, 'a file of torch.save'):
      return view.of(read(view.storage))

  views = {name: view for name, view in content.items() if isinstance(name, str) and isinstance(view, View)}
  return {name: StoredTensor(view.shape, partial(numbers_of, view)) for name, view in views.items()}


@contextmanager
def wrap_errors(path: Path, kind: str) -> Iterator[None]:
  """Turns whatever a damaged or hostile file raises into a DataError that names the file and says why."""
  try:
    yield
  except Refused as error:
    raise DataError(f'{path}: refused, nothing of it was run: it {one_line(error)[:300]}') from None
  except Exception as error:
    reason = one_line(error)[:200] or type(error).__name__
    raise DataError(f'{path}: cannot be read as {kind}: {reason}') from error


Opened = tuple[Any, Callable[[Storage], np.ndarray]]  # What the pickle describes, and reads a storage's numbers.


def _open_zip(path: Path) -> Opened:
  def entry(archive: zipfile.ZipFile, name: str, *, most: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      raise ValueError(f'{name} is compressed or encrypted, which PyTorch does not do')
    if info.compress_size != info.file_size or info.file_size > most:
      raise ValueError(f'{name} is larger than it can be')
    return archive.read(info)

  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    pickles = [name for name in names if name == 'data.pkl' or name.endswith('/data.pkl')]
    if len(pickles) != 1:
      raise ValueError('the archive has no data.pkl')
    root = pickles[0].removesuffix('data.pkl')
    if f'{root}byteorder' in names and entry(archive, f'{root}byteorder', most=MOST_BYTES) != b'little':
      raise ValueError('its numbers are big-endian')
    content = TensorUnpickler(io.BytesIO(entry(archive, pickles[0], most=MOST_BYTES))).load()

  def read(storage: Storage) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
      numbers = entry(archive, f'{root}data/{storage.key}', most=path.stat().st_size)
    if len(numbers) != storage.size * storage.dtype.itemsize:
      raise ValueError(f'storage {storage.key} has {len(numbers)} bytes')
    return np.frombuffer(numbers, storage.dtype)

  return content, read


def _open_legacy(path: Path) -> Opened:
  with path.open('rb') as file:
    pickles = io.BytesIO(file.read(MOST_BYTES))
    reader = TensorUnpickler(pickles)
    if reader.load() != LEGACY_MAGIC:
      raise ValueError('it does not begin as one')
    reader.load()  # The version of the protocol.
    if not reader.load()['little_endian']:
      raise ValueError('its numbers are big-endian')
    content, starts = reader.load(), {}
    storages = [reader.storages[key] for key in reader.load() if type(key) is str]
    file.seek(pickles.tell())
    for storage in storages:  # Before the numbers of each is how many there are.
      if int.from_bytes(file.read(8), 'little') != storage.size:
        raise ValueError(f'storage {storage.key} is not of the size it should be')
      starts[storage.key] = file.tell()
      file.seek(storage.size * storage.dtype.itemsize, io.SEEK_CUR)
    if file.tell() > path.stat().st_size:
      raise ValueError('the file is cut short')

  def read(storage: Storage) -> np.ndarray:
    return np.fromfile(path, storage.dtype, storage.size, offset=starts[storage.key])

  return content, read
