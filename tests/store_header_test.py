"""A prepared set whose files were changed, whatever their bytes, is refused in one line or is still the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from celeba_layout import write_celeba
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtl_jax.data.source import SPLITS
from mtl_jax.data.sources.celeba import open_celeba
from mtl_jax.data.store import derived
from mtl_jax.data.store.reader import Store, checksum, digest, open_store
from mtl_jax.data.store.writer import prepare
from mtl_jax.errors import DataError

# The folder is shared, each example writes its header anew.
quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
scalars = st.one_of(
  st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.sampled_from(SPLITS)
)
values = st.recursive(
  scalars, lambda parts: st.one_of(st.lists(parts, max_size=4), st.dictionaries(st.text(max_size=4), parts, max_size=3))
)


@pytest.fixture(scope='module', params=['decoded', 'jpeg'])
def folder(request, tmp_path_factory) -> Path:
  """A set of seven images."""
  root = tmp_path_factory.mktemp(request.param)
  write_celeba(root / 'source')
  source = open_celeba(root / 'source')
  prepare(source, root / 'set', image_size=(12, 10), encoding=request.param, log=lambda _: None)
  return root / 'set'


@pytest.fixture(scope='module')
def original(folder) -> tuple[bytes, Store]:
  return (folder / 'schema.json').read_bytes(), open_store(folder)


def opened_or_refused(folder: Path, header: bytes) -> Store | None:
  """The set with another header; None if it, or its first image, is refused, as it must be, in one line."""
  (folder / 'schema.json').write_bytes(header)
  try:
    store = open_store(folder)
    store.images.take(np.arange(len(store.images)))
  except DataError as error:
    message = str(error)
  else:
    return store
  assert '\n' not in message
  assert len(message) < 2000
  assert str(folder) in message
  return None


def assert_is_the_set(found: Store, original: Store) -> None:
  """What was opened has the pixels and labels that were written, in splits that are its rows, under names."""
  assert found.image_size == original.image_size
  np.testing.assert_array_equal(found.images, original.images)
  assert [row for split in SPLITS for row in found.splits[split]] == list(range(len(original.images)))
  assert found.names == original.names
  for task in found.tasks:
    assert isinstance(task.name, str)
    assert all(isinstance(label, str) for label in task.labels)
    assert len(set(task.labels)) == len(task.labels) == found.labels[task.name].shape[1]
    np.testing.assert_array_equal(found.labels[task.name], original.labels[task.name])
    np.testing.assert_array_equal(found.mask[task.name], original.mask[task.name])


@given(data=st.data())
@quick
def test_changed_bytes_are_refused_or_change_nothing(folder, original, data):
  header, store = original
  content = bytearray(header)
  for _ in range(data.draw(st.integers(1, 3))):
    place = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.sampled_from([0, 1, 1, 4, 200, len(content)]))
    content[place : place + length] = data.draw(st.binary(max_size=4))
    if not content:
      break
  found = opened_or_refused(folder, bytes(content))
  if found is not None:
    assert json.loads(content) == json.loads(header)
    assert found.checksum == store.checksum


def places(value: Any) -> list[tuple[Any, Any]]:
  """Every container in a JSON value with each of its keys or positions."""
  keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
  return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@given(data=st.data(), signed=st.booleans())
@quick
def test_changed_values_are_refused_or_change_no_example_even_with_a_right_checksum(folder, original, data, signed):
  header, store = original
  schema = json.loads(header)
  for _ in range(data.draw(st.integers(1, 3))):
    container, key = data.draw(st.sampled_from(places(schema)))
    if data.draw(st.booleans()):
      container[key] = data.draw(values)
    else:
      del container[key]
    if not schema:
      break
  if signed:
    schema['checksum'] = checksum(schema)
  found = opened_or_refused(folder, json.dumps(schema).encode())
  if found is not None:
    assert signed or schema == json.loads(header)
    assert_is_the_set(found, store)


@pytest.mark.parametrize('number', ['1' + '0' * 5000, '1e999', 'NaN', '[' * 100_000])
@pytest.mark.parametrize('field', ['version', 'num_examples', 'image_size'])
def test_monstrous_values_are_refused(folder, original, number, field):
  header = json.dumps({**json.loads(original[0]), field: '?'}).replace('"?"', number)
  assert opened_or_refused(folder, header.encode()) is None


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('splits', {'train': [0, 5], 'val': [4, 5], 'test': [5, 7]}),
    ('splits', {'train': [0, 4], 'val': [4, 5], 'test': [5, 8]}),
    ('splits', {'train': [0, 10**18], 'val': [10**18, 10**18], 'test': [10**18, 10**18]}),
    ('splits', {'train': [0, 9], 'val': [9, 5], 'test': [5, 7]}),
    ('splits', {'train': [0, 7], 'val': [7, 7]}),
    ('num_examples', 6),
    ('num_examples', 7.0),
    ('num_examples', True),
    ('image_size', [10, 12]),
    ('image_size', [12, 10, 3]),
    ('encoding', 'webp'),
    ('tasks', []),
    ('tasks', [{'kind': 'binary', 'name': 'attributes', 'labels': ['a', 'a', 'b']}]),
    ('tasks', [{'kind': 'binary', 'name': 'attributes', 'labels': [1, 2, 3]}]),
    ('tasks', [{'kind': 'ternary', 'name': 'attributes', 'labels': ['a', 'b', 'c']}]),
  ],
)
def test_a_wrong_value_with_a_right_checksum_is_refused(folder, original, field, value):
  schema = {**json.loads(original[0]), field: value}
  assert opened_or_refused(folder, json.dumps({**schema, 'checksum': checksum(schema)}).encode()) is None


def test_the_other_encoding_is_refused(folder, original):
  schema = json.loads(original[0])
  schema['encoding'] = {'decoded': 'jpeg', 'jpeg': 'decoded'}[schema['encoding']]
  assert opened_or_refused(folder, json.dumps({**schema, 'checksum': checksum(schema)}).encode()) is None


@given(data=st.data())
@quick
def test_any_bytes_of_any_file_are_refused_in_one_line_or_read_even_with_right_digests(folder, original, data):
  """With right digests too, since a set may come from anywhere."""
  header, _ = original
  schema = json.loads(header)
  name = data.draw(st.sampled_from(sorted(schema['files'])))
  path = folder / name
  whole = path.read_bytes()
  begin = data.draw(st.integers(0, min(len(whole), 300)))
  end = data.draw(st.sampled_from([begin, begin + 1, begin + 8, len(whole)]))
  try:
    path.write_bytes(whole[:begin] + data.draw(st.binary(max_size=80)) + whole[end:])
    schema['files'][name] = digest(path)
    schema['checksum'] = checksum(schema)
    opened_or_refused(folder, json.dumps(schema).encode())
  finally:
    path.write_bytes(whole)
    (folder / 'schema.json').write_bytes(header)


@pytest.fixture(scope='module')
def derived_folder(tmp_path_factory) -> Path:
  """A derived set of three rows."""
  folder = tmp_path_factory.mktemp('derived') / 'set'
  rows = np.arange(12, dtype=np.float32).reshape(3, 4)
  derived.write_rows(folder, [rows], MADE_OF, corrupt=lambda: [1], advance=lambda _: None)
  return folder


MADE_OF = {'shape': [3, 4], 'dtype': 'float32', 'weights': 'digest'}


@given(data=st.data(), signed=st.booleans())
@quick
def test_a_changed_derived_set_is_refused_in_one_line_or_read(derived_folder, data, signed):
  name = data.draw(st.sampled_from(['schema.json', 'crc32.npy', 'rows.bin']))
  contents = {path: path.read_bytes() for path in derived_folder.iterdir()}
  schema = json.loads(contents[derived_folder / 'schema.json'])
  path, message = derived_folder / name, ''
  try:
    if name == 'schema.json':
      container, key = data.draw(st.sampled_from(places(schema)))
      container[key] = data.draw(values)
    else:
      begin = data.draw(st.integers(0, len(contents[path])))
      path.write_bytes(contents[path][:begin] + data.draw(st.binary(max_size=9)) + contents[path][begin + 1 :])
      schema['files'][name] = digest(path)
    if signed:
      schema['checksum'] = checksum(schema)
    (derived_folder / 'schema.json').write_text(json.dumps(schema))
    derived.open_rows(derived_folder, MADE_OF).take(np.arange(3))
  except DataError as error:
    message = str(error)
  finally:
    for changed, content in contents.items():
      changed.write_bytes(content)
  assert len(message.splitlines()) <= 1
