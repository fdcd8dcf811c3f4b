"""Test splits of every kind of task with labels missing, and predictions of them, for the statistics of studies."""

import numpy as np

from mtl_jax.tasks import BinaryTask, CategoricalTask, LandmarkTask, OrdinalTask, RegressionTask

POINTS = ('lefteye', 'righteye', 'nose')
ATTRIBUTES = BinaryTask('attributes', ('Bald', 'Smiling', 'Young'))
LANDMARKS = LandmarkTask('landmarks', tuple(f'{point}_{axis}' for point in POINTS for axis in 'xy'))
AGE = RegressionTask('age', ('age',))
POSE = CategoricalTask('pose', ('pose',), classes=('left', 'front', 'right', 'back'))
DECADE = OrdinalTask('decade', ('decade',), classes=('young', 'middle', 'old'))
TASKS = (ATTRIBUTES, LANDMARKS, AGE, POSE)
RESAMPLED = (*TASKS, DECADE)
NUM_IMAGES = 40


def split_of(task, seed=0, num=NUM_IMAGES):
  """Labels, mask and source sizes of a test split with missing labels, for `task`."""
  rng = np.random.default_rng(seed)
  shape = (num, len(task.labels))
  if task.kind == 'landmarks':
    labels = rng.uniform(0.2, 0.8, shape)
  else:
    labels = rng.integers(0, {'binary': 2, 'categorical': 3, 'ordinal': 3, 'regression': 90}[task.kind], shape).astype(
      np.float64
    )
  return labels, rng.random(shape) < 0.8, rng.integers(50, 90, (num, 2))


def predict(task, labels, seed):
  """Predictions that know something of the labels, on a coarse grid so that scores are tied."""
  rng = np.random.default_rng((7, seed))
  if task.kind in ('categorical', 'ordinal'):
    classes = np.arange(len(task.classes))
    scores = rng.random((len(labels), len(classes))) + 0.5 * (labels == classes)
    return scores / scores.sum(-1, keepdims=True)
  noise = rng.normal(size=labels.shape)
  if task.kind == 'binary':
    return np.clip(np.round(0.5 + 0.3 * (labels - 0.5) + 0.2 * noise, 1), 0, 1)
  return labels + {'landmarks': 0.03, 'regression': 5.0}[task.kind] * noise
