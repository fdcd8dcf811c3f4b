"""Aligns a face by its landmarks: turns, scales and moves a photo so that they come to the training set's mean ones."""

import numpy as np
from jaxtyping import Float, Float64
from PIL import Image

from mtl_jax.data.sources.image_file import fitted

MOST = 4.0  # Sides of the photo that an aligned frame may have; more is no face.


def similarity(
  points: Float[np.ndarray, 'p 2'], targets: Float[np.ndarray, 'p 2']
) -> Float64[np.ndarray, '2 3'] | None:
  """The similarity transform that maps points to targets in least squares; None where all points are equal.

  Umeyama 1991, "Least-Squares Estimation of Transformation Parameters Between Two Point Patterns", without reflections:
  in the plane a turn with a scale is a product with a complex number.
  """
  z, w = (np.asarray(one, np.float64) @ (1, 1j) for one in (points, targets))
  spread = np.abs(z - z.mean()) ** 2
  if not spread.sum() > 0:
    return None
  factor = ((z - z.mean()).conj() * (w - w.mean())).sum() / spread.sum()
  shift = w.mean() - factor * z.mean()
  return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def aligned(
  picture: Image.Image,
  points: Float[np.ndarray, 'p 2'],
  mean: Float[np.ndarray, 'p 2'],
  *,
  size: tuple[int, int],
  aspect: float,
) -> tuple[np.ndarray, Float64[np.ndarray, '2 3']] | None:
  """The part of a photo in which its landmarks lie where the training set's mean landmarks do.

  Args:
    picture: the photo.
    points: its landmarks, fractions of its width and height.
    mean: the training set's, fractions of the images'.
    size: height and width of the network's input in pixels.
    aspect: width over height of what the training images show, which that may squash.

  Returns:
    Pixels uint8 `[h, w, 3]`, and the view of `Task.on_picture`; None where the landmarks are those of no face.
  """
  whole = np.array(picture.size, np.float64)
  found = similarity(mean * (aspect, 1.0), points * whole)  # From heights of the part to pixels of the photo.
  if found is None or not np.isfinite(found).all():
    return None
  height = float(np.hypot(*found[:, 0]))
  frame = max(1, round(height * aspect)), max(1, round(height))
  if max(frame) < 2 or max(frame) > MOST * max(picture.size):
    return None
  view = found * np.array([aspect, 1.0, 1.0])  # From fractions of the part.
  coefficients = (view / np.array([*frame, 1.0])).ravel().tolist()
  part = picture.transform(frame, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
  return fitted(part, size, 'squash')[0], view / whole[:, None]
