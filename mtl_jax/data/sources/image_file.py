"""Reads an image file as upright RGB pixels of a given size."""

from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from mtl_jax.errors import DataError, one_line

# All that is read. Pillow knows many more by their content, whatever a file is called, and for some starts programs.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
FITS = ('squash', 'crop', 'pad')  # The ways of a picture of any shape into a stored image: see `fit_box`.
_BITS, _PHOTOMETRIC = 258, 262  # Tags of TIFF: bits a sample; 1 where 0 is black.

Box: TypeAlias = tuple[int, int, int, int]


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


def fit_box(picture: tuple[int, int], size: tuple[int, int], fit: str) -> Box:
  """The part of a picture that becomes the whole of a stored image: left, top, right and bottom in its pixels.

  Args:
    picture: its width and height.
    size: height and width of the stored image.
    fit: `squash` takes all of it, whatever its shape; `crop` the largest part in its middle of the stored image's
      shape; `pad` the smallest part of that shape that holds all of it, black beyond its edges.
  """
  width, height = picture
  if fit == 'squash':
    return 0, 0, width, height
  if (width * size[0] > height * size[1]) == (fit == 'crop'):
    width = max(1, round(height * size[1] / size[0]))
  else:
    height = max(1, round(width * size[0] / size[1]))
  left, top = (picture[0] - width) // 2, (picture[1] - height) // 2
  return left, top, left + width, top + height


def fitted(picture: Image.Image, size: tuple[int, int], fit: str) -> tuple[np.ndarray, Box]:
  """A picture's pixels, uint8 `[h, w, 3]`, at that height and width by an antialiased filter, and its `fit_box`."""
  box = fit_box(picture.size, size, fit)
  part = picture if box == (0, 0, *picture.size) else picture.crop(box)
  return np.asarray(part.resize((size[1], size[0]), Image.Resampling.BILINEAR)), box


def decode(
  image: Path | BinaryIO,
  size: tuple[int, int],
  *,
  crop: Box | None = None,
  fit: str = 'squash',
  name: str = 'image',
) -> tuple[np.ndarray, Box, tuple[int, int]]:
  """Reads an image file as `read_upright` does, at a size.

  Args:
    image: see `read_upright`.
    size: height and width of the result in pixels.
    crop: left, top, right and bottom, in pixels of the upright image, of the part to read instead of the whole;
      black where it reaches past the edges.
    fit: see `fit_box`.
    name: see `read_upright`.

  Returns:
    Pixels uint8 `[h, w, 3]`; the box of them in the image, or in the part of it; and the width and height of that.
  """
  picture = read_upright(image, name=name)
  try:
    whole = picture.crop(crop) if crop else picture
    return *fitted(whole, size, fit), whole.size
  except (ValueError, OSError, Image.DecompressionBombError) as error:  # Of more pixels than an image may have.
    said = 'correct its crop' if crop else f'it cannot be fitted by {fit}'
    raise DataError(f'{name}: is no readable image ({one_line(error)}); {said}') from error
