"""Metrics: each computed and declared once, from predictions, labels and the draws that examples are weighted by.

The functions here share arguments, results and errors:

  predictions: `[n, outputs]`, probabilities, class numbers or values.
  labels: `[n, k]`, or `[n, h, w]` of dense tasks.
  mask: whether the label exists, of the labels' shape; what lies under a False is never read.
  names: of the outputs.
  draws: how often each example counts. By default once: an estimate, whose metrics are numbers for JSON, None where
    there is nothing to compute one from. Otherwise they are `[B]`, one of each draw.

They give a dictionary by metric's name; `per_output` holds those of each output by its name. They raise ValueError for
shapes that do not fit and labels that cannot be, DivergedError for a prediction that is not finite under a True.
"""

from mtl_jax.metrics.binary import binary
from mtl_jax.metrics.categorical import categorical
from mtl_jax.metrics.dense import dense
from mtl_jax.metrics.landmarks import landmarks
from mtl_jax.metrics.metric import Metric
from mtl_jax.metrics.ordinal import ordinal
from mtl_jax.metrics.regression import regression

__all__ = ['Metric', 'binary', 'categorical', 'dense', 'landmarks', 'ordinal', 'regression']
