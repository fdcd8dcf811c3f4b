"""Image files: seven formats by their content, 16 bits as 8, and no program is ever started for one."""

import os

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.sources.image_file import FORMATS, decode, read_upright
from mtl_jax.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6), np.uint8)


@pytest.mark.parametrize('name', ['a.png', 'a.pgm', 'a.tif', 'big_endian.tif'])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
  wide = PIXELS.astype('>u2' if 'big' in name else '<u2') * 257
  if name.endswith('pgm'):
    (tmp_path / name).write_bytes(b'P5 6 8 65535\n' + wide.astype('>u2').tobytes())
  else:
    Image.fromarray(wide).save(tmp_path / name)
  np.testing.assert_array_equal(read_upright(tmp_path / name), np.repeat(PIXELS[..., None], 3, -1))


@pytest.mark.parametrize('kind', [np.float32, np.int32])
def test_pixels_without_a_black_and_a_white_are_refused(tmp_path, kind):
  Image.fromarray(PIXELS.astype(kind)).save(tmp_path / 'a.tif')
  with pytest.raises(DataError, match=r'a\.tif: .* 8 or 16'):
    decode(tmp_path / 'a.tif', (8, 6))


@pytest.mark.parametrize('format', FORMATS)
def test_every_format_is_read_whatever_the_file_is_called(tmp_path, format):
  Image.fromarray(PIXELS).resize((60, 80)).save(tmp_path / 'a.jpg', format)
  pixels, _, size = decode(tmp_path / 'a.jpg', (80, 60))
  assert size == (60, 80)
  assert np.abs(pixels.mean(-1) - np.asarray(Image.fromarray(PIXELS).resize((60, 80)))).mean() < 12


def test_no_program_is_started_for_a_file_of_another_format(tmp_path, monkeypatch):
  (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/started\n')
  (tmp_path / 'gs').chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  (tmp_path / 'eps.jpg').write_text(
    '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n'
  )  # fmt: skip
  with Image.open(tmp_path / 'eps.jpg') as opened:
    assert opened.format == 'EPS'
  with pytest.raises(DataError, match=r'eps\.jpg'):
    decode(tmp_path / 'eps.jpg', (8, 8))
  assert not (tmp_path / 'started').exists()
