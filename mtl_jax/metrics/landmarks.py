"""Errors of points, as fractions of the image and of a distance in it, such as that between the eyes."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

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
  """Errors of points, x and y of each in turn, in fractions of the image's width and height.

  `mae`, `mse` and `rmse` are over coordinates. `nme` of an image is the mean over its labelled points of the distance
  in pixels of the source image, over the distance there that `over` names; `nme` of the split is the mean over the
  `num_images` images that have one: where it is that of two points, both labelled and apart. A failure is an image
  whose nme is above 0.08 or 0.10.

  Args:
    predictions: for those not listed see `mtl_jax.metrics`; a point is labelled when both its coordinates are.
    points: names of the `p` points.
    source_size: width and height of the source image in pixels, `[n, 2]`.
    over: two points, the source image's `diagonal`, or a number of its pixels; empty: the eyes, whose points' names
      begin with lefteye and righteye; where there are none, metrics that are divided are left out.
  """
  predictions, labels, mask = checked(
    predictions, labels, mask, [f'{point}_{axis}' for point in points for axis in 'xy']
  )
  if np.shape(source_size) != (len(labels), 2):
    raise ValueError(f'source_size has shape {np.shape(source_size)}, not {(len(labels), 2)}')
  draws = draws or whole(len(predictions))
  by_point = (len(labels), len(points), 2)
  errors, present = (predictions - labels).reshape(by_point), mask.reshape(by_point)
  labelled = np.asarray(present.all(-1))
  # A padded row may have any source size; one pixel keeps its unused distances finite.
  pixels = np.where(labelled.any(-1, keepdims=True), np.asarray(source_size, np.float64), 1.0)
  if over == DIAGONAL:
    divisors = np.linalg.norm(pixels, axis=-1)
  elif isinstance(over, int | float):
    divisors = np.full(len(labels), float(over))
  else:
    ends = [[points.index(point)] for point in over] if over else eyes(points)
    divisors = _between(labels.reshape(by_point) * pixels[:, None], labelled, ends)
  counted = labelled & (divisors > 0)[:, None]
  distances = np.linalg.norm(errors * pixels[:, None], axis=-1) / np.where(divisors > 0, divisors, 1.0)[:, None]
  has_nme = np.asarray(counted.any(-1))
  nme = distances.sum(-1, where=counted) / np.maximum(counted.sum(-1), 1)
  mse = draws.mean(np.square(errors), present)
  normalized = {
    'nme': draws.mean(nme, has_nme),
    'failure_rate_8': draws.mean(nme > 0.08, has_nme),
    'failure_rate_10': draws.mean(nme > 0.10, has_nme),
    'num_images': int(has_nme.sum()),
  }
  has_divisor = bool(over or eyes(points))
  return draws.result(
    {
      'mae': draws.mean(np.abs(errors), present),
      'mse': mse,
      'rmse': np.sqrt(mse),
      **(normalized if has_divisor else {}),
      'per_output': {
        point: {
          'mae': draws.mean(np.abs(errors[:, i]), present[:, i]),
          **({'nme': draws.mean(distances[:, i], counted[:, i])} if has_divisor else {}),
          'num_labels': int(labelled[:, i].sum()),
        }
        for i, point in enumerate(points)
      },
    }
  )


def eyes(points: Sequence[str]) -> list[list[int]]:
  """The numbers of the points that mark the left and the right eye, by their names; empty where an eye has none."""
  sides = [[i for i, name in enumerate(points) if name.startswith(eye)] for eye in ('lefteye', 'righteye')]
  return sides if all(sides) else []


def _between(
  points: Float[np.ndarray, 'n p 2'], labelled: Bool[np.ndarray, 'n p'], ends: Sequence[list[int]]
) -> Float[np.ndarray, ' n']:
  """Distance between two ends, each the centre of some of the points; 0 where one is not labelled."""
  if not ends:
    return np.zeros(len(points))
  first, second = (points[:, columns].mean(1) for columns in ends)
  return np.where(labelled[:, ends[0] + ends[1]].all(-1), np.linalg.norm(first - second, axis=-1), 0.0)
