"""Scores of every replica of a study at a task: metrics of the test split, and of its resamples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.metrics.draws import Draws
from mtl_jax.tasks import Task, main_of_output

# For each arm, for each seed in turn.
Replicas = Mapping[str, Sequence[Mapping[str, Any] | None]]
Pair = tuple[np.ndarray, np.ndarray]
_OF_LABELS = ('num_images', 'num_labels', 'positive_rate')  # Numbers, but no metrics.


@dataclasses.dataclass(frozen=True)
class TaskScores:
  """Scores of every replica at one task, or at one of its outputs.

  Attributes:
    main_metric: the one that is tested.
    scores: the task's part of the eval JSON; None for a replica that diverged.
    resampled: the same with `[B]` values of B resamples of the test split; None where there are none.
    num_clusters: how many people (or images of unknown people) were resampled.
    output_clusters: of them those with a label of an output, where that may be fewer.
  """

  main_metric: str
  scores: Replicas
  resampled: Replicas | None = None
  num_clusters: int = 0
  output_clusters: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def metrics(self) -> tuple[str, ...]:
    """The main metric first."""
    known = next((replica for side in self.scores.values() for replica in side if replica is not None), {})
    others = (name for name, value in known.items() if value is None or isinstance(value, int | float))
    return tuple(dict.fromkeys([self.main_metric, *(name for name in others if name not in _OF_LABELS)]))

  def values(self, arm: str, metric: str) -> np.ndarray:
    """One value a seed, `[S]`; NaN where a replica has none."""
    found = [None if replica is None else replica[metric] for replica in self.scores[arm]]
    values = np.array([np.nan if value is None else value for value in found], np.float64)
    return np.where(np.isfinite(values), values, np.nan)

  def pair(self, arm: str, reference: str, metric: str) -> Pair:
    """Values of both arms, `[S]` each."""
    return self.values(arm, metric), self.values(reference, metric)

  def resampled_pair(self, arm: str, reference: str, metric: str, *, seeds: np.ndarray) -> Pair | None:
    """Resampled values `[B, S']` of both arms for the S' seeds chosen by `seeds`, `[S]`; None if one has none."""
    if self.resampled is None or not seeds.any():
      return None
    sides = []
    for side in (arm, reference):
      chosen = [replica for replica, wanted in zip(self.resampled[side], seeds, strict=True) if wanted]
      columns = [replica[metric] for replica in chosen if replica is not None and metric in replica]
      if len(columns) < len(chosen):
        return None
      sides.append(np.stack(columns, axis=1))
    return sides[0], sides[1]

  def outputs(self) -> dict[str, 'TaskScores']:
    """Each output of the task as if it were a task; empty where there is one output, which is the task itself."""
    known = next((replica for side in self.scores.values() for replica in side if replica is not None), {})
    names = list(known.get('per_output', ()))
    if len(names) < 2:
      return {}
    metrics = {name: main_of_output(self.main_metric, known['per_output'][name]) for name in names}
    return {
      name: TaskScores(
        metrics[name],
        _of_output(self.scores, name),
        None if self.resampled is None else _of_output(self.resampled, name),
        self.output_clusters.get(name, self.num_clusters),
      )
      for name in names
    }


def score_task(
  task: Task,
  predictions: Mapping[str, Sequence[np.ndarray | None]],
  labels: np.ndarray,
  *,
  mask: np.ndarray,
  source_size: np.ndarray,
  resampling: Draws | None = None,
) -> TaskScores:
  """Scores every replica's predictions of the test split, and its resamples if `resampling` is given.

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
  finite = {
    arm: [p if p is not None and np.isfinite(p[present]).all() else None for p in replicas]
    for arm, replicas in predictions.items()
  }
  scores = {
    arm: [None if p is None else task.metrics(p, labels, mask=mask, source_size=source_size) for p in replicas]
    for arm, replicas in finite.items()
  }
  if resampling is None:
    return TaskScores(task.main_metric, scores)
  same = {'mask': mask, 'source_size': source_size, 'draws': resampling}
  resampled = {
    arm: [None if p is None else task.metrics(p, labels, **same) for p in replicas] for arm, replicas in finite.items()
  }
  columns: dict[str, list[int]] = {}
  for column, label in enumerate(task.labels):
    for output in (label, label.rpartition('_')[0]):  # A label's own, and that of the point whose coordinate it is.
      columns.setdefault(output, []).append(column)
  clusters = {output: resampling.num_clusters(mask[:, own]) for output, own in columns.items()}
  return TaskScores(task.main_metric, scores, resampled, resampling.num_clusters(mask), clusters)


def _of_output(replicas: Replicas, name: str) -> Replicas:
  return {
    arm: [None if replica is None else replica['per_output'][name] for replica in side]
    for arm, side in replicas.items()
  }
