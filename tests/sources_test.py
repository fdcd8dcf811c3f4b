"""The contract of readers: whatever bytes a file holds, a source is read whole or refused in one line."""

import celeba_layout
import numpy as np
import pytest
from clothing_test import write_clothing
from cub_test import write_cub
from fairface_test import write_fairface
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mtfl_test import write_mtfl

from mtl_jax.data.sources.celeba import open_celeba
from mtl_jax.data.sources.clothing import open_clothing
from mtl_jax.data.sources.cub import open_cub
from mtl_jax.data.sources.fairface import open_fairface
from mtl_jax.data.sources.mtfl import open_mtfl
from mtl_jax.errors import DataError

READERS = {
  'celeba': (lambda root: celeba_layout.write_celeba(root, layout='root'), open_celeba),
  'celeba_csv': (lambda root: celeba_layout.write_celeba(root, layout='kaggle'), open_celeba),
  'mtfl': (lambda root: write_mtfl(root, test=1), open_mtfl),
  'mtfl_cropped': (lambda root: write_mtfl(root, test=1), lambda root: open_mtfl(root, crop_margin=1)),
  'cub': (write_cub, open_cub),
  'clothing': (write_clothing, open_clothing),
  'fairface': (write_fairface, open_fairface),
}
LABELS = ('.txt', '.csv', '.mat')
CELLS = [
  '000001.jpg',
  'AFLW/0000-image.jpg',
  '1',
  '2',
  '-1',
  '0',
  '20.5',
  'nan',
  '1e999',
  '9' * 20,
  'image_id',
  '"',
  '\0',
]
CONTENT = st.binary() | st.lists(st.lists(st.sampled_from(CELLS)).map(' '.join)).map(
  lambda lines: '\n'.join(lines).encode()
)


@pytest.fixture(scope='module', params=READERS)
def folder(request, tmp_path_factory):
  """A source as published, how it is opened, and the bytes of its files of labels."""
  root = tmp_path_factory.mktemp(request.param) / 'source'
  write, opened = READERS[request.param]
  write(root)
  return root, opened, {path: path.read_bytes() for path in sorted(root.rglob('*')) if path.suffix in LABELS}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 10), cut=st.tuples(st.integers(0, 400), st.integers(0, 400)) | st.none(), content=CONTENT)
@example(which=0, cut=None, content=b'\xc2\xa0')
@example(which=1, cut=None, content=b'\xef\xbb\xbf')
@example(which=0, cut=None, content=b'1\na a')
@example(which=0, cut=None, content=b'2147483648\nx\na 1')
@example(which=2, cut=None, content=b'image_id,"a\nb"\n"c\nd",7')
@example(which=0, cut=None, content=b'lfw_5590\\face_0.jpg' + b' 1' * 14)
@example(which=1, cut=None, content=b'AFLW\\0000-image.jpg' + b' 1' * 14)
@example(which=0, cut=(20, 1), content=b'\r')
@example(which=0, cut=(2, 0), content=b'\0')
@example(which=2, cut=(2, 0), content=b'\x1b')
@example(which=0, cut=(144, 1), content=b'\x01')
@example(which=0, cut=(168, 4), content=b'\xff\xff\xff\x7f')
def test_any_bytes_are_read_or_refused_in_one_line(folder, which, cut, content):
  root, opened, files = folder
  path = list(files)[which % len(files)]
  whole = files[path]
  path.write_bytes(content if cut is None else whole[: cut[0]] + content + whole[cut[0] + cut[1] :])
  message = ''
  try:
    for record in opened(root).records():
      assert not any(np.isinf(values).any() for values in record.labels.values())
      assert '\n' not in record.name
      assert '\r' not in record.name
  except DataError as error:
    message = str(error)
  finally:
    path.write_bytes(whole)
  assert len(message.splitlines()) <= 1
