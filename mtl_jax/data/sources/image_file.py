"""Reads an image file as upright RGB pixels of a given size."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from mtl_jax.errors import DataError, one_line

# All that is read. Pillow knows many more by their content, whatever a file is called, and for some starts programs.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
_BITS, _PHOTOMETRIC = 258, 262  # Tags of TIFF: bits a sample; 1 where 0 is black.


def read_upright(image: Path | BinaryIO, *, name: str = 'image') -> Image.Image:
  """Reads an image file as RGB, turned upright by its EXIF note.

  Args:
    image: a file, or one opened, of one of `FORMATS`.
    name: what an opened file is called in errors, if it has no name of its own.

  Raises:
    DataError: for a file that is missing, truncated, no image, absurdly large, or whose numbers have no known range.
  """
  try:
    with Image.open(image, formats=FORMATS) as opened:
      return _eight_bits(ImageOps.exif_transpose(opened), opened).convert('RGB')
  except FileNotFoundError as error:
    raise DataError(f'{image}: no such image; check the path') from error
  except MemoryError:
    raise
  except Exception as error:  # Pillow's decoders raise a dozen kinds on bad bytes.
    name = str(image) if isinstance(image, Path) else getattr(image, 'name', name)
    raise DataError(f'{name}: is no readable image ({one_line(error)}); fetch it again, or leave it out') from error


def _eight_bits(picture: Image.Image, opened: Image.Image) -> Image.Image:
  """Scales samples of more than 8 bits; Pillow would clip them at 255."""
  if picture.mode[0] not in 'IF':
    return picture
  tags = getattr(opened, 'tag_v2', {})
  bits, is_pgm = int(tags.get(_BITS, (16,))[0]), opened.format == 'PPM' and picture.mode == 'I'
  if not (is_pgm or picture.mode.startswith('I;16')) or tags.get(_PHOTOMETRIC, 1) != 1:
    raise ValueError('it has 32 bits or fractions a sample, of no known range; save it with 8 or 16 bits')
  return Image.fromarray((np.asarray(picture) >> (bits - 8)).astype(np.uint8))


def squash(picture: Image.Image, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
  """A picture's pixels, uint8 `[h, w, 3]`, at that height and width, and the width and height that it had."""
  return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)), picture.size


def decode(
  image: Path | BinaryIO,
  size: tuple[int, int],
  *,
  crop: tuple[int, int, int, int] | None = None,
  name: str = 'image',
) -> tuple[np.ndarray, tuple[int, int]]:
  """Reads an image file as `read_upright` does, squashed to a size by an antialiased filter.

  Args:
    image: see `read_upright`.
    size: height and width of the result in pixels.
    crop: left, top, right and bottom, in pixels of the upright image, of the part to read instead of the whole;
      black where it reaches past the edges.
    name: see `read_upright`.

  Returns:
    Pixels uint8 `[h, w, 3]`, and the width and height that the image, or the part of it, had.
  """
  picture = read_upright(image, name=name)
  try:
    return squash(picture.crop(crop) if crop else picture, size)
  except (ValueError, OSError, Image.DecompressionBombError) as error:  # A crop of more pixels than an image may have.
    raise DataError(f'{name}: is no readable image ({one_line(error)}); correct its crop') from error
