"""Whatever a JSON file holds, its reader gets what it expects or says in one line what is wrong, where."""

import json
import os
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.errors import DataError, UserError
from mtl_jax.platform import json_file

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Sizes(TypedDict):
  sizes: tuple[Positive, Positive]
  share: float


WRONG = {
  'empty': b'',
  'cut_short': b'{"sizes": [1, 2], "share": 0.',
  'array': b'[]',
  'missing_field': b'{"sizes": [1, 2]}',
  'wrong_type': b'{"sizes": [1, 2], "share": "much"}',
  'boolean': b'{"sizes": [true, 2], "share": 1}',
  'out_of_range': b'{"sizes": [1, -2], "share": 1}',
  'too_long': b'{"sizes": [1, 2, 3], "share": 1}',
  'nan': b'{"sizes": [1, 2], "share": NaN}',
  'infinite': b'{"sizes": [1, 2], "share": 1e999}',
  'long_number': b'{"sizes": [1, ' + b'9' * 6000 + b'], "share": 1}',
  'deep': b'{"sizes": [1, 2], "share": 1, "more": ' + b'[' * 100_000,
  'not_utf8': b'{"sizes": [1, 2], "share": "\xff"}',
  'surrogate': b'{"sizes": [1, 2], "share": 1, "\\ud800": 0}',
  'nul': b'{"sizes": [1, 2], "share": 1}\x00',
}


@pytest.mark.parametrize('content', WRONG.values(), ids=WRONG)
def test_wrong_content_is_refused_in_one_line_that_names_file_and_way_out(tmp_path, content):
  path = tmp_path / 'sizes.json'
  path.write_bytes(content)
  with pytest.raises(DataError) as caught:
    json_file.read(path, Sizes, advice='make it again', raises=DataError)
  assert str(caught.value).startswith(str(path))
  assert str(caught.value).endswith('; make it again')
  assert '\n' not in str(caught.value)
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize('kind', ['missing', 'folder', 'pipe', 'loop', 'endless', 'large'])
def test_what_is_no_file_of_content_is_refused(tmp_path, kind, monkeypatch):
  monkeypatch.setattr(json_file, 'MAX_BYTES', 1000)
  path = tmp_path / 'sizes.json'
  if kind == 'folder':
    path.mkdir()
  elif kind == 'pipe':
    os.mkfifo(path)
  elif kind == 'loop':
    path.symlink_to(path)
  elif kind == 'endless':
    path.symlink_to('/dev/zero')
  elif kind == 'large':
    path.write_bytes(b' ' * 1001)
  with pytest.raises(UserError, match=r'sizes\.json'):
    json_file.read(path, Sizes, advice='make it again')


@pytest.mark.parametrize(
  ('content', 'field'),
  [(b'{"sizes": [1, -2], "share": 1}', 'sizes[1]'), (b'{"sizes": [1, 2], "share": []}', 'share')],
)
def test_the_field_that_is_wrong_is_named(content, field):
  with pytest.raises(UserError, match=field.replace('[', r'\[')):
    json_file.parse(content, Sizes, place='sizes', advice='make it again')


VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda of: st.lists(of) | st.dictionaries(st.text(), of),
)


@settings(max_examples=200, deadline=None)
@given(
  value=st.fixed_dictionaries({}, optional={'sizes': VALUES | st.lists(st.integers(0, 9)), 'share': VALUES}) | VALUES
)
def test_any_value_is_read_as_the_schema_says_or_refused(value):
  content = json.dumps(value)
  try:
    found: Any = json_file.parse(content, Sizes, place='sizes', advice='make it again')
  except UserError:
    return
  assert len(found['sizes']) == 2
  assert all(type(size) is int and size >= 1 for size in found['sizes'])
  assert type(found['share']) is float
  assert found['share'] == value['share']


def test_lines_that_hold_no_object_are_left_out_and_nan_is_none(tmp_path):
  path = tmp_path / 'log.jsonl'
  wrong = [content for name, content in WRONG.items() if name not in ('missing_field', 'wrong_type', 'boolean', 'nan')]
  good = b'{"step": 1, "loss": NaN, "text": "a: NaN"}\n'
  path.write_bytes(good + b'\n'.join(wrong) + b'\n' + good + b'{"step": 2')
  found = json_file.lines(path)
  assert [line for line in found if 'step' in line] == [{'step': 1, 'loss': None, 'text': 'a: NaN'}] * 2
  assert json_file.lines(tmp_path / 'none.jsonl') == []
