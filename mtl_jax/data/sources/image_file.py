"""Reads an image file of any kind as upright RGB pixels of a given size."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from mtl_jax.errors import DataError, one_line

# All that is read. Pillow knows many more by their content, whatever a file is called, and for some starts programs.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')


def decode(
  image: Path | BinaryIO,
  size: tuple[int, int],
  *,
  crop: tuple[int, int, int, int] | None = None,
  name: str = 'image',
) -> tuple[np.ndarray, tuple[int, int]]:
  """Reads an image file, turned upright by its EXIF note, as RGB squashed to a size by an antialiased filter.

  Args:
    image: a file, or one opened, in one of FORMATS.
    size: height and width of the result in pixels.
    crop: left, top, right and bottom, in pixels of the upright image, of the part to read instead of the whole;
      black where it reaches past the edges.
    name: what an opened file is called in errors, if it has no name of its own.

  Returns:
    Pixels uint8 `[h, w, 3]`, and the width and height that the image, or the part of it, had.

  Raises:
    DataError: for a file that is missing, truncated, no image, or absurdly large.
  """
  try:
    picture = read_upright(image)
    picture = picture.crop(crop) if crop else picture
    pixels = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
  except FileNotFoundError as error:
    raise DataError(f'{image}: no such image; check the path') from error
  except MemoryError:
    raise
  except Exception as error:  # Pillow's decoders raise a dozen kinds on bad bytes.
    name = str(image) if isinstance(image, Path) else getattr(image, 'name', name)
    raise DataError(f'{name}: is no readable image ({one_line(error)}); fetch it again, or leave it out') from error
  return pixels, picture.size


def read_upright(image: Path | BinaryIO) -> Image.Image:
  """The picture in an image file, turned upright by its EXIF note, in RGB; 16 bits a channel become 8.

  Raises:
    ValueError: for pixels of 32 bits, which say nothing of the values of black and white; else what Pillow raises.
  """
  with Image.open(image, formats=FORMATS) as opened:
    picture, sixteen = ImageOps.exif_transpose(opened), opened.mode.startswith('I;16') or opened.format == 'PPM'
    if picture.mode.startswith('I') and sixteen:  # Pillow would clip at 255 rather than scale.
      return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert('RGB')
    if picture.mode in ('I', 'F'):
      raise ValueError('its pixels have 32 bits; save it with 8 or 16')
    return picture.convert('RGB')
