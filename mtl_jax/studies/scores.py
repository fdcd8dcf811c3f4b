"""Scores of every replica of a study: each metric of a task and of its outputs, on the test split and its resamples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mtl_jax.metrics.draws import Draws
from mtl_jax.tasks import Task, plain

Pair = tuple[np.ndarray, np.ndarray]
_OF_LABELS = ('num_images', 'num_labels', 'positive_rate')  # Numbers, but no metrics.


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """One metric of a task, or of one of its outputs, for every arm and seed.

  Attributes:
    output: of the task; empty for the task as a whole.
    main: True for the task's main metric, the one that is tested.
    values: by arm, NaN where a replica has none.
    resampled: the same for B resamples of the test split; None where there are none.
    num_clusters: how many people (or images of unknown people) with such a label were resampled.
  """

  task: str
  output: str
  metric: str
  main: bool
  values: Mapping[str, Float[np.ndarray, ' S']]
  resampled: Mapping[str, Float[np.ndarray, 'B S']] | None = None
  num_clusters: int = 0

  def complete(self, arm: str, reference: str) -> Bool[np.ndarray, ' S']:
    """True for the seeds of which both arms have a value."""
    return np.isfinite(self.values[arm]) & np.isfinite(self.values[reference])

  def pair(self, arm: str, reference: str, seeds: Bool[np.ndarray, ' S']) -> Pair:
    """Values of both arms at these seeds, `[S']` each."""
    return self.values[arm][seeds], self.values[reference][seeds]

  def resampled_pair(self, arm: str, reference: str, seeds: Bool[np.ndarray, ' S']) -> Pair | None:
    """Resampled values of both arms at these seeds, `[B, S']` each."""
    found = self.resampled
    return None if found is None else (found[arm][..., seeds], found[reference][..., seeds])


def score_task(
  task: Task,
  predictions: Mapping[str, Sequence[np.ndarray | None]],
  labels: np.ndarray,
  *,
  mask: np.ndarray,
  source_size: np.ndarray,
  resampling: Draws,
) -> list[Scores]:
  """Scores every replica's predictions of the test split and of its resamples; each group's main metric is first.

  Outputs are scored one by one where there are several.

  Args:
    task: the task.
    predictions: for each arm, for each seed in turn, `[n, outputs]`; None, or a value that is not finite on an
      image with a label, for a replica that diverged.
    labels: `[n, k]`.
    mask: whether the label exists, `[n, k]`.
    source_size: width and height of the source images in pixels, `[n, 2]`.
    resampling: the study's one `draws.draw` of the test split's identities.
  """
  present = np.asarray(mask, bool).reshape(len(mask), -1).any(-1)
  found: dict[str, list[tuple[dict[str, Any], dict[str, Any]] | None]] = {}  # Plain and resampled metrics.
  for arm, replicas in predictions.items():
    finite = [p if p is not None and np.isfinite(p[present]).all() else None for p in replicas]
    rest: dict[str, Any] = {'mask': mask, 'source_size': source_size}
    found[arm] = [
      None if p is None else (task.metrics(p, labels, **rest), task.metrics(p, labels, **rest, draws=resampling))
      for p in finite
    ]
  known = next((replica[0] for side in found.values() for replica in side if replica), {})
  outputs = known.get('per_output', {})
  scores = []
  for output, metrics in {'': known, **(outputs if len(outputs) > 1 else {})}.items():
    main = plain(task.main_metric) if output else task.main_metric
    main = main if main in metrics or not output else next(iter(metrics))
    numbers = [name for name, value in metrics.items() if value is None or isinstance(value, int | float)]
    left_out = {*_OF_LABELS, *task.undefined}
    clusters = _num_clusters(task, output, mask, resampling)
    for metric in dict.fromkeys([main, *(name for name in numbers if name not in left_out)]):
      values, resampled = ({arm: _column(side, i, output, metric) for arm, side in found.items()} for i in (0, 1))
      tested = metric == main and not output
      scores.append(Scores(task.name, output, metric, tested, values, resampled, clusters))
  return scores


def _column(
  replicas: Sequence[tuple[dict[str, Any], dict[str, Any]] | None], which: int, output: str, metric: str
) -> np.ndarray:
  """A metric's values, or resampled ones, with a last axis of seeds; NaN of a replica that diverged."""
  groups = [replica and (replica[which]['per_output'][output] if output else replica[which]) for replica in replicas]
  values = [np.array(np.nan if group is None else group[metric], np.float64) for group in groups]
  found = np.stack(np.broadcast_arrays(*values), axis=-1)
  return np.where(np.isfinite(found), found, np.nan)


def _num_clusters(task: Task, output: str, mask: np.ndarray, resampling: Draws) -> int:
  """People with a label of the task, or of that output, which is a label or the point whose coordinates are labels."""
  own = [i for i, label in enumerate(task.labels) if output and output in (label, label.rpartition('_')[0])]
  return resampling.num_clusters(mask[:, own] if own else mask)
