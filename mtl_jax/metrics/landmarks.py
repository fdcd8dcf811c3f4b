"""Errors of points, as fractions of the image and of a distance in it, such as that between the eyes."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from mtl_jax.metrics.draws import Draws, checked, whole
from mtl_jax.metrics.metric import Metric

METRICS = (
  Metric('nme', 'NME', 'NME', percent=True, higher_is_better=False, in_delta_m=True),
  Metric('failure_rate_10', 'images with NME > 10%', 'NME > 10%', percent=True, higher_is_better=False),
  Metric('mae', 'mean absolute error', 'MAE', higher_is_better=False),
  Metric('failure_rate_8', 'images with NME > 8%', 'NME > 8%', percent=True, higher_is_better=False, shown=False),
  Metric('mse', 'mean square error', 'MSE', higher_is_better=False, shown=False),
  Metric('rmse', 'root mean square error', 'RMSE', higher_is_better=False, shown=False),
)
NORMALIZED = frozenset({'nme', 'failure_rate_8', 'failure_rate_10'})  # Those that need a distance to divide by.
DIAGONAL = 'diagonal'
Over: TypeAlias = tuple[str, str] | str | float


def landmarks(
  predictions: np.ndarray,
  labels: np.ndarray,
  *,
  mask: np.ndarray,
  points: Sequence[str],
  source_size: np.ndarray,
  over: Over = '',
  draws: Draws | None = None,
) -> dict[str, Any]:
  """Errors of every draw.

  `mae`, `mse` and `rmse` are over coordinates in [0, 1]. `nme` of an image is the mean over its labelled points of
  the distance in pixels of the source image, over the distance there that `over` names; `nme` of the split is
  the mean over the `num_images` images that have one: where it is that of two points, both labelled and apart. A
  failure is an image whose nme is above 0.08 or 0.10.

  Args:
    predictions: x and y of each point in turn, `[n, 2 p]`, fractions of width and height.
    labels: the same, true.
    mask: whether the coordinate is labelled, `[n, 2 p]`; a point is labelled when both of its coordinates are.
    points: names of the `p` points.
    source_size: width and height of the source image in pixels, `[n, 2]`.
    over: two points, the source image's `diagonal`, or a number of its pixels; empty: the eyes, whose points' names
      begin with lefteye and righteye.
    draws: how often each example counts; by default once.

  Raises:
    ValueError: for shapes that do not fit, or labels that are not finite.
    DivergedError: for a prediction that is not finite where a label exists.
  """
  errors, present, distances, counted = _errors(
    predictions, labels, mask=mask, points=points, source_size=source_size, over=over
  )
  draws = draws or whole(len(predictions))
  has_nme, nme = np.asarray(counted.any(-1)), np.zeros(len(errors))
  nme[has_nme] = distances[has_nme].sum(-1, where=counted[has_nme]) / counted[has_nme].sum(-1)
  mse = draws.mean(np.square(errors), present)
  return draws.result(
    {
      'mae': draws.mean(np.abs(errors), present),
      'mse': mse,
      'rmse': np.sqrt(mse),
      'nme': draws.mean(nme, has_nme),
      'failure_rate_8': draws.mean(nme > 0.08, has_nme),
      'failure_rate_10': draws.mean(nme > 0.10, has_nme),
      'num_images': int(has_nme.sum()),
      'per_output': {
        point: {
          'mae': draws.mean(np.abs(errors[:, i]), present[:, i]),
          'nme': draws.mean(distances[:, i], counted[:, i]),
          'num_labels': int(present[:, i].all(-1).sum()),
        }
        for i, point in enumerate(points)
      },
    }
  )


def _errors(
  predictions: np.ndarray,
  labels: np.ndarray,
  *,
  mask: np.ndarray,
  points: Sequence[str],
  source_size: np.ndarray,
  over: Over,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Errors and distances that `landmarks` averages, from the same arguments.

  Returns:
    Errors of coordinates `[n, p, 2]` and which are labelled; distances of points `[n, p]` over what `over` names, and
    which count: both coordinates labelled, in an image that has that distance.
  """
  coordinates = [f'{point}_{axis}' for point in points for axis in 'xy']
  predictions, labels, mask = checked(predictions, labels, mask, coordinates)
  if np.shape(source_size) != (len(labels), 2):
    raise ValueError(f'source_size has shape {np.shape(source_size)}, not {(len(labels), 2)}')
  by_point = (len(labels), len(points), 2)
  errors = (predictions - labels).reshape(by_point)
  coordinate_mask = mask.reshape(by_point)
  labelled = mask[:, ::2] & mask[:, 1::2]
  # A padded row may have any source size; one pixel keeps its unused distances finite.
  pixels = np.where(labelled.any(-1, keepdims=True), np.asarray(source_size, np.float64), 1.0)[:, None]
  if over == DIAGONAL:
    divisors = np.linalg.norm(pixels[:, 0], axis=-1)
  elif isinstance(over, int | float):
    divisors = np.full(len(labels), float(over))
  else:
    ends = [[points.index(point)] for point in over] if over else eyes(points)
    divisors = _between(labels.reshape(by_point) * pixels, labelled, ends)
  apart = divisors > 0
  distances = np.linalg.norm(errors * pixels, axis=-1) / np.where(apart, divisors, 1.0)[:, None]
  return errors, coordinate_mask, distances, apart[:, None] & labelled


def eyes(points: Sequence[str]) -> list[list[int]]:
  """The numbers of the points that mark the left and the right eye, by their names; empty where an eye has none."""
  sides = [[i for i, name in enumerate(points) if name.startswith(eye)] for eye in ('lefteye', 'righteye')]
  return sides if all(sides) else []


def _between(points: np.ndarray, labelled: np.ndarray, ends: Sequence[list[int]]) -> np.ndarray:
  """Distance `[n]` between two ends, each the centre of some of the points `[n, p, 2]`; 0 where one is not labelled."""
  if not ends:
    return np.zeros(len(points))
  first, second = (points[:, columns].mean(1) for columns in ends)
  return np.where(labelled[:, ends[0] + ends[1]].all(-1), np.linalg.norm(first - second, axis=-1), 0.0)
